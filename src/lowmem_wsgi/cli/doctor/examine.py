"""Find out how the site is served, have it measured, and put the figures together."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, NamedTuple

from ...memory.reading import Memory
from ...settings import Settings, SettingsError
from ...system.native import has_gil, on_glibc
from ...system.procfs import read_machine
from ...workers.platforms import sets_this_itself
from ...workers.variables import environment
from ..run import CONFIG, arguments
from . import deployment
from .deployment import Deployment
from .figures import (
    GUNICORN,
    OTHER,
    RUN,
    Failure,
    Figures,
    Python,
    Route,
    Secret,
    Served,
    Templates,
    Worker,
)
from .measure import Plan, Told, measure, size_beyond

FLAGS = ("PYTHONOPTIMIZE", "PYTHONDONTWRITEBYTECODE")
# The start command, where no file names one.
ASSUMED = ("lowmem-wsgi", "run")
WHICH = "which app? lowmem-wsgi doctor MODULE:APP, such as app:app"
# Where an app usually is.
FILES = ("app", "wsgi", "main", "application", "server")


class Asked(NamedTuple):
    """What the user asks the doctor. `limit` in bytes. `paths`: to ask; None: those found."""

    app: str | None = None
    limit: int | None = None
    platform: str | None = None
    start: str | None = None
    paths: Sequence[str] | None = None
    seconds: float = 30.0
    load: bool = True


class NothingToExamine(Exception):
    """The doctor was asked for what is not there. The message is one line."""


def examine(
    asked: Asked,
    environ: Mapping[str, str],
    started: Deployment | None = None,
    progress: Callable[[str], object] = lambda _: None,
) -> Figures:
    """Return the figures of the site. Raises NothingToExamine.

    `started`: how the site is started, if that is known; else from its files. `progress`: called
    with what is measured now.
    """
    platform = asked.platform or deployment.platform_of(environ)
    found = started or _deployment(asked, platform, environ)
    variables = {**found.variables, **environ}
    server, words = deployment.server_of(found.words)
    figures = Figures(
        app=asked.app,
        platform=platform,
        grace=found.grace or deployment.GRACE.get(platform or ""),
        served=Served(by=OTHER, source=found.source, workers=1, threads=1),
        wrapped=server == "run",
    )
    try:
        settings = Settings.load(environ=variables)
        if server == "run" or (settings.start_anew and CONFIG in words):
            variables = environment(variables, on_glibc())
        if server == "run":
            words = arguments(words, variables)
    except SettingsError as error:
        return replace(figures, problems=error.problems, limit=asked.limit or figures.limit)
    memory = Memory()
    usage = memory.read()
    swap = memory.swap() if usage.source.startswith("cgroup") else None
    limit = asked.limit or settings.memory_limit or usage.limit
    figures = replace(
        figures,
        limit=limit,
        variables=variables,
        warn_at=settings.warn_at,
        ceiling_wanted=settings.ceiling is not False,
        sessions=bool(settings.session_cookies),
        token=settings.admin_token is not None,
        preset=settings.preset,
        late=settings.lazy_heavy,
        heavy=settings.heavy_modules,
        max_in_flight=settings.max_in_flight,
        python=_python(variables),
        swap=swap.limit if swap is not None else 0,
    )
    gunicorn = words if server is not None and find_spec("gunicorn") is not None else None
    guess = _guessed() or ("app:app" if not asked.load else None)
    if asked.app is None and guess is None and gunicorn is None:
        raise NothingToExamine(WHICH)
    plan = Plan(
        app=asked.app,
        guess=guess,
        load=asked.load,
        gunicorn=gunicorn,
        environ=_served_environ(variables, limit),
        limit=limit,
        seconds=asked.seconds,
        paths=asked.paths,
    )
    if not asked.load and gunicorn is None:
        return figures
    told = measure(plan, progress)
    if "no_app" in told.facts:
        raise NothingToExamine(told.facts["no_app"] or WHICH)
    return _figures(figures, plan, told, settings)


def _deployment(asked: Asked, platform: str | None, environ: Mapping[str, str]) -> Deployment:
    try:
        if asked.start is not None:
            given = deployment.of_command(asked.start, "--start", environ)
            if not given.words:
                raise NothingToExamine(f"--start {asked.start!r} names no command")
            return given
        found = deployment.find(".", platform, environ)
    except (ValueError, OSError) as error:
        raise NothingToExamine(f"the start command cannot be read: {error}") from None
    if found is None:
        return Deployment("assumed", ASSUMED)
    return found if found.words else found._replace(words=ASSUMED)


def _python(variables: Mapping[str, str]) -> Python:
    flags = tuple(f"{name}={variables[name]}" for name in FLAGS if variables.get(name))
    return Python(sys.version_info[:3], has_gil(), on_glibc(), flags)


def _guessed() -> str | None:
    """Return the app of a usual file in this directory, from its text; None without one."""
    for name in (*FILES, *_packages()):
        path = f"{name.replace('.', '/')}.py"
        if os.path.isfile(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read()
            found = re.search(r"^(app|application)\s*(?::.*)?=", text, re.MULTILINE)
            if found:
                return f"{name}:{found[1]}"
            made = re.search(r"^def (create_app|make_app)\(", text, re.MULTILINE)
            if made:
                return f"{name}:{made[1]}()"
    return None


def _packages() -> list[str]:
    return [
        f"{entry.name}.wsgi"
        for entry in os.scandir(".")
        if entry.name.isidentifier() and os.path.isfile(f"{entry.name}/wsgi.py")
    ]


def _served_environ(variables: Mapping[str, str], limit: int) -> dict[str, str]:
    """Return the environment of the child: the site's, with the limit where none is set.

    Where no cgroup can be made, LowMemory would take the machine's memory for the limit.
    """
    return {"LOWMEM_MEMORY_LIMIT": str(limit), **variables}


def _figures(figures: Figures, plan: Plan, told: Told, settings: Settings) -> Figures:
    facts = told.facts
    served = _served(figures, facts.get("config"))
    of_app = facts.get("settings", {})
    setting = of_app.pop("setting", settings.secret_key is not None)
    templates = facts.get("templates")
    wrapped = bool(facts.get("wrapped", figures.wrapped))
    figures = replace(
        figures,
        app=facts.get("app") or plan.app or plan.guess,
        problems=tuple(facts.get("problems", ())),
        served=served,
        wrapped=wrapped,
        python=replace(figures.python, **facts.get("python", {})),
        ceiling_works=facts.get("ceiling_works", True),
        base=facts.get("base", 0),
        loaded=facts.get("loaded", 0),
        anonymous=facts.get("anonymous", 0),
        seconds=facts.get("seconds", 0.0),
        imports=facts.get("imports", {}),
        of_app=tuple(facts.get("of_app", ())),
        loading=facts.get("loading", "") if "loaded" not in facts else "",
        worker=Worker(**facts["worker"]) if "worker" in facts else None,
        routes=tuple(Route(**route) for route in told.routes),
        templates=Templates(**templates) if templates else None,
        pages=tuple(facts.get("pages", ())),
        failure=_failure(told),
        real=told.real,
        **of_app,
    )
    failure = figures.failure
    if failure is not None and failure.kind == "hung":
        figures = replace(figures, seconds=plan.seconds)
    if failure is not None and failure.kind in ("killed", "memory") and failure.at == "load":
        machine = read_machine()
        available = machine.limit - machine.used if machine else 0
        figures = replace(figures, loaded=size_beyond(plan, available) or 0)
    if "digest" in facts.get("digest", {}):
        figures = replace(figures, secret=_secret(plan, facts["digest"], setting))
    return figures


def _served(figures: Figures, config: Mapping[str, Any] | None) -> Served:
    if config is None:
        return figures.served
    variables = figures.variables
    ours = config["config"] == CONFIG
    by_variable = bool(variables.get("WEB_CONCURRENCY", "").strip())
    platform = None if config["workers_given"] else sets_this_itself(variables)
    chosen = config["workers_given"] or not ours or (by_variable and platform is None)
    return Served(
        by=RUN if ours and figures.wrapped else GUNICORN,
        source=figures.served.source,
        workers=config["workers"] if chosen else None,
        set_by_platform=platform if chosen else None,
        from_cores=config["from_cores"],
        threads=config["threads"] if config["kind"] == "gthread" else 1,
        preload=config["preload_app"],
        max_requests=config["max_requests"],
        graceful_timeout=config["graceful_timeout"],
        cmd_args=variables.get("GUNICORN_CMD_ARGS", ""),
    )


def _failure(told: Told) -> Failure | None:
    found = told.facts.get("failure")
    if found is None:
        return None
    printed = told.output if found["kind"] in ("exited", "hung") else ()
    lines = tuple(found.get("lines", ())) or printed
    return Failure(found["kind"], told.facts.get("at", "config"), found.get("text", ""), lines)


def _secret(plan: Plan, first: Mapping[str, Any], setting: bool) -> Secret:
    """Return what the app's secret is like. Loads the app once more, to see whether it changes."""
    if not first["length"]:
        return Secret(app=False, length=0, setting=setting)
    given = {hashlib.sha256(os.fsencode(value)).hexdigest() for value in plan.environ.values()}
    changes = False
    if first["digest"] not in given:
        again = measure(plan._replace(only_secret=True)).facts.get("digest", first)
        changes = again["digest"] != first["digest"]
    return Secret(length=first["length"], changes=changes, setting=setting)
