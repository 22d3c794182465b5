"""At the edge of memory every answer arrives: on real servers, in real containers, on slow CPUs.

`benchmarks/sweep.py` does the same in many more combinations, and for longer. These tests know
nothing of how it is done.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.cgroup import Cgroup, cpu_cgroup, memory_cgroup
from helpers.load import crowd
from helpers.servers import Reply, Server, serve, wait_for

MB = 1024 * 1024
CONFIG = "python:lowmem_wsgi.gunicorn"


@contextlib.contextmanager
def site(
    tmp_path: Path, *, size: int = 192 * MB, cpu: float = 1.0, entry: str = "-c", **how: Any
) -> Iterator[tuple[Server, Cgroup]]:
    """The app in a container of `size` bytes, with `cpu` of a processor."""
    how = {"WEB_CONCURRENCY": "1", **how}
    how |= {"server": "run"} if entry == "run" else {"config": CONFIG}
    with (
        memory_cgroup(size) as group,
        cpu_cgroup(group, cpu) as groups,
        serve(
            "edge:app", tmp_path=tmp_path, cgroup=groups, XDG_RUNTIME_DIR=str(tmp_path), **how
        ) as server,
    ):
        wait_for(lambda: server.get("/").status == 200, lambda: f"an answer: {server.log}")
        yield server, group


def nothing_died(server: Server, group: Cgroup) -> None:
    assert group.kills() == 0, server.log
    assert "Exception in thread" not in server.log, server.log
    assert not re.search(r"was sent SIG(?!TERM)|exited with code|💀", server.log), server.log


# --- A loop of small objects

LOOPS = ("/dicts", "/swallowing", "/stream-of-dicts")
GEVENT = ["-k", "gevent", "--threads", "1"]
SYNC = ["-k", "sync", "--threads", "1"]


@pytest.mark.parametrize("entry", ["-c", "run"])
@pytest.mark.parametrize("cpu", [1.0, 0.25])
def test_a_loop_of_small_objects_is_503_and_nobody_else_is_lost(
    tmp_path: Path, entry: str, cpu: float
) -> None:
    with site(tmp_path, entry=entry, cpu=cpu) as (server, group):
        with crowd(server.port, 2, "/", pause=0.02) as others:
            for _ in range(2):
                for path in LOOPS:
                    reply = server.get(path)
                    assert (path, reply.status) == (path, 503), server.log
                    assert int(reply.headers["Retry-After"]) > 0
        assert others.failed == [], server.log
        nothing_died(server, group)


@pytest.mark.parametrize("options", [SYNC, GEVENT], ids=["sync", "gevent"])
def test_a_loop_of_small_objects_is_503_under_every_kind_of_worker(
    tmp_path: Path, options: list[str]
) -> None:
    if options is GEVENT:
        pytest.importorskip("gevent", reason="gevent is not installed")
    with site(tmp_path, options=options) as (server, group):
        for _ in range(3):
            for path in LOOPS:
                assert (path, server.get(path).status) == (path, 503), server.log
                wait_for(lambda: server.get("/").status == 200, lambda: f"rest: {server.log}")
        nothing_died(server, group)


def test_two_loops_at_once_are_both_503(tmp_path: Path) -> None:
    with site(tmp_path) as (server, group):
        for _ in range(3):
            with crowd(server.port, 2, "/dicts", most=2) as both:
                pass
            assert [answer.status for answer in both.answers] == [503, 503], server.log
        nothing_died(server, group)


# --- A heavy package that is loaded with little room


@pytest.mark.parametrize("threads", ["1", "16"])
@pytest.mark.parametrize("filled", [80, 110, 130, 150])
def test_a_heavy_package_is_loaded_or_refused_and_the_worker_lives_on(
    tmp_path: Path, filled: int, threads: str
) -> None:
    """With `filled` MB of 192 in use. Its OpenBLAS ends the process where it cannot map what it
    will not use."""
    off = site(tmp_path, LOWMEM_RECYCLE="off", OPENBLAS_NUM_THREADS=threads)
    with off as (server, group):
        worker = server.get("/").text
        missing = filled - group.working_set() // MB
        assert server.get(f"/keep?mb={missing}").status == 200
        streamed: list[Reply] = []
        stream = threading.Thread(target=lambda: streamed.append(server.get("/stream")))
        stream.start()
        replies = [server.get("/numpy") for _ in range(2)]
        stream.join(30)
        assert {reply.status for reply in replies} <= {200, 503}, server.log
        assert [len(reply.body) for reply in streamed] == [30_000], server.log
        assert server.get("/").text == worker
        nothing_died(server, group)


# --- A worker that holds much


@pytest.mark.parametrize("entry", ["-c", "run"])
def test_a_worker_too_full_for_a_request_that_would_fit_is_replaced(
    tmp_path: Path, entry: str
) -> None:
    with site(tmp_path, size=256 * MB, entry=entry) as (server, group):
        wait_for(lambda: server.get("/take?mb=90").status == 200, "room")
        # What that took may be free in pieces, which a large block cannot use; a fresh worker can.
        wait_for(
            lambda: server.get("/keep?mb=120").status == 200,
            lambda: f"a worker that holds much: {server.log}",
        )
        wait_for(
            lambda: server.get("/take?mb=90").status == 200,
            lambda: f"the request that fits: {server.log}",
            seconds=5,
        )
        nothing_died(server, group)


def test_a_worker_that_keeps_much_after_a_memory_error_is_replaced(tmp_path: Path) -> None:
    with site(tmp_path, size=256 * MB) as (server, group):
        first = server.get("/").text
        with crowd(server.port, 2, "/", pause=0.02) as others:
            assert server.get("/keep-and-fail?mb=80").status == 503
            wait_for(lambda: server.get("/").text != first, lambda: f"a fresh one: {server.log}")
            wait_for(lambda: group.working_set() < 120 * MB, lambda: f"its end: {server.log}")
        assert others.failed == [], server.log
        nothing_died(server, group)


# --- A leak on a slow CPU


@pytest.mark.parametrize(("cpu", "workers"), [(0.5, 1), (0.25, 2)])
def test_a_leak_on_a_share_of_a_cpu_loses_no_request(
    tmp_path: Path, cpu: float, workers: int
) -> None:
    """500 times 2 MB in 512 MB: some generations of workers."""
    with site(tmp_path, size=512 * MB, cpu=cpu, WEB_CONCURRENCY=str(workers)) as (server, group):
        with crowd(server.port, 4, "/keep?mb=2", most=500) as leaks:
            leaks.join(120)
        assert leaks.failed == [], server.log
        assert len(leaks.answers) == 500
        assert server.log.count("recycled at") >= 2
        nothing_died(server, group)
