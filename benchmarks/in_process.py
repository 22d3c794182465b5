"""What the wrap adds to a request, without a server: microseconds, garbage collection included.

A trivial WSGI app, called as a server calls it (iterated, then closed), bare and in three
middlewares, in turn, round by round. "added" is a round's mean less the bare app's mean in the
same round.

    python benchmarks/in_process.py --check
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import TYPE_CHECKING, Any

from _common import Target, parser, print_table, report, shuffled
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import create_environ
from whitenoise import WhiteNoise

from lowmem_wsgi import LowMemory

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

BARE, OURS = "bare", "LowMemory"


def hello(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]


def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
    return None


def per_request(app: WSGIApplication, requests: int) -> float:
    """Microseconds a request, on the average of so many."""
    environ = create_environ("/")
    began = time.perf_counter()
    for _ in range(requests):
        result = app(environ.copy(), start_response)
        for _ in result:
            pass
        close: Callable[[], None] | None = getattr(result, "close", None)
        if close is not None:
            close()
    return 1e6 * (time.perf_counter() - began) / requests


def main() -> int:
    given = parser(__doc__, rounds=30, requests=5000).parse_args()
    for name in [name for name in os.environ if name.startswith("LOWMEM_")]:
        del os.environ[name]
    ours = LowMemory(hello)
    apps: dict[str, WSGIApplication] = {
        BARE: hello,
        "ProxyFix": ProxyFix(hello),
        "WhiteNoise": WhiteNoise(hello),
        OURS: ours,
    }
    for app in apps.values():
        per_request(app, 1000)

    took: dict[str, list[float]] = {name: [] for name in apps}
    before = ours.status()["gc"]
    for turn in range(given.rounds):
        for name in shuffled(apps, turn):
            took[name].append(per_request(apps[name], given.requests))
    after = ours.status()["gc"]
    runs, seconds = (after[key] - before[key] for key in ("runs", "total_seconds"))

    figures: dict[str, dict[str, float]] = {}
    for name, times in took.items():
        added = [a - b for a, b in zip(times, took[BARE], strict=True)]
        figures[name] = {
            "min_us": min(times),
            "median_us": median(times),
            "added_min_us": min(times) - min(took[BARE]),
            "added_median_us": median(added),
        }
    print("Microseconds a request.\n")
    head = ["", "min", "median", "added (min)", "added (median)"]
    print_table(head, [[name, *row.values()] for name, row in figures.items()])
    print(
        f"\nLowMemory ran its {after['passes']} passes {runs} times, "
        f"in {1e6 * seconds / runs:.2f} µs each: part of what is added."
    )
    print()
    target = Target("added by LowMemory, median, µs", figures[OURS]["added_median_us"], 10)
    return report(given, figures, [target])


if __name__ == "__main__":
    sys.exit(main())
