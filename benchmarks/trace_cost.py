"""What a trace of one route costs the other routes of the same worker, and what it costs its own.

Gunicorn, one worker with three threads: one client asks a route that is not traced, again and
again, and one asks a route that leaks, each time 20 ms after its last answer. Without a trace and
with one, in turn, round by round. Times are of the route that is not traced.

    python benchmarks/trace_cost.py --check
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from _common import Target, parser, print_table, report

from helpers.load import crowd
from helpers.servers import Server, serve

HEADERS = {"Authorization": "Bearer t"}
PATH = "/api/memory-status/trace"


def trace(site: Server, method: str, query: str = "") -> dict[str, object]:
    answer = site.request(method, PATH + query, headers=HEADERS)
    assert answer.status == 200, answer.text
    result: dict[str, object] = json.loads(answer.body)
    return result


def asked(site: Server, requests: int) -> list[float]:
    """Ask one by one. Return how long each answer took, in seconds."""
    took = []
    for _ in range(requests):
        began = time.monotonic()
        assert site.get("/clean/1").status == 200
        took.append(time.monotonic() - began)
    return took


def main() -> int:
    given = parser(__doc__, rounds=8, requests=800).parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        env = {"LOWMEM_ADMIN_TOKEN": "t", "WEB_CONCURRENCY": "1", "LOWMEM_MEMORY_LIMIT": "4GB"}
        site = stack.enter_context(serve("leaks:app", "run", tmp_path=folder, env=env))
        stack.enter_context(crowd(site.port, 1, "/list", pause=0.02))
        asked(site, 300)
        took: dict[str, list[list[float]]] = {"no trace": [], "a trace": []}
        for _ in range(given.rounds):
            took["no trace"].append(asked(site, given.requests))
            trace(site, "POST", "?route=/list&requests=1000")
            took["a trace"].append(asked(site, given.requests))
            number = trace(site, "GET")["trace"]
            trace(site, "POST", f"?stop={number}")
            while (found := trace(site, "GET"))["state"] == "running":
                time.sleep(0.05)
            print(json.dumps(found["cost"]))
    figures = {
        name: {
            "mean_ms": 1000 * mean(time for times in rounds for time in times),
            "median_ms": 1000 * median(time for times in rounds for time in times),
            "p99_ms": 1000
            * median(sorted(times)[int(0.99 * len(times))] for times in rounds if times),
        }
        for name, rounds in took.items()
    }
    print_table(["", *figures["a trace"]], [[name, *row.values()] for name, row in figures.items()])
    slower = figures["a trace"]["median_ms"] / figures["no trace"]["median_ms"]
    return report(
        given, figures, [Target("median of the route that is not traced, times", slower, 1.05)]
    )


if __name__ == "__main__":
    sys.exit(main())
