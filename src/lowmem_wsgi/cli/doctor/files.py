"""Write the file that a platform reads, filled with what was measured."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ...settings import GB, MB
from .figures import Figures
from .findings import MAKE_SECRET, heavy_packages

# In commands for a shell, which runs it.
SECRET = f"$({MAKE_SECRET})"


class Written(NamedTuple):
    """A file, and what to do beside it, a line each."""

    name: str
    text: str
    then: tuple[str, ...] = ()


class Exists(Exception):
    """The file is there already. The message is one line."""


def refuse_existing(platform: str) -> None:
    """Raise Exists if the platform's file is there. The doctor never overwrites a file."""
    name = NAMES[platform]
    if os.path.lexists(name):
        raise Exists(f"{name} exists already: move it away, or change it by hand")


def write(platform: str, figures: Figures) -> Written:
    """Write the platform's file into this directory. Return what was written.

    Raises Exists, and OSError.
    """
    made = WRITERS[platform](figures, _name())
    try:
        with open(made.name, "x", encoding="utf-8") as file:
            file.write(made.text)
    except FileExistsError:
        refuse_existing(platform)
        raise
    return made


def _name() -> str:
    """Return a name for the site: the directory's, of letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", os.path.basename(os.getcwd()).lower()).strip("-") or "my-app"


def variables(figures: Figures) -> dict[str, str]:
    """Return the variables to set, other than secrets, by what was measured.

    Not the number of workers: `run` finds the number at each start, also by the processors.
    """
    found = {}
    heavy = heavy_packages(figures)
    if heavy:
        found["LOWMEM_LAZY_HEAVY"] = "on"
    if not set(heavy) <= set(figures.heavy):
        found["LOWMEM_HEAVY_MODULES"] = ",".join(dict.fromkeys((*figures.heavy, *heavy)))
    return found


def _measured(figures: Figures) -> str:
    worker = figures.worker.own if figures.worker else 0
    return (
        f"Measured by `lowmem-wsgi doctor`: {figures.loaded / MB:.0f} MB loaded, "
        f"{worker / MB:.0f} MB for each worker; {figures.fit} fit in {figures.limit / MB:.0f} MB "
        "(`run` starts at most two a core)."
    )


def _healthy(figures: Figures) -> bool:
    return "/healthz" in figures.pages


def _render(figures: Figures, name: str) -> Written:
    plans = ((512 * MB, "starter"), (2 * GB, "standard"), (4 * GB, "pro"))
    plan = next((plan for size, plan in plans if figures.limit <= size), "pro plus")
    version = ".".join(map(str, sys.version_info[:3]))
    pairs = {"PYTHON_VERSION": version, **variables(figures)}
    values = "".join(
        f'      - key: {key}\n        value: "{value}"\n' for key, value in pairs.items()
    )
    made = "".join(
        f"      - key: {key}\n        generateValue: true\n"
        for key in ("LOWMEM_SECRET_KEY", "LOWMEM_ADMIN_TOKEN")
    )
    health = "    healthCheckPath: /healthz\n" if _healthy(figures) else ""
    return Written(
        "render.yaml",
        f"# {_measured(figures)}\n"
        "services:\n"
        "  - type: web\n"
        f"    name: {name}\n"
        "    runtime: python\n"
        f"    plan: {plan}\n"
        "    buildCommand: pip install -r requirements.txt\n"
        f"    startCommand: lowmem-wsgi run {_word(figures)}\n"
        f"{health}"
        "    envVars:\n"
        f"{values}{made}",
        _requirements(),
    )


def _heroku(figures: Figures, name: str) -> Written:
    pairs = " ".join(f"{key}={value}" for key, value in variables(figures).items())
    return Written(
        "Procfile",
        f"web: lowmem-wsgi run {_word(figures)}\n",
        (
            *([f"heroku config:set {pairs}"] if pairs else []),
            f'heroku config:set LOWMEM_SECRET_KEY="{SECRET}"',
            f'heroku config:set LOWMEM_ADMIN_TOKEN="{SECRET}"',
            *_requirements(),
        ),
    )


def _fly(figures: Figures, name: str) -> Written:
    pairs = {"PORT": "8080", **variables(figures)}
    command = json.dumps(f"lowmem-wsgi run {_word(figures)}")
    env = "".join(f'{key} = "{value}"\n' for key, value in pairs.items())
    checks = (
        '\n[[http_service.checks]]\ngrace_period = "10s"\ninterval = "30s"\nmethod = "GET"\n'
        'path = "/healthz"\ntimeout = "5s"\n'
        if _healthy(figures)
        else ""
    )
    return Written(
        "fly.toml",
        f"# {_measured(figures)}\n"
        f'app = "{name}"\n'
        'kill_signal = "SIGTERM"\n'
        'kill_timeout = "30s"\n'
        f"\n[processes]\napp = {command}\n"
        f"\n[env]\n{env}"
        "\n[http_service]\ninternal_port = 8080\nforce_https = true\n"
        'auto_stop_machines = "stop"\nauto_start_machines = true\nmin_machines_running = 0\n'
        'processes = ["app"]\n'
        f"{checks}"
        f'\n[[vm]]\nmemory = "{_megabytes(figures)}mb"\ncpu_kind = "shared"\ncpus = 1\n',
        (
            f'fly secrets set LOWMEM_SECRET_KEY="{SECRET}"',
            f'fly secrets set LOWMEM_ADMIN_TOKEN="{SECRET}"',
            "fly.toml needs an image: lowmem-wsgi doctor --write docker writes a Dockerfile",
        ),
    )


def _docker(figures: Figures, name: str) -> Written:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    pairs = {"PORT": "8000", **variables(figures)}
    env = " \\\n    ".join(f"{key}={value}" for key, value in pairs.items())
    return Written(
        "Dockerfile",
        f"# {_measured(figures)}\n"
        f"FROM python:{version}-slim\n"
        "WORKDIR /srv\n"
        "COPY requirements.txt .\n"
        "RUN pip install --no-cache-dir -r requirements.txt\n"
        "COPY . .\n"
        "RUN python -m compileall -q . && useradd --create-home site\n"
        "USER site\n"
        f"ENV {env}\n"
        "EXPOSE 8000\n"
        "# Docker kills 10 s after it has asked a container to end.\n"
        f'CMD ["lowmem-wsgi", "run", "--graceful-timeout", "8", {_quoted(figures)}]\n',
        (
            f"docker build -t {name} .",
            f"docker run --memory {_megabytes(figures)}m --memory-swap {_megabytes(figures)}m "
            f'-e LOWMEM_SECRET_KEY="{SECRET}" -e LOWMEM_ADMIN_TOKEN="{SECRET}" -p 8000:8000 {name}',
            *_requirements(),
        ),
    )


def _requirements() -> tuple[str, ...]:
    try:
        with open("requirements.txt", encoding="utf-8", errors="replace") as file:
            if "lowmem-wsgi" in file.read():
                return ()
    except OSError:
        return ("requirements.txt needs what the app imports, and lowmem-wsgi[gunicorn]",)
    return ("requirements.txt needs the line: lowmem-wsgi[gunicorn]",)


def _word(figures: Figures) -> str:
    """Return the app as a word of a start command."""
    return shlex.quote(figures.app or "app:app")


def _quoted(figures: Figures) -> str:
    return json.dumps(figures.app or "app:app")


def _megabytes(figures: Figures) -> int:
    return max(1, figures.limit // MB)


WRITERS: Mapping[str, Callable[[Figures, str], Written]] = {
    "render": _render,
    "heroku": _heroku,
    "fly": _fly,
    "docker": _docker,
}
NAMES = {
    "render": "render.yaml",
    "heroku": "Procfile",
    "fly": "fly.toml",
    "docker": "Dockerfile",
}
