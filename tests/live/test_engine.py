"""The memory engine on real servers: passes after the last byte, memory given back, 503 and on."""

from __future__ import annotations

import http.client
import json
import threading
from bisect import bisect
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.servers import Server, serve, wait_for


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serve("plain:app", "gthread", tmp_path=tmp_path) as running:
        yield running


def test_three_full_passes_begin_after_the_last_byte_of_each_of_200_responses(
    server: Server,
) -> None:
    """At concurrency 3, counted by gc.callbacks in the worker, against the moments in which the
    server closed each response: it does so after its last byte."""
    server.get("/")  # the first run looks at the whole heap, and freezes it
    server.get("/count-passes")

    def client(requests: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        for _ in range(requests):
            connection.request("GET", "/garbage")
            assert connection.getresponse().read() == b"garbage"
        connection.close()

    threads = [threading.Thread(target=client, args=(n,)) for n in (67, 67, 66)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    def told() -> dict[str, list[float]]:
        result: dict[str, list[float]] = json.loads(server.get("/told").body)
        return result

    wait_for(lambda: len(told()["closed"]) == 200, "all to be closed")
    began = sorted(told()["passes"])
    waits = sorted(began[bisect(began, moment) + 2] - moment for moment in told()["closed"])
    # Requests that overlap share passes, but do not wait for the end of all. (How long they wait is
    # benchmarks/shared_passes.py's to say.)
    assert waits[len(waits) // 2] < 0.1


# pymalloc gives back only whole arenas of 1 MB, and somebody else's small object is enough to keep
# one (docs/render.md has the figures). malloc gives back pages.
MALLOC = {"PYTHONMALLOC": "malloc", "MALLOC_ARENA_MAX": "1"}


@pytest.mark.parametrize("path", ["/spike-pieces", "/spike-rows"])
@pytest.mark.parametrize("kind", ["sync", "gthread"])
def test_memory_is_back_within_5_percent_and_a_second_of_a_spike(
    tmp_path: Path, kind: str, path: str
) -> None:
    with serve("flask_upload:app", kind, tmp_path=tmp_path, env=MALLOC) as server:
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
    assert "MemoryError in the app" in server.log


def test_an_error_of_the_apps_own_is_the_servers_to_answer(server: Server) -> None:
    assert server.get("/fails").status == 500
    assert server.get("/").text == "hello"


def test_the_fourth_request_at_once_is_503_and_health_never(tmp_path: Path) -> None:
    env = {"LOWMEM_MAX_IN_FLIGHT": "3", "LOWMEM_ADMIN_TOKEN": "t"}
    with serve("plain:app", tmp_path=tmp_path, threads=8, env=env) as server:

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
