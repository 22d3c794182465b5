"""Who runs the gauntlet: one row each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from matrix.kinds import Kind, version

SITE, WRAPPED, LETTER = "gauntlet_site:app", "gauntlet_wrapped:app", "gauntlet_letter:app"
STOCK, TUNED, OURS = "stock", "tuned for memory", "lowmem-wsgi"
NOTHING: Mapping[str, str] = MappingProxyType({})

BY_RUN = "lowmem-wsgi run {module}:{name} --bind 127.0.0.1:{port}"
GUNICORN = "gunicorn {module}:{name} --bind 127.0.0.1:{port}"
GTHREAD = f"{GUNICORN} --worker-class gthread --threads 3"
UWSGI = (
    "uwsgi --http-socket 127.0.0.1:{port} --master --threads 3 --die-on-term --need-app"
    " --virtualenv {venv} --module {module}:{name}"
)
GRANIAN = (
    "granian --interface wsgi --host 127.0.0.1 --port {port} --blocking-threads 3 {module}:{name}"
)
WAITRESS = "waitress-serve --listen=127.0.0.1:{port} --threads=3"
MOD_WSGI = (
    "--host 127.0.0.1 --port {port} --threads 3 --chunked-request"
    " --log-to-terminal --python-path . --application-type module {module} --callable-object {name}"
    " --server-root {tmp_path}/apache --locale C.UTF-8"
)

# What each server's log says of a worker that did not end in order.
GUNICORN_DEATH = r"Worker \(pid:\s*\d+\) (?:was sent SIG(?!TERM)\w+|exited with code [1-9]\d*)"
UWSGI_DEATH = r"DAMN ! worker \d+ \(pid: \d+\) died"
GRANIAN_DEATH = r"Unexpected exit from worker"
APACHE_DEATH = r"(?:AH00052: child pid|mod_wsgi \(pid=\d+\): Process) .*(?:exit signal|has died)"

# What it takes to install those that are compiled then.
BUILT = {
    "uWSGI": "a C compiler and python3-dev",
    "mod_wsgi": "a C compiler, python3-dev and apache2-dev",
}
IN_C = "The server parses HTTP and writes answers in compiled code, outside the interpreter."
ONE_AT_A_TIME = "Its worker serves one request at a time, so no thread waits for another."
NO_PANDAS = "pandas is not loaded before its first use."
ONE_PROCESS = "There is one process: no master holds an interpreter of its own."
NEW_WORKER = (
    "A worker ends after three requests: most of the time a new one is still loading the app."
)


class Contender(NamedTuple):
    """One row.

    `server`: its command, in the words of tests/matrix. `died`: of the log, by a regular
    expression. `advice`: where its own documentation says so. `keeps_rules`: the site's upload cap
    and session lifetime are LowMemory's, and not Flask's own. `wins`: why it would be best at a
    figure, by the figure's key.
    """

    name: str
    group: str
    server: Kind
    advice: str
    died: str
    app: str = SITE
    env: Mapping[str, str] = NOTHING
    keeps_rules: bool = False
    wins: Mapping[str, str] = NOTHING

    @property
    def version(self) -> str:
        return f"{self.server.package} {version(self.server.package)}".strip()

    def missing(self, directory: Path) -> str:
        """Why it cannot run here; "" if it can."""
        package = self.server.package
        if package in BUILT and not version(package):
            return f"{package} is not installed: to build it takes {BUILT[package]}"
        return self.server.missing(directory)


DOCS = {
    "gunicorn": "https://docs.gunicorn.org/en/stable/settings.html",
    "uwsgi": "https://uwsgi-docs.readthedocs.io/en/latest/Options.html",
    "uwsgi cheaper": "https://uwsgi-docs.readthedocs.io/en/latest/Cheaper.html",
    "granian": "https://github.com/emmett-framework/granian#options",
    "waitress": "https://docs.pylonsproject.org/projects/waitress/en/stable/arguments.html",
    "mod_wsgi": "https://modwsgi.readthedocs.io/en/master/user-guides/mod-wsgi-express-quickstart.html",
    "mod_wsgi limits": (
        "https://modwsgi.readthedocs.io/en/master/configuration-directives/WSGIDaemonProcess.html"
    ),
    "document": "../source-document.md",
    "run": "../run.md",
    "settings": "../settings.md",
    "heavy": "../heavy.md#late-imports",
    "servers": "../servers.md",
}


def _gunicorn(name: str, group: str, command: str, advice: str = "", **more: object) -> Contender:
    server = Kind(name, command, "gunicorn")
    return Contender(name, group, server, advice or DOCS["gunicorn"], GUNICORN_DEATH, **more)  # type: ignore[arg-type]


def _ours(name: str, command: str, advice: str, **more: object) -> Contender:
    return _gunicorn(name, OURS, command, advice, **{"keeps_rules": True, **more})


PLAIN = "Gunicorn gthread"
RUN, CONFIG = "lowmem-wsgi run", "Gunicorn -c lowmem-wsgi"
HIGHLIGHTED = (RUN, CONFIG)  # of these the promises are checked

_NATIVE = MappingProxyType({"p50": IN_C, "p99": IN_C, "p999": IN_C, "rate": IN_C, "cpu": IN_C})
_SINGLE = MappingProxyType(dict.fromkeys(("initial", "idle", "final", "start"), ONE_PROCESS))
_ONE_AT_A_TIME = MappingProxyType(dict.fromkeys(("p50", "p99", "p999", "cpu"), ONE_AT_A_TIME))
_LATE = MappingProxyType(dict.fromkeys(("initial", "idle", "spiked", "final", "start"), NO_PANDAS))
_LOADING = MappingProxyType({"spiked": NEW_WORKER})
_UWSGI = MappingProxyType(
    {**_NATIVE, "initial": "Its master is compiled, and shares the loaded app with the worker."}
)
_MOD_WSGI = Kind(
    "mod_wsgi", f"mod_wsgi-express start-server {MOD_WSGI}", "mod_wsgi", as_nobody=True
)
# mod_wsgi's memory-limit is RLIMIT_DATA, and uWSGI's limit-as is RLIMIT_AS: of what is mapped. At
# rest, an app with pandas has 206 MB of data mapped and 421 MB in all, and holds 81 MB. With these
# limits the container is filled to some 450 MB.
LIMITED = "python ../gauntlet/mod_wsgi_limited.py 587202560"
AT_REQUESTS = "--maximum-requests 100 --graceful-timeout 15"
LIMIT_AS = 704
# glibc's allocator and OpenBLAS, as advised for small containers.
SMALL = MappingProxyType(
    {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "OPENBLAS_NUM_THREADS": "1",
    }
)

CONTENDERS: dict[str, Contender] = {
    row.name: row
    for row in (
        _gunicorn("Gunicorn sync", STOCK, f"{GUNICORN} --worker-class sync", wins=_ONE_AT_A_TIME),
        _gunicorn(PLAIN, STOCK, GTHREAD),
        _gunicorn("Gunicorn gthread, preload", TUNED, f"{GTHREAD} --preload"),
        _gunicorn("Gunicorn max_requests 3", TUNED, f"{GTHREAD} --max-requests 3", wins=_LOADING),
        _gunicorn(
            "Gunicorn max_requests 1000",
            TUNED,
            f"{GTHREAD} --max-requests 1000 --max-requests-jitter 100",
        ),
        _gunicorn(
            "Gunicorn, all together",
            TUNED,
            f"{GTHREAD} --preload --max-requests 100 --max-requests-jitter 20",
            env=SMALL,
        ),
        _gunicorn(
            "source document, to the letter",
            TUNED,
            f"{GUNICORN} -c letter_gunicorn.py",
            DOCS["document"],
            app=LETTER,
        ),
        Contender(
            "uWSGI reload-on-rss",
            TUNED,
            Kind("uWSGI", f"{UWSGI} --reload-on-rss 300", "uWSGI"),
            DOCS["uwsgi"],
            UWSGI_DEATH,
            wins=_UWSGI,
        ),
        Contender(
            "uWSGI evil-reload, cheaper",
            TUNED,
            Kind(
                "uWSGI",
                f"{UWSGI} --processes 2 --cheaper 1 --reload-on-rss 300 --evil-reload-on-rss 400"
                " --cheaper-rss-limit-soft 314572800 --cheaper-rss-limit-hard 419430400",
                "uWSGI",
            ),
            DOCS["uwsgi cheaper"],
            UWSGI_DEATH,
            wins=_UWSGI,
        ),
        Contender(
            "uWSGI reload-on-rss, limit-as",
            TUNED,
            Kind(
                "uWSGI",
                f"{UWSGI} --reload-on-rss 300 --limit-as {LIMIT_AS} --harakiri 60",
                "uWSGI",
            ),
            DOCS["uwsgi"],
            UWSGI_DEATH,
            wins=_UWSGI,
        ),
        Contender(
            "Granian workers-max-rss",
            TUNED,
            Kind("Granian", f"{GRANIAN} --workers-max-rss 300", "granian"),
            DOCS["granian"],
            GRANIAN_DEATH,
            wins=_NATIVE,
        ),
        Contender(
            "Granian max-rss each second",
            TUNED,
            Kind(
                "Granian",
                f"{GRANIAN} --workers-max-rss 300 --rss-sample-interval 1"
                " --respawn-failed-workers --respawn-interval 1 --workers-kill-timeout 10",
                "granian",
            ),
            DOCS["granian"],
            GRANIAN_DEATH,
            wins=_NATIVE,
        ),
        Contender(
            "waitress",
            STOCK,
            Kind(
                "waitress",
                f"{WAITRESS} --max-request-body-size=209715200 {{module}}:{{name}}",
                "waitress",
            ),
            DOCS["waitress"],
            r"(?!)",
            wins=_SINGLE,
        ),
        Contender("mod_wsgi", STOCK, _MOD_WSGI, DOCS["mod_wsgi"], APACHE_DEATH, wins=_NATIVE),
        Contender(
            "mod_wsgi, memory limits",
            TUNED,
            _MOD_WSGI._replace(command=f"{LIMITED} {MOD_WSGI} {AT_REQUESTS}"),
            DOCS["mod_wsgi limits"],
            APACHE_DEATH,
            wins=_NATIVE,
        ),
        _ours("Gunicorn + one line", GTHREAD, DOCS["servers"], app=WRAPPED),
        _ours(CONFIG, f"{GUNICORN} -c python:lowmem_wsgi.gunicorn", DOCS["run"]),
        _ours(RUN, BY_RUN, DOCS["run"]),
        _ours(
            "lowmem-wsgi run, late imports",
            BY_RUN,
            DOCS["heavy"],
            env=MappingProxyType({"LOWMEM_LAZY_HEAVY": "on"}),
            wins=_LATE,
        ),
        _ours(
            "lowmem-wsgi run, ultra",
            BY_RUN,
            DOCS["settings"],
            env=MappingProxyType({"LOWMEM_PRESET": "ultra"}),  # which has late imports, too
            wins=_LATE,
        ),
        _ours(
            "lowmem-wsgi run, preset memory",
            BY_RUN,
            DOCS["settings"],
            env=MappingProxyType({"LOWMEM_PRESET": "memory"}),
            keeps_rules=False,
        ),
        Contender(
            "uWSGI + lowmem-wsgi",
            OURS,
            Kind("uWSGI", UWSGI, "uWSGI"),
            DOCS["servers"],
            UWSGI_DEATH,
            WRAPPED,
            keeps_rules=True,
            wins=_UWSGI,
        ),
        Contender(
            "Granian + lowmem-wsgi",
            OURS,
            Kind("Granian", f"{GRANIAN} --workers-max-rss 300 --rss-sample-interval 1", "granian"),
            DOCS["servers"],
            GRANIAN_DEATH,
            WRAPPED,
            keeps_rules=True,
            wins=_NATIVE,
        ),
        Contender(
            "waitress + lowmem-wsgi",
            OURS,
            Kind("waitress", f"{WAITRESS} {{module}}:{{name}}", "waitress"),
            DOCS["servers"],
            r"(?!)",
            WRAPPED,
            keeps_rules=True,
            wins=_SINGLE,
        ),
    )
}
