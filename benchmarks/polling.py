"""What it costs to be watched: the whole status, asked for again and again.

One worker under Gunicorn with our config, which has ten routes to tell of (tests/apps/routes.py).
CPU time of the worker while it is asked five times a second, less that of the same worker left
alone; and what ten thousand polls leave behind.

    python benchmarks/polling.py --check
"""

from __future__ import annotations

import http.client
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from _common import (
    MB,
    Client,
    Target,
    bare_parser,
    positive,
    print_table,
    report,
    scratch,
    serve,
    worker,
)

TOKEN: dict[str, Any] = {
    "LOWMEM_ADMIN_TOKEN": "t",
    "MALLOC_ARENA_MAX": "1",
}
PATHS = {
    "an empty page": "/",
    "JSON and history": "/api/memory-status?format=json&history=1",
    "page": "/api/memory-status?format=html",
    "OpenMetrics": "/api/memory-status?format=openmetrics",
}
A_SECOND = 5
WARM = 500  # polls of each, before anything is weighed
CONFIG = "python:lowmem_wsgi.gunicorn"


def main() -> int:
    options = bare_parser(__doc__)
    options.add_argument("--seconds", type=positive, default=30, help="of each kind, default 30")
    options.add_argument("--polls", type=positive, default=10_000, help="default 10000")
    given = options.parse_args()
    with (
        scratch() as directory,
        serve("routes:app", tmp_path=directory, config=CONFIG, **TOKEN) as server,
    ):
        with Client(server.port) as client:
            for number in range(200):
                client.get(f"/good{number % 9 + 1}/a")
        process = worker(server)
        asked = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        ask(asked, *PATHS.values())
        alone = percent(process, given.seconds, lambda: None)
        busy = {name: polled(process, given.seconds, asked, PATHS[name]) - alone for name in PATHS}
        for _ in range(WARM):
            ask(asked, *PATHS.values())
        before = process.memory_info().rss
        for number in range(given.polls):
            ask(asked, [*PATHS.values()][number % len(PATHS)])
        grown = (process.memory_info().rss - before) / MB
    print_table(["", "% of a core"], [[f"{name}, {A_SECOND}/s", busy[name]] for name in busy])
    print(f"\nleft alone: {alone:.3f} %; grown by {given.polls} polls: {grown:.2f} MB\n")
    figures: dict[str, Any] = {"percent of a core": busy, "alone": alone, "grown MB": grown}
    # The page asks for the JSON; an empty page is what the server itself takes.
    watched = ("JSON and history", "OpenMetrics")
    targets = [Target(f"{name}, % of a core", busy[name], 1) for name in watched]
    return report(given, figures, [*targets, Target("grown MB", grown, 0.5)])


def ask(connection: http.client.HTTPConnection, *paths: str) -> None:
    for path in paths:
        connection.request("GET", path, headers={"Authorization": "Bearer t"})
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            raise RuntimeError(f"{path} was answered {response.status}")


def polled(
    process: psutil.Process, seconds: float, asked: http.client.HTTPConnection, path: str
) -> float:
    asked.close()  # the server has; it is opened anew
    return percent(process, seconds, lambda: ask(asked, path))


def percent(process: psutil.Process, seconds: float, poll: Callable[[], None]) -> float:
    """CPU time of the process, in percent of the time that passes."""

    def spent() -> float:
        """In nanoseconds, and not by the clock's ticks, which a short answer slips through."""
        tasks = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    before, began = spent(), time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        poll()
        time.sleep(1 / A_SECOND)
    return 100 * (spent() - before) / passed


if __name__ == "__main__":
    sys.exit(main())
