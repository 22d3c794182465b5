"""The status on a real server: growth by route, a whole site from one worker, polling."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from helpers.cgroup import memory_cgroup
from helpers.load import crowd
from helpers.servers import Server, serve, wait_for

MB = 1024 * 1024
CONFIG = "python:lowmem_wsgi.gunicorn"
TOKEN = {"LOWMEM_ADMIN_TOKEN": "t", "PYTHONMALLOC": "malloc", "MALLOC_ARENA_MAX": "1"}
PATH = "/api/memory-status"


def status(server: Server, query: str = "") -> dict[str, Any]:
    reply = server.get(PATH + query, Authorization="Bearer t")
    assert reply.status == 200, reply.text
    found: dict[str, Any] = json.loads(reply.body)
    return found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serve("routes:app", tmp_path=tmp_path, config=CONFIG, env=TOKEN) as running:
        yield running


def test_a_leaky_route_among_nine_good_ones_is_found(server: Server) -> None:
    """500 requests by three clients; at least four fifths of what it keeps are booked to it."""
    paths = ["/leak/a", *(f"/good{number}/a" for number in range(1, 10))]
    with crowd(server.port, 3, *paths, most=60, keep_alive=True) as first:
        pass  # caches fill, modules load
    wait_for(lambda: requests(server) == 60, "all to be booked")
    before = {row["route"]: row["grown_bytes"] for row in status(server)["routes"]}
    with crowd(server.port, 3, *paths, most=500, keep_alive=True) as asking:
        pass
    assert not [*first.failed, *asking.failed]
    wait_for(lambda: requests(server) == 560, "all to be booked")
    leaked = sum(answer.path == "/leak/a" for answer in asking.answers) * MB / 4
    routes = status(server)["routes"]
    assert routes[0]["route"] == "GET /leak/<item>"
    grown = routes[0]["grown_bytes"] - before["GET /leak/<item>"]
    assert 0.8 * leaked <= grown <= 1.3 * leaked, routes
    assert {"GET /good<int:number>/<item>", "GET /leak/<item>"} <= {row["route"] for row in routes}
    assert any(row["shared"] > 0 for row in routes)


@pytest.mark.parametrize("clients", [1, 4])
@pytest.mark.parametrize("allocator", ["pymalloc", "malloc"])
def test_a_leak_that_goes_where_another_route_has_left_room_is_found(
    tmp_path: Path, clients: int, allocator: str
) -> None:
    env = {**TOKEN, "PYTHONMALLOC": allocator}

    def found(seed: int) -> tuple[dict[str, int], str]:
        """What each route has grown, and the diagnosis."""
        with serve("routes:app", tmp_path=tmp_path, config=CONFIG, env=env) as server:
            # In no order: where all come in step, each window between two weighings has the same
            # routes in it, and nothing tells them apart.
            paths = ["/report/a", "/normal", "/normal", "/"] * 50
            random.Random(seed).shuffle(paths)
            with crowd(server.port, clients, *paths, most=200, keep_alive=True) as asking:
                pass
            assert not asking.failed
            wait_for(lambda: requests(server) == 200, "all to be attributed")
            rows = status(server)["routes"]
            return {row["route"]: row["grown_bytes"] for row in rows}, status(server)["diagnosis"]

    routes, said = found(0)
    for seed in (1, 2):
        # On a loaded machine clients may come in step for a while: then a fresh site is asked.
        if routes["GET /normal"] >= routes["GET /report/<item>"] / 2:
            routes, said = found(seed)
    assert next(iter(routes)) == "GET /report/<item>", routes
    assert routes["GET /report/<item>"] > 15 * MB, routes
    assert routes["GET /normal"] < routes["GET /report/<item>"] / 2, routes
    assert "GET /report/<item> grew" in said


def test_one_worker_tells_of_all_and_the_sum_agrees_with_the_kernel(tmp_path: Path) -> None:
    two = {**TOKEN, "WEB_CONCURRENCY": "2"}
    with (
        memory_cgroup(256 * MB) as group,
        serve("routes:app", tmp_path=tmp_path, config=CONFIG, cgroup=group.path, env=two) as server,
    ):
        with crowd(server.port, 4, "/leak/a", "/good3/b", most=100) as asking:
            pass
        assert not asking.failed
        wait_for(lambda: requests(server) == 100, "both workers to have told their counts")
        wait_for(lambda: abs(off(server)) <= 0.05, lambda: f"the sum to agree: {off(server)}")
        wait_for(lambda: told(server) >= 100, "both workers to have told their own")
        workers = status(server)["workers"]
        assert sorted(row["role"] for row in workers) == ["master", "worker", "worker"]
        pids = {row["pid"] for row in workers if row["role"] == "worker"}
        assert pids == set(server.workers())
        reply = server.get(PATH, Authorization="Bearer t", Accept="application/openmetrics-text")
        (family,) = (
            family
            for family in text_string_to_metric_families(reply.text)
            if family.name == "lowmem_process_resident_bytes"
        )
        processes = {(sample.labels["pid"], sample.labels["role"]) for sample in family.samples}
        assert processes == {(str(row["pid"]), row["role"]) for row in workers}


def requests(server: Server) -> int:
    """Those that were booked to a route; the status is none."""
    return sum(row["requests"] for row in status(server)["routes"])


def told(server: Server) -> int:
    """Those that the workers have written on the page."""
    return sum(row["requests"] or 0 for row in status(server)["workers"])


def off(server: Server) -> float:
    """By what share the sum of PSS is off the kernel's own, of the same processes."""
    found = status(server)
    ours = found["memory"]["processes_bytes"]
    kernel = 0
    for row in found["workers"]:
        with open(f"/proc/{row['pid']}/smaps_rollup") as file:
            kernel += next(int(line.split()[1]) for line in file if line.startswith("Pss:")) * 1024
    return float(ours / kernel - 1)


def test_counts_and_history_outlive_the_worker_that_made_them(server: Server) -> None:
    for _ in range(5):
        assert server.get("/good1/a").status == 200
    assert (
        server.request("POST", "/api/force-cleanup", headers={"Authorization": "Bearer t"}).status
        == 200
    )
    before = status(server, "?history=1")
    (worker,) = server.workers()
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: server.workers() not in ([], [worker]), "another worker")
    after = status(server, "?history=1")
    assert after["requests"]["total"] >= before["requests"]["total"]
    assert after["deaths"]["crash"] == 1
    assert after["last_death"]["pid"] == worker
    kinds = [event["kind"] for event in after["history"]["events"]]
    assert kinds == ["cleanup", "death"]
    assert after["history"]["points"]
    good = {row["route"]: row["requests"] for row in after["routes"]}
    assert good["GET /good<int:number>/<item>"] == 5


def test_polling_the_status_leaves_nothing_behind(server: Server) -> None:
    """A thousand times here; ten thousand in benchmarks/polling.py."""
    with crowd(server.port, 1, PATH, "/good1/a", most=100, keep_alive=True):
        pass
    before = status(server)["memory"]["rss_bytes"]
    for _ in range(200):
        for accept in ("application/json", "text/html", "application/openmetrics-text"):
            assert server.get(PATH, Authorization="Bearer t", Accept=accept).status == 200
    assert status(server)["memory"]["rss_bytes"] - before <= 2 * MB
