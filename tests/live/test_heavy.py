"""Heavy imports at the top of an app, on a real server: late, told, and unloaded at last."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.cgroup import Cgroup, memory_cgroup
from helpers.servers import Server, serve, wait_for

MB = 1024 * 1024
CONFIG = "python:lowmem_wsgi.gunicorn"
MODULES = "pandas,numpy,matplotlib,openpyxl"
TOKEN = {"Authorization": "Bearer t"}
missing = [name for name in MODULES.split(",") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@contextlib.contextmanager
def served(
    tmp_path: Path, config: str = CONFIG, cgroup: Path | None = None, **env: Any
) -> Iterator[Server]:
    env = {"LOWMEM_LAZY_HEAVY": "on", "LOWMEM_HEAVY_MODULES": MODULES, **env}
    with serve(
        "heavy_site:app",
        tmp_path=tmp_path,
        config=config,
        cgroup=cgroup,
        LOWMEM_ADMIN_TOKEN="t",
        XDG_RUNTIME_DIR=str(tmp_path),
        MPLCONFIGDIR=str(tmp_path),
        **{"WEB_CONCURRENCY": "1", **env},
    ) as server:
        yield server


def told(server: Server) -> dict[str, Any]:
    reply = server.request("GET", "/api/memory-status", headers=TOKEN)
    result: dict[str, Any] = json.loads(reply.body)
    return result


def heavy(server: Server) -> dict[str, dict[str, Any]]:
    return {row["module"]: row for row in told(server)["heavy"]}


@pytest.mark.parametrize("preload", [True, False], ids=["preloaded", "loaded by the worker"])
def test_what_is_imported_late_is_loaded_by_the_request_that_uses_it(
    tmp_path: Path, preload: bool
) -> None:
    config = tmp_path / "config.py"
    config.write_text(f"from lowmem_wsgi.gunicorn import *\npreload_app = {preload}\n")
    with served(tmp_path, CONFIG if preload else str(config)) as server:
        assert server.get("/loaded").text == "[]"
        assert heavy(server) == {}
        before = time.time()
        assert server.get("/frame").text == "45"
        found = heavy(server)
        assert set(found) == {"pandas", "numpy"}
        for row in found.values():
            assert row["late"] is True
            assert row["cost_bytes"] > 5 * MB
            assert before - 1 < row["loaded_at"] < time.time() + 1
            assert row["seconds"] > 0
            assert row["route"] == "GET /frame"
        assert re.search(r"heavy_site\.py:\d+$", found["pandas"]["first_use"])
        assert f"{MODULES.replace(',', ', ')} imported late (LOWMEM_LAZY_HEAVY)" in server.log
        assert "requests go on without it" not in server.log


def test_without_late_imports_the_cost_of_each_is_told_all_the_same(tmp_path: Path) -> None:
    with served(tmp_path, LOWMEM_LAZY_HEAVY="off") as server:
        found = heavy(server)
        assert list(found) == MODULES.split(",")
        assert all(row["cost_bytes"] > MB and not row["late"] for row in found.values())
        # Booked in the master: a worker need not have mapped all that it shares.
        booked = sum(row["cost_bytes"] for row in found.values())
        assert booked < 1.5 * told(server)["memory"]["rss_bytes"]
        assert "imported late: nothing" in server.log
        assert "imported late (LOWMEM_LAZY_HEAVY)" not in server.log


@pytest.mark.parametrize("kind", ["gthread", "gevent"])
def test_requests_that_use_it_first_at_the_same_time_all_get_their_answer(
    tmp_path: Path, kind: str
) -> None:
    if kind == "gevent":
        pytest.importorskip("gevent", reason="gevent is not installed")
    with served(tmp_path, WORKER_CONNECTIONS="8", options=["-k", kind]) as server:
        answers: list[str] = []
        threads = [
            threading.Thread(target=lambda: answers.append(server.get("/frame").text))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert answers == ["45"] * 8, server.log


def test_ultra_imports_late_in_spite_of_its_recursion_limit(tmp_path: Path) -> None:
    with served(tmp_path, LOWMEM_PRESET="ultra") as server:
        assert server.get("/loaded").text == "[]"
        assert server.get("/frame").text == "45", server.log


def test_after_a_reload_imports_are_still_late(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        assert server.get("/frame").text == "45"
        worker = int(server.get("/").text)
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: server.workers() not in ([], [worker]), "another worker")
        wait_for(lambda: len(server.workers()) == 1, "the end of the old one")
        assert server.get("/loaded").text == "[]"
        assert server.get("/frame").text == "45"


@contextlib.contextmanager
def ballast(group: Cgroup, size: int) -> Iterator[None]:
    """Another process of the container, that comes to use so much: slowly, for haste alone would
    be taken for the coming end."""
    code = (
        f"import time; b = []\nfor _ in range({size} >> 20): b.append(b'x' * 2**20); "
        "time.sleep(0.03)\nprint('there', flush=True); input()"
    )
    inside = ["sh", "-c", 'echo 0 > "$0/cgroup.procs" && exec "$@"', str(group.path)]
    process = subprocess.Popen(
        [*inside, sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        yield
    finally:
        process.communicate(b"\n")


def test_a_worker_that_no_longer_uses_what_it_has_loaded_is_replaced_when_memory_is_short(
    tmp_path: Path,
) -> None:
    with memory_cgroup(256 * MB) as group, served(tmp_path, cgroup=group.path) as server:
        old = int(server.get("/").text)
        assert server.get("/frame").text == "45"
        loaded = set(heavy(server))
        assert loaded == {"pandas", "numpy"}
        warn, critical = told(server)["thresholds"].values()
        used = told(server)["memory"]["used_bytes"]
        with ballast(group, warn + 5 * MB - used):
            wait_for(lambda: "recycled at" in server.log, lambda: f"it to go: {server.log}", 60)
            wait_for(lambda: old not in server.workers(), "the end of the old one")
            assert server.get("/loaded").text == "[]"
            assert heavy(server) == {}
            wait_for(lambda: told(server)["status"] == "ok", lambda: f"room: {told(server)}")
        (line,) = re.findall(r"recycled at .*", server.log)
        at = re.match(r"recycled at ([\d.]+) MB of 256 MB", line)
        assert at, line
        assert warn / MB <= float(at[1]) < critical / MB
        assert re.search(r" and loaded pandas \(\d[\d.]* MB\), numpy \(\d[\d.]* MB\)", line), line
        assert group.kills() == 0
