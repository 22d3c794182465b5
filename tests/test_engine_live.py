"""The memory engine on real servers: passes after the last byte, memory given back, 503 and on."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from live import Server, serve, wait_for


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serve("plain:app", "gthread", tmp_path=tmp_path) as running:
        yield running


def test_three_full_passes_begin_after_the_last_byte_of_each_of_200_responses(
    server: Server,
) -> None:
    """At concurrency 3, counted by gc.callbacks in the worker. Requests that end together share a
    run, so it is the last bytes that are held against the passes: each has three after it that
    began before, or as, the next run's."""
    server.get("/count-passes")
    for _ in range(70):  # past the warm-up
        server.get("/")
    last_bytes: list[float] = []

    def client(requests: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        for _ in range(requests):
            connection.request("GET", "/garbage")
            response = connection.getresponse()
            assert response.read() == b"garbage"
            last_bytes.append(time.monotonic())
        connection.close()

    threads = [threading.Thread(target=client, args=(n,)) for n in (67, 67, 66)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(last_bytes) == 200

    def passes() -> list[float]:
        found: list[float] = json.loads(server.get("/told").body)["passes"]
        return found

    # monotonic clocks of one machine agree between processes. The client may be told of its
    # last byte a moment after the worker began the passes, so the bound is the byte before.
    began = passes()
    firsts = sorted(last_bytes)
    for number, moment in enumerate(firsts):
        earlier = firsts[number - 1] if number else moment - 1
        assert sum(1 for start in began if start > earlier) >= 3
    # And in number: no fewer than one run for each three requests that can end together.
    assert len(began) >= 3 * 200 / 3
    status = json.loads(server.get("/api/memory-status").body)
    assert status["status"] == "ok"


# pymalloc gives back whole arenas of 1 MB, and with threads there is nearly always an object of
# somebody else's in some of them (docs/memory.md). malloc gives back pages.
MALLOC = {"PYTHONMALLOC": "malloc", "MALLOC_ARENA_MAX": "1"}


@pytest.mark.parametrize("path", ["/spike-pieces", "/spike-rows"])
@pytest.mark.parametrize(("kind", "env"), [("sync", {}), ("gthread", MALLOC)])
def test_memory_is_back_within_5_percent_and_a_second_of_a_spike(
    tmp_path: Path, kind: str, env: dict[str, str], path: str
) -> None:
    with serve("flask_upload:app", kind, tmp_path=tmp_path, **env) as server:
        for _ in range(10):
            server.get("/rss")
        before = int(server.get("/rss").body)
        for _ in range(5):
            server.get(path)
            wait_for(
                lambda: int(server.get("/rss").body) <= before * 1.05,
                f"RSS to come back to {before}",
                seconds=1,
            )


def test_one_request_out_of_memory_is_503_and_the_next_is_served(server: Server) -> None:
    reply = server.get("/out-of-memory", Accept="application/json")
    assert reply.status == 503
    assert reply.headers["Retry-After"]
    assert json.loads(reply.body)["status"] == 503
    assert server.get("/").text == "hello"
    assert "MemoryError" in server.log
    assert "LOWMEM_CEILING" in server.log


def test_an_error_of_the_apps_own_is_the_servers_to_answer(server: Server) -> None:
    assert server.get("/fails").status == 500
    assert server.get("/").text == "hello"


def test_the_fourth_request_at_once_is_503_and_health_never(tmp_path: Path) -> None:
    env = {"LOWMEM_MAX_IN_FLIGHT": "3", "LOWMEM_ADMIN_TOKEN": "t"}
    with serve("plain:app", tmp_path=tmp_path, threads=8, **env) as server:

        def in_flight() -> int:
            reply = server.get("/api/memory-status", Authorization="Bearer t")
            return int(json.loads(reply.body)["requests"]["in_flight"])

        held = [threading.Thread(target=server.get, args=("/hold",)) for _ in range(3)]
        for thread in held:
            thread.start()
        wait_for(lambda: in_flight() == 3, "three requests in flight")
        reply = server.get("/")
        assert (reply.status, reply.headers["Retry-After"]) == (503, "2")
        assert server.get("/healthz/release").text == "released"
        for thread in held:
            thread.join(10)
        assert server.get("/").status == 200
        assert "LOWMEM_MAX_IN_FLIGHT" in server.log
