"""What the status says of real servers, whose memory goes by a script.

Some sites; benchmarks/diagnosis.py has thirty, and holds each sentence against the script.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.cgroup import memory_cgroup
from helpers.forks import child
from helpers.load import crowd
from helpers.servers import HERE, Server, serve, wait_for
from lowmem_wsgi.workers.shared_page import SharedPage

MB = 1024 * 1024
LIMIT = 256 * MB
SITE = HERE.parents[1] / "benchmarks" / "apps"
SIZE = r"([\d.]+) MB"


@contextlib.contextmanager
def site(tmp_path: Path, **env: str) -> Iterator[Server]:
    tuned = {"LOWMEM_ADMIN_TOKEN": "t", "PYTHONMALLOC": "malloc", "MALLOC_ARENA_MAX": "1"}
    with (
        memory_cgroup(LIMIT) as group,
        serve(
            "diagnosed:app",
            tmp_path=tmp_path,
            config="python:lowmem_wsgi.gunicorn",
            cwd=SITE,
            cgroup=group.path,
            env={**tuned, **env},
        ) as server,
    ):
        yield server


def status(server: Server) -> dict[str, Any]:
    reply = server.get("/api/memory-status?format=json", Authorization="Bearer t")
    assert reply.status == 200, reply.text
    found: dict[str, Any] = json.loads(reply.body)
    assert all(row["grown_bytes"] >= 0 for row in found["routes"])
    return found


def grown(found: dict[str, Any], name: str) -> float:
    """MB."""
    sizes: list[int] = [row["grown_bytes"] for row in found["routes"] if row["route"] == name]
    return sum(sizes) / MB


def test_a_leak_is_told_of_after_the_worker_that_held_it_was_replaced(tmp_path: Path) -> None:
    with site(tmp_path) as server:
        leaked, said = 0, ""
        while status(server)["recycles"]["count"] == 0:
            assert leaked < 400
            for _ in range(5):
                assert server.get("/history?kb=2048").status == 200
            leaked += 10

        def told() -> bool:
            nonlocal said
            found = status(server)
            said = found["diagnosis"]
            pids = {row["pid"] for row in found["workers"] if row["role"] == "worker"}
            return len(pids) == 1 and "replaced" in said

        wait_for(told, lambda: f"the leak to be told of: {said}")
        found = re.match(
            rf"GET /history grew {SIZE} in 1 worker that was replaced, and [\d.]+ \w+ in the "
            "present one: a leak there, ",
            said,
        )
        assert found, said
        assert 0.7 * leaked <= float(found[1]) <= 1.1 * leaked
        assert "none of these processes" not in said
        before = grown(status(server), "GET /history")
        assert 0.7 * leaked <= before <= 1.1 * leaked
        for _ in range(10):
            assert server.get("/history?kb=2048").status == 200
        assert grown(status(server), "GET /history") == pytest.approx(before + 20, abs=10)


def test_a_leak_is_told_of_after_the_worker_that_held_it_was_killed(tmp_path: Path) -> None:
    with site(tmp_path, LOWMEM_RECYCLE="off") as server:
        for _ in range(40):
            assert server.get("/history?kb=2048").status == 200
        assert 60 <= grown(status(server), "GET /history") <= 90
        (pid,) = server.workers()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: server.workers() not in ([], [pid]), "another worker")
        found = status(server)
        assert 60 <= grown(found, "GET /history") <= 90
        assert f"Worker {pid} died at" in found["diagnosis"]
        told = (
            rf"GET /history grew {SIZE} in 1 worker that was replaced, and \S+ \w+ in the present "
            "one: a leak"
        )
        wait_for(
            lambda: re.search(told, status(server)["diagnosis"]),
            lambda: f"the leak to be told of: {status(server)['diagnosis']}",
        )


def test_a_leak_is_not_lost_where_the_status_is_asked_for_beside_others(tmp_path: Path) -> None:
    with site(tmp_path) as server:
        with crowd(server.port, 1, "/slow?seconds=2", most=2):
            for number in range(60):
                assert server.get("/history?kb=1024").status == 200
                if number % 5 == 0:
                    status(server)
        wait_for(lambda: grown(status(server), "GET /history") > 40, "most to be attributed")
        assert grown(status(server), "GET /history") <= 70


def test_a_thread_that_grows_is_not_blamed_on_the_requests_beside_it(tmp_path: Path) -> None:
    with site(tmp_path) as server:
        assert server.get("/thread?mb=60&every=0.05").status == 200
        with crowd(server.port, 1, "/", most=250, pause=0.01) as asking:
            pass
        assert not asking.failed
        wait_for(lambda: grown(status(server), "(no request)") > 40, "the growth to be told of")
        found = status(server)
        assert grown(found, "(no request)") <= 70
        assert grown(found, "GET /") < 25
        assert "outside of any request: a thread of the app keeps it." in found["diagnosis"]


def test_files_in_a_tmpfs_are_told_of_and_nothing_else_is_blamed(tmp_path: Path) -> None:
    with site(tmp_path) as server:
        assert server.get("/tmpfs?mb=120").status == 200
        said = status(server)["diagnosis"]
        found = re.fullmatch(
            rf"{SIZE} of the container's {SIZE} are in none of these processes: {SIZE} in a tmpfs "
            r"such as /dev/shm, or in shared memory\.",
            said,
        )
        assert found, said
        assert 100 <= float(found[1]) <= 130
        assert float(found[3]) == pytest.approx(120, abs=2)


def test_what_a_worker_has_just_grown_by_is_not_told_to_be_in_no_process(tmp_path: Path) -> None:
    """What the processes hold is read seldom, what the container uses each time."""
    with site(tmp_path) as server:
        status(server)
        for _ in range(50):
            assert server.get("/history?kb=2048").status == 200
        said = status(server)["diagnosis"]
        assert "none of these processes" not in said
        wait_for(lambda: "GET /history grew" in status(server)["diagnosis"], "the growth")


def test_requests_that_ran_out_of_memory_are_told_of(tmp_path: Path) -> None:
    with site(tmp_path) as server:
        assert server.get("/runaway").status == 503
        said = status(server)["diagnosis"]
        assert "1 request asked for more memory than there was, since the start" in said
        assert "a thread of the app keeps it" not in said


# --- The page that the workers share


def test_a_worker_that_writes_its_figures_is_there_all_the_time() -> None:
    """Another that sees nobody there would take the place."""
    page = SharedPage.private()

    def write() -> None:
        record = page.claim(40 * MB)
        while True:
            record.note(50 * MB, 60 * MB)

    with child(write, stays=False):
        wait_for(page.taken, "the worker to be there")
        assert sum(page.taken() != [0] for _ in range(20_000)) == 0
    page.close()
