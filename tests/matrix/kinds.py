"""The servers and frameworks of the matrix, and what is known not to work on them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

APPS = Path(__file__).parent / "apps"
NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--inh-caps=-all")


class Kind(NamedTuple):
    """One server.

    `command`: starts it with one worker of three threads, if it has workers or threads. `package`:
    what pip installs. `replaces`: it can replace a worker that has grown. `options`: of the tests
    alone. `cuts`: how many requests its replacement of a worker may cut. `exit_code`: after
    SIGTERM. `as_nobody`: it serves as any user but root. `notes`: what to know, for the page.
    """

    title: str
    command: str
    package: str
    replaces: bool = False
    options: tuple[str, ...] = ()
    cuts: int = 0
    exit_code: int = 0
    as_nobody: bool = False
    notes: tuple[str, ...] = ()

    def words(self, app: str, port: int, tmp_path: Path) -> list[str]:
        module, _, name = app.partition(":")
        places = {"module": module, "name": name, "port": port, "venv": sys.prefix}
        program, *words = (self.command + " " + " ".join(self.options)).split()
        words = [word.format(tmp_path=tmp_path, **places) for word in words]
        prefix = NOBODY if self.as_nobody and os.geteuid() == 0 else ()
        return [*prefix, str(Path(sys.prefix) / "bin" / program), *words]

    def missing(self, tmp_path: Path) -> str:
        """Why this server cannot run here; "" if it can."""
        if not version(self.package):
            return f"{self.package} is not installed"
        if not self.as_nobody or os.geteuid() != 0:
            return ""
        if shutil.which(NOBODY[0]) is None:
            return f"{self.title} does not serve as root, and there is no {NOBODY[0]}"
        code = "import os, sys; os.listdir(sys.argv[1]); os.listdir(sys.argv[2])"
        command = [*NOBODY, sys.executable, "-c", code, str(APPS), str(tmp_path)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return (
                f"{self.title} does not serve as root, and the user nobody cannot reach "
                "this Python or these tests"
            )
        return ""


GUNICORN = "gunicorn {module}:{name} --bind 127.0.0.1:{port}"
KINDS = {
    "sync": Kind(
        "Gunicorn sync",
        f"{GUNICORN} --worker-class sync",
        "gunicorn",
        replaces=True,
        options=("--no-control-socket",),
        notes=(
            "One request at a time: others wait, and a client that idles in an upload can hold the"
            " worker for 5 s after its 413.",
            "A worker that has grown is replaced.",
        ),
    ),
    "gthread": Kind(
        "Gunicorn gthread",
        f"{GUNICORN} --worker-class gthread --threads 3",
        "gunicorn",
        replaces=True,
        options=("--no-control-socket",),
        notes=(
            "What `lowmem-wsgi run` starts, with more: [run.md](run.md).",
            "A worker that has grown is replaced.",
        ),
    ),
    "gevent": Kind(
        "Gunicorn gevent",
        f"{GUNICORN} --worker-class gevent",
        "gunicorn",
        replaces=True,
        options=("--no-control-socket",),
        notes=(
            "All requests of a worker share one thread: while one computes, the others wait.",
            "A worker that has grown is replaced.",
        ),
    ),
    "uwsgi": Kind(
        "uWSGI",
        "uwsgi --http-socket 127.0.0.1:{port} --master --threads 3 --die-on-term"
        " --virtualenv {venv} --module {module}:{name}",
        "uWSGI",
        replaces=True,
        cuts=1,  # it cancels a thread that has just accepted a connection
        notes=(
            "Without `--master` a worker that has grown is not replaced.",
            "`--threads` lets LowMemory's own threads run. With one thread, before uWSGI 2.0.27: "
            "`--enable-threads`.",
            "Without `--die-on-term`, SIGTERM makes uWSGI load the app anew.",
            "Not served: chunked uploads.",
            "A worker that has grown is replaced. Of 26 replacements under load, with three"
            " threads, 3 cut one request each.",
        ),
    ),
    "waitress": Kind(
        "waitress",
        "waitress-serve --listen=127.0.0.1:{port} --threads=3 {module}:{name}",
        "waitress",
        exit_code=-15,
        notes=(
            "One process, which nobody replaces: the log says when it has grown. Let your platform"
            " restart it, or use another server.",
            "It reads the whole body before it calls the app: a 413 comes after that. Its own"
            " limit is"
            " `--max-request-body-size` (1 GB).",
            "SIGTERM ends it at once, with the requests in flight.",
        ),
    ),
    "granian": Kind(
        "Granian",
        "granian --interface wsgi --host 127.0.0.1 --port {port} --blocking-threads 3"
        " {module}:{name}",
        "granian",
        notes=(
            "`--interface wsgi` is needed: Granian's own default is another one.",
            "LowMemory does not ask Granian for a fresh worker: Granian closes idle keep-alive"
            " connections when it replaces one, and a request that a client sends just then is"
            " lost. `--workers-max-rss 300` makes Granian itself replace a worker over 300 MB; it"
            " looks every 30 s (`--rss-sample-interval`).",
            "An app that calls the `write()` of PEP 3333 fails: Granian has none.",
        ),
    ),
    "cheroot": Kind(
        "cheroot",
        "python -m cheroot --bind 127.0.0.1:{port} --threads 3 {module}:{name}",
        "cheroot",
        exit_code=-15,
        notes=(
            "One process, which nobody replaces: the log says when it has grown. Let your platform"
            " restart it, or use another server.",
            "SIGTERM ends it at once, with the requests in flight.",
        ),
    ),
    "mod_wsgi": Kind(
        "mod_wsgi",
        "mod_wsgi-express start-server --host 127.0.0.1 --port {port} --threads 3"
        " --chunked-request --log-to-terminal --python-path . --application-type module {module}"
        " --callable-object {name}",
        "mod_wsgi",
        replaces=True,
        options=("--server-root", "{tmp_path}/apache", "--locale", "C.UTF-8"),
        as_nobody=True,
        notes=(
            "Apache does not serve as root: start it as another user, or with `--user`.",
            "`--chunked-request`: without it Apache answers chunked uploads 411.",
            "A worker that has grown is replaced in daemon mode, which this command uses; embedded"
            " in Apache's own processes it is not.",
            "Apache reads the whole body before the app is called: a 413 comes after that. Its own"
            " limit is `--limit-request-body` (10 MB).",
        ),
    ),
}


class Framework(NamedTuple):
    """One framework. `package`: what pip installs; "" for none."""

    title: str
    package: str = ""


FRAMEWORKS = {
    "wsgi": Framework("plain WSGI"),
    "flask": Framework("Flask", "Flask"),
    "django": Framework("Django", "Django"),
    "bottle": Framework("Bottle", "bottle"),
    "falcon": Framework("Falcon", "falcon"),
    "pyramid": Framework("Pyramid", "pyramid"),
}


class Known(NamedTuple):
    """Why tests fail on these servers and frameworks (all, if empty), and with which errors."""

    reason: str
    tests: tuple[str, ...]
    raises: tuple[type[Exception], ...]
    servers: tuple[str, ...] = ()
    frameworks: tuple[str, ...] = ()

    def holds(self, test: str, server: str, framework: str) -> bool:
        return (
            test in self.tests
            and (not self.servers or server in self.servers)
            and (not self.frameworks or framework in self.frameworks)
        )


OVER = "test_a_chunked_upload_over_the_cap_is_413"
BELOW = "test_a_chunked_upload_below_the_cap_arrives"
DECHUNKS = ("sync", "gthread", "gevent", "cheroot", "granian", "mod_wsgi")
KNOWN = (
    Known(
        "uWSGI gives no chunked body to a WSGI app, and closes the connection."
        " Put a proxy in front that reads the whole body (nginx does).",
        (OVER, BELOW),
        (AssertionError, ConnectionError, ValueError),
        servers=("uwsgi",),
    ),
    Known(
        "uWSGI closes each connection of `--http-socket` after one answer, and does not say so in"
        " the answer: a client that sends its next request on it has to send that again.",
        ("test_after_a_413_the_connection_serves_on_or_is_closed",),
        (ConnectionError,),
        servers=("uwsgi",),
    ),
    Known(
        "uWSGI makes no answer of an error that the app lets out: it closes the connection. Flask,"
        " Django, Bottle and Falcon answer 500 themselves.",
        ("test_an_error_of_the_app_is_500_and_the_site_goes_on",),
        (ConnectionError,),
        servers=("uwsgi",),
        frameworks=("wsgi", "pyramid"),
    ),
    Known(
        "Granian resets the connection when the answer comes before the body is read, so a client"
        " that still sends does not get to read the 413. LowMemory does not read the rest away:"
        " Granian bounds no wait, and an idle client would hold the thread for ever. A proxy in"
        " front that reads the whole body helps (nginx does).",
        (
            "test_a_declared_upload_over_the_cap_is_413_and_the_view_does_not_run",
            OVER,
            "test_after_a_413_the_connection_serves_on_or_is_closed",
        ),
        (ConnectionError,),
        servers=("granian",),
    ),
    Known(
        "Django reads no body without a Content-Length: the view of a chunked upload gets nothing,"
        " with LowMemory and without.",
        (OVER, BELOW),
        (AssertionError, ConnectionError),
        servers=DECHUNKS,
        frameworks=("django",),
    ),
    Known(
        "Bottle takes chunks apart itself, and answers 400 where the server has done so already,"
        " with LowMemory and without.",
        (OVER, BELOW),
        (AssertionError, ValueError, ConnectionError),
        servers=DECHUNKS,
        frameworks=("bottle",),
    ),
    Known(
        "The server calls the app when the whole body has come: no answer is possible before. The"
        " client waits; the other threads serve.",
        ("test_a_client_that_stops_sending_is_answered_and_so_are_others",),
        (TimeoutError,),
        servers=("waitress", "mod_wsgi"),
    ),
)


def known(test: str, server: str, framework: str) -> Known | None:
    """Why this test fails there; None where it must pass."""
    return next((known for known in KNOWN if known.holds(test, server, framework)), None)


def version(package: str) -> str:
    """The installed version; "" if the package is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
