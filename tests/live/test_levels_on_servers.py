"""The memory governor on a real server, in a real memory cgroup where that matters."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.cgroup import memory_cgroup
from helpers.servers import Server, serve, wait_for

MB = 1024 * 1024
TOKEN = {"LOWMEM_ADMIN_TOKEN": "t"}
AUTHORIZED = {"Authorization": "Bearer t"}
# malloc gives back pages, and not only whole arenas: what is freed is seen to be freed.
MALLOC = {"PYTHONMALLOC": "malloc", "MALLOC_ARENA_MAX": "1"}


def status(server: Server) -> dict[str, Any]:
    reply = server.get("/api/memory-status", Authorization="Bearer t")
    assert reply.status == 200, reply.text
    result: dict[str, Any] = json.loads(reply.body)
    return result


def ask(server: Server, path: str) -> Any:
    reply = server.get(path)
    assert reply.status == 200, (path, reply.text, server.log)
    return json.loads(reply.body)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serve("memory:app", tmp_path=tmp_path, env={**TOKEN, **MALLOC}) as running:
        yield running


def least_of(tries: int, measure: Callable[[], float], enough: float) -> float:
    """The least figure of some tries, ended once it is enough: a busy machine spoils single ones, a
    real fault all of them."""
    figures = []
    for _ in range(tries):
        figures.append(measure())
        if figures[-1] <= enough:
            break
    return min(figures)


def test_the_status_agrees_with_the_kernel_and_page_cache_does_not_count(tmp_path: Path) -> None:
    """In a memory cgroup of 128 MB."""
    file = tmp_path / "hundred"
    with file.open("wb") as output:
        for _ in range(100):
            output.write(b"x" * MB)
    with (
        memory_cgroup(128 * MB) as group,
        serve("memory:app", tmp_path=tmp_path, cgroup=group.path, env=TOKEN) as server,
    ):

        def agrees() -> bool:
            # Read a moment apart, and the kernel's own counters lag a little behind each other.
            used: int = status(server)["memory"]["used_bytes"]
            return abs(used - group.working_set()) <= 2 * MB

        wait_for(agrees, "status and kernel to agree", seconds=5)
        first = status(server)
        assert first["memory"]["source"] == f"cgroup v{group.version}"
        assert first["memory"]["limit_bytes"] == 128 * MB
        assert first["thresholds"]["warn_bytes"] == 100 * MB
        assert ask(server, f"/read-file?path={file}") == 100 * MB
        for _ in range(20):
            assert status(server)["status"] == "ok"
        wait_for(agrees, "status and kernel to agree beside 100 MB of page cache", seconds=5)
        before = status(server)["memory"]["used_bytes"]
        ask(server, "/keep?mb=20")
        wait_for(agrees, "status and kernel to agree on 20 MB more", seconds=5)
        more = status(server)["memory"]["used_bytes"]
        assert 18 * MB <= more - before <= 26 * MB


def test_warn_and_critical_are_acted_on_within_50_ms_of_a_growth_of_100_mb_a_second(
    tmp_path: Path,
) -> None:
    def latest() -> float:
        """Seconds from crossing to acting, of the later of the two."""
        settings = {"LOWMEM_MEMORY_LIMIT": "512MB", "LOWMEM_RECYCLE": "off"}
        with serve("memory:app", tmp_path=tmp_path, env=settings) as server:
            ask(server, "/keep?mb=60")
            moments = ask(server, "/grow?rate=100&top=480")
            told: dict[str, float] = dict(ask(server, "/report")["told"])
            assert "🧹 warn at" in server.log
            assert "🚨 critical at" in server.log
            crossed: list[float] = [
                next(moment for size, moment in moments if size >= threshold * MB)
                for threshold in (400, 450)
            ]
            return max(told["warn"] - crossed[0], told["critical"] - crossed[1])

    assert least_of(10, latest, 0.05) <= 0.05


def test_at_rest_the_monitor_wakes_about_once_a_second(server: Server) -> None:
    """It comes to rest once the growth of the start is forgotten, half of it in a minute.

    What that costs is for benchmarks/at_rest.py to say.
    """

    def woken_in_four_seconds() -> int:
        before = ask(server, "/monitor")["woken"]
        time.sleep(4)
        return int(ask(server, "/monitor")["woken"] - before)

    ask(server, "/")
    wait_for(lambda: "ok" in server.get("/api/memory-status").text, "the monitor")
    # Once a look, and once more where another thread has the interpreter's lock just then.
    wait_for(lambda: 2 <= woken_in_four_seconds() <= 12, "rest", seconds=120)


def test_a_cache_of_100_mb_is_dropped_once_and_the_level_returns_to_ok(server: Server) -> None:
    ask(server, "/fill-cache?mb=100")
    rss = ask(server, "/report")["rss"]
    ask(server, f"/keep?mb={(420 * MB - rss) // MB}")
    wait_for(lambda: ask(server, "/report")["told"], "the callback")
    wait_for(lambda: status(server)["status"] == "ok", "the level to return to ok")
    assert [level for level, _ in ask(server, "/report")["told"]] == ["warn"], server.log
    steps = {step["step"]: step for step in status(server)["cleanups"]["steps"]}
    step = steps["callback memory.drop_cache"]
    assert 95 * MB <= step["freed_bytes"] <= 105 * MB
    assert "callback memory.drop_cache 100" in server.log or "drop_cache 99" in server.log


def test_cleanup_under_load_breaks_nothing_and_delays_nobody(server: Server) -> None:
    """Four threads of requests, a hundred forced cleanups: they add less than 250 ms to the
    slowest request that there is beside a hundred others (a busy machine slows both)."""

    def slowest(method: str, path: str) -> float:
        done = threading.Event()
        worst: list[float] = []

        def client() -> None:
            longest = 0.0
            while not done.is_set():
                began = time.monotonic()
                assert server.get("/").status == 200
                longest = max(longest, time.monotonic() - began)
            worst.append(longest)

        threads = [threading.Thread(target=client) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(100):
            reply = server.request(method, path, headers=AUTHORIZED)
            assert reply.status == 200
        done.set()
        for thread in threads:
            thread.join(30)
        assert len(worst) == 4, "a client failed"
        return max(worst)

    def added() -> float:
        return slowest("POST", "/api/force-cleanup") - slowest("GET", "/report")

    assert least_of(5, added, 0.25) <= 0.25
    assert status(server)["cleanups"]["count"] >= 100
