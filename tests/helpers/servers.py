"""Real servers for tests: a process each, on a port of the system's choice, gone afterwards.

The benchmarks use these too, where no pytest is installed: import it where a test is skipped.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).parent
# How many times slower than usual a machine is (tools/cgroup2-vm.sh's): waits are longer there.
SLOWER = float(os.environ.get("TESTS_SLOWER", "1"))
APPS = HERE.parent / "apps"
SERVERS = ("sync", "gthread", "waitress", "werkzeug")
GUNICORN = ("sync", "gthread", "gevent")
_LISTENING = re.compile(
    r"(?:(?:Listening at|Serving on|Running on|Server URL) *:? http://|bound to TCP address )"
    r"127\.0\.0\.1:(\d+)"
)


@dataclass
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def cookie(self, name: str) -> str | None:
        """The value that Set-Cookie gives `name`."""
        for header in self.headers.get_all("Set-Cookie") or []:
            key, _, value = header.partition(";")[0].partition("=")
            if key == name:
                return value
        return None


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    log_path: Path
    port: int = 0
    env: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def workers(self) -> list[int]:
        """The pids of the master's children."""
        path = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        return [int(pid) for pid in Path(path).read_text().split()]

    def listens(self) -> bool:
        address = ("127.0.0.1", self.port)
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=5):
            return True
        return False

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        *,
        chunked: bool = False,
    ) -> Reply:
        """One request on a connection of its own, by a client that sends all before it reads."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30 * SLOWER)
        try:
            connection.request(
                method,
                path,
                body=body,
                headers=headers or {},
                encode_chunked=chunked,
            )
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.request(
            "GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )

    def send_raw(self, data: bytes, seconds: float = 20) -> bytes:
        """Send bytes as they are and no more; all that comes back until the server closes."""
        address = ("127.0.0.1", self.port)
        with socket.create_connection(address, timeout=seconds * SLOWER) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            received = b""
            while piece := connection.recv(65536):
                received += piece
            return received


def wait_for(
    condition: Callable[[], object], what: str | Callable[[], str], seconds: float = 30
) -> None:
    """Poll until `condition` holds. Fails, naming `what`, where it does not."""
    end = time.monotonic() + seconds * SLOWER
    while not condition():
        if time.monotonic() > end:
            named = what() if callable(what) else what
            raise AssertionError(f"waited {seconds} s in vain for {named}")
        time.sleep(0.01)


@contextlib.contextmanager
def serve(
    app: str,
    server: str = "gthread",
    *,
    tmp_path: Path,
    workers: int = 1,
    threads: int = 3,
    config: str | None = None,
    command: Callable[[int], Sequence[str]] | None = None,
    options: Sequence[str] = (),
    cwd: Path = APPS,
    cgroup: Path | Sequence[Path] | None = None,
    env: Mapping[str, str] | None = None,
    as_it_comes: bool = False,
    **more: str,
) -> Iterator[Server]:
    """Serve `app` (module:name, looked up in tests/apps) until the block ends.

    `server`: sync, gthread or gevent (Gunicorn), run (our command), waitress, werkzeug, uwsgi,
    mod_wsgi; the last two are not among what the tests install, and without them the test is
    skipped. `command`: of any other server, for a port that is free; `server` is then a name for
    the log. With `config`
    Gunicorn takes that config and no numbers of ours. The server joins each `cgroup` before it
    starts. `env` and `more`: of its environment. `as_it_comes`: Gunicorn keeps its control socket.
    """
    environ = {**_patience(), **(env or {}), **more}
    log_path = tmp_path / f"{server}-{time.monotonic_ns()}.log"
    port = 0
    if command is not None:
        port = free_port()
        words = [*command(port)]
    elif server in GUNICORN:
        words = [sys.executable, "-m", "gunicorn", app, "--bind", "127.0.0.1:0"]
        # Each server of ours has its own; the default would be shared by all of this user's.
        words += [] if as_it_comes else _quiet_control_socket()
        if config is not None:
            words += ["-c", config]
        else:
            words += ["-k", server, "-w", str(workers)]
            # With threads, Gunicorn quietly makes a sync worker a gthread one.
            words += ["--threads", str(threads)] if server == "gthread" else []
    elif server in OTHERS:
        words = OTHERS[server](app, tmp_path, workers, threads)
    else:
        words = [sys.executable, str(HERE / "serve.py"), server, app]
    for group in [cgroup] if isinstance(cgroup, Path) else cgroup or ():
        inside = ["sh", "-c", 'echo 0 > "$0/cgroup.procs" && exec "$@"', str(group)]
        words = [*inside, *words]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*words, *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=clean_environ(environ),
        )
    running = Server(process, log_path, env=environ)
    try:
        if not port:
            wait_for(lambda: process.poll() is not None or _LISTENING.search(running.log), "a port")
            found = _LISTENING.search(running.log)
            assert found, running.log
            port = int(found[1])
        running.port = port
        if command is not None or server == "mod_wsgi":  # which tells its port before it has it
            wait_for(
                lambda: process.poll() is not None or running.listens(),
                lambda: f"it to listen: {running.log}",
            )
            assert process.poll() is None, running.log
        yield running
    finally:
        stop(process)


def _patience() -> dict[str, str]:
    """On a slower machine, Gunicorn waits longer too: for a worker's sign of life, and its end."""
    if SLOWER == 1:
        return {}
    return {
        "WORKER_TIMEOUT": f"{10 * SLOWER:.0f}",
        "GUNICORN_CMD_ARGS": f"--graceful-timeout={25 * SLOWER:.0f}",
    }


def _uwsgi(app: str, tmp_path: Path, workers: int, threads: int) -> list[str]:
    found = _installed("uwsgi")
    version = subprocess.check_output([found, "--python-version"], text=True)
    if not version.startswith(f"{sys.version_info[0]}.{sys.version_info[1]}."):
        _skip(f"uwsgi is built for Python {version}")
    return [
        *(found, "--http-socket", "127.0.0.1:0", "--master", "--enable-threads", "--die-on-term"),
        *("--processes", str(workers), "--threads", str(threads), "--lazy-apps", "--need-app"),
        *("--virtualenv", sys.prefix, "--module", app),
    ]


def _mod_wsgi(app: str, tmp_path: Path, workers: int, threads: int) -> list[str]:
    found = _installed("mod_wsgi-express")
    if os.geteuid() == 0:
        _skip("Apache does not serve as root")
    port = free_port()  # it has to be told one
    paths = [word for path in sys.path if path for word in ("--python-path", path)]
    return [
        *(found, "start-server", "--application-type", "module", app.partition(":")[0]),
        *("--callable-object", app.partition(":")[2], "--log-to-terminal"),
        *("--host", "127.0.0.1", "--port", str(port), "--server-root", str(tmp_path / "apache")),
        *("--processes", str(workers), "--threads", str(threads), "--locale", "C.UTF-8"),
        *("--python-path", str(APPS), *paths),
    ]


def _run(app: str, tmp_path: Path, workers: int, threads: int) -> list[str]:
    """`lowmem-wsgi run`, with as many workers and threads as it chooses."""
    return [
        *(sys.executable, "-m", "lowmem_wsgi", "run", app, "--bind", "127.0.0.1:0"),
        *_quiet_control_socket(),
    ]


OTHERS = {"uwsgi": _uwsgi, "mod_wsgi": _mod_wsgi, "run": _run}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _installed(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        _skip(f"{name} is not installed")
    return found


def _skip(reason: str) -> NoReturn:
    import pytest

    pytest.skip(reason)


def clean_environ(env: dict[str, str]) -> dict[str, str]:
    """This process's environment without settings that would change what is tested."""
    ours = ("LOWMEM_", "SECRET_KEY", "GUNICORN_", "WEB_CONCURRENCY", "WORKER_", "MAX_REQUESTS")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours) and k != "PORT"}
    return {**kept, "PYTHONUNBUFFERED": "1", **env}


def stop(process: subprocess.Popen[bytes], seconds: float = 15) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds * SLOWER)
    if process.poll() is None:
        process.kill()
        process.wait(seconds)


def _quiet_control_socket() -> list[str]:
    from gunicorn.config import KNOWN_SETTINGS

    known = any(setting.name == "control_socket_disable" for setting in KNOWN_SETTINGS)
    return ["--no-control-socket"] if known else []
