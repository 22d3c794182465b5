"""What `lowmem-wsgi run` and the Gunicorn config promise: tracebacks, a steady count."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from helpers.cgroup import memory_cgroup
from helpers.servers import _quiet_control_socket, clean_environ, serve, wait_for

MB = 1024 * 1024
CONFIG = "python:lowmem_wsgi.gunicorn"
COMMANDS = {
    "run": ["-m", "lowmem_wsgi", "run"],
    "-c": ["-m", "gunicorn", "-c", CONFIG],
    "a config of the site's own": ["-m", "gunicorn", "-c", "site_config.py"],
}


def ended(
    command: str, tmp_path: Path, app: str, *options: str
) -> subprocess.CompletedProcess[str]:
    (tmp_path / "broken.py").write_text(textwrap.dedent(app))
    (tmp_path / "site_config.py").write_text("from lowmem_wsgi.gunicorn import *\n")
    words = [*COMMANDS[command], *_quiet_control_socket(), "--bind", "127.0.0.1:0", *options]
    return subprocess.run(
        [sys.executable, *words, "broken:app"],
        cwd=tmp_path,
        env=clean_environ({"XDG_RUNTIME_DIR": str(tmp_path)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )


BROKEN = """
    def connect():
        raise RuntimeError("the database is away")

    connect()
"""


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("error", ["RuntimeError", "NotImplementedError", "ValueError"])
def test_an_error_at_the_apps_import_is_shown_once_with_its_traceback(
    tmp_path: Path, command: str, error: str
) -> None:
    done = ended(command, tmp_path, BROKEN.replace("RuntimeError", error))
    assert done.returncode == 1, done.stdout
    shown = done.stdout
    assert shown.count("Traceback (most recent call last):") == 1, shown
    assert re.search(r'broken\.py", line 3, in connect\n', shown), shown
    assert shown.count(f"{error}: the database is away\n") == 1, shown


def test_a_reload_finds_as_many_workers_as_the_start_though_the_master_has_grown(
    tmp_path: Path,
) -> None:
    (tmp_path / "growing.py").write_text(
        textwrap.dedent("""
        import os, threading, time

        kept = []

        def grow(master=os.getpid()):
            while not os.path.exists("grow"):
                time.sleep(0.01)
            if os.getpid() == master:
                kept.append(b"x" * (100 * 1024 * 1024))
                open("grown", "w").close()

        threading.Thread(target=grow, daemon=True).start()

        def app(environ, start_response):
            start_response("200 OK", [])
            return [b"ok"]
        """)
    )
    found = re.compile(r"(\d+) workers?: \d+ MB up to warn, (\d+) MB loaded")
    with (
        memory_cgroup(512 * MB) as group,
        serve(
            "growing:app", tmp_path=tmp_path, config=CONFIG, cgroup=group.path, cwd=tmp_path
        ) as server,
    ):
        wait_for(lambda: found.search(server.log), lambda: f"the line: {server.log}")
        (tmp_path / "grow").touch()
        wait_for((tmp_path / "grown").exists, "the master to grow")
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(found.findall(server.log)) == 2, lambda: f"the line: {server.log}")
        first, second = found.findall(server.log)
        assert second == first
