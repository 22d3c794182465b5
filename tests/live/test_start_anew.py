"""`gunicorn -c python:lowmem_wsgi.gunicorn` starts itself anew, once, with `run`'s variables."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.servers import APPS, Server, clean_environ, serve, stop, wait_for
from lowmem_wsgi.system.native import on_glibc
from lowmem_wsgi.workers import variables

CONFIG = "python:lowmem_wsgi.gunicorn"
NAMES = {row.name for row in variables.VARIABLES} - {"PYTHONUNBUFFERED"}  # which the tests set

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(),
    reason="no /proc to see the environment of a process in",
)


def environ_of(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if pair)


def variables_of(server: Server) -> set[str]:
    return environ_of(server.process.pid).keys() & NAMES


@pytest.fixture(autouse=True)
def nothing_set_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


EXPECTED = {name for name in variables.environment({}, on_glibc()) if name in NAMES}


def test_the_master_has_them_and_its_pid_command_and_folder(tmp_path: Path) -> None:
    options = ["--chdir", APPS.name]
    with serve(
        "plain:bare", tmp_path=tmp_path, config=CONFIG, options=options, cwd=APPS.parent
    ) as server:
        assert server.get("/").text == "hello"
        pid = server.process.pid
        found = environ_of(pid)
        assert found.keys() & NAMES == EXPECTED
        assert found[variables.STARTED] == str(pid)
        assert f"({pid})" in server.log.partition("Listening at")[2]
        assert server.log.count("Starting gunicorn") == 1
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
        assert command[-2:] == options
        assert command[command.index("-m") :][:3] == ["-m", "gunicorn", "plain:bare"]


def test_a_reload_keeps_the_process(tmp_path: Path) -> None:
    with serve("plain:bare", tmp_path=tmp_path, config=CONFIG) as server:
        server.get("/")
        (old,) = server.workers()
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: old not in server.workers() and server.workers(), "a new worker")
        assert server.get("/").text == "hello"
        assert server.log.count("Starting gunicorn") == 1


def test_values_of_the_users_own_stand(tmp_path: Path) -> None:
    with serve("plain:bare", tmp_path=tmp_path, config=CONFIG, OMP_NUM_THREADS="2") as server:
        assert environ_of(server.process.pid)["OMP_NUM_THREADS"] == "2"


def test_the_setting_turns_it_off(tmp_path: Path) -> None:
    env = {"LOWMEM_START_ANEW": "off"}
    with serve("plain:bare", tmp_path=tmp_path, config=CONFIG, env=env) as server:
        assert server.get("/").text == "hello"
        assert not variables_of(server)


def test_a_config_of_the_sites_own_is_not_run_twice(tmp_path: Path) -> None:
    config = tmp_path / "site_config.py"
    config.write_text("from lowmem_wsgi.gunicorn import *\nprint('the config is read')\n")
    with serve("plain:bare", tmp_path=tmp_path, config=str(config)) as server:
        assert server.log.count("the config is read") == 1
        assert not variables_of(server)


def test_a_socket_from_outside_is_still_there(tmp_path: Path) -> None:
    """As systemd passes it: descriptor 3, for this pid."""

    log = tmp_path / "log"
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        os.set_inheritable(listening.fileno(), True)
        script = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3);"
            "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()));"
            "os.execv(sys.argv[2], sys.argv[2:])"
        )
        command = [sys.executable, "-m", "gunicorn", "-c", CONFIG, "plain:bare"]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", script, str(listening.fileno()), *command],
                pass_fds=[listening.fileno()],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=APPS,
                env=clean_environ({"XDG_RUNTIME_DIR": str(tmp_path)}),
            )
    server = Server(process, log, port)
    try:
        wait_for(lambda: "Booting worker" in server.log, lambda: f"a worker: {server.log}")
        assert server.get("/").text == "hello"
        assert variables_of(server) == EXPECTED
    finally:
        stop(process)
