"""How much memory the one line adds to a Gunicorn worker, of a Flask app and of a Bottle app.

Each server is started afresh for each round (one gthread worker, nothing preloaded, so that no
page hides in the master), answers 200 requests (plain, with a session, static), and is weighed:
USS, what would be free if the worker were gone, and RSS. "trim off" is the wrap that gives
nothing back to the system (LOWMEM_TRIM=off): the price of its code alone.

    python benchmarks/wrap_size.py --check
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median

from _common import (
    MB,
    Client,
    Target,
    gunicorn,
    parser,
    print_table,
    report,
    scratch,
    shuffled,
    worker,
)

APPS = {"Flask": ("small_flask:app", 1.5), "Bottle": ("small_bottle:app", 4.0)}
BARE, WRAPPED, TRIM_OFF = "bare", "wrapped", "wrapped, trim off"
VARIANTS: dict[str, dict[str, str]] = {BARE: {}, WRAPPED: {}, TRIM_OFF: {"LOWMEM_TRIM": "off"}}
PATHS = ("/", "/static/style.css", "/", "/visit")

Weight = tuple[float, float]  # USS and RSS in MB


def weigh(app: str, variant: str, requests: int, directory: Path) -> Weight:
    """One server's worker, after so many requests."""
    served = app if variant == BARE else "one_line:app"
    env = {"BENCH_APP": app, **VARIANTS[variant]}
    with gunicorn(served, directory, **env) as server, Client(server.port) as client:
        session = visits = ""
        for number in range(requests):
            path = PATHS[number % len(PATHS)]
            reply = client.get(path, cookie=session)
            if path == "/visit":
                session, visits = f"session={reply.cookie('session')}", reply.text
        if visits != str(requests // len(PATHS)):
            raise RuntimeError(f"{served} lost its session: {visits!r} visits counted")
        info = worker(server).memory_full_info()
        return info.uss / MB, info.rss / MB


def main() -> int:
    given = parser(__doc__, rounds=5, requests=200).parse_args()
    weights: dict[tuple[str, str], list[Weight]] = {
        (name, variant): [] for name in APPS for variant in VARIANTS
    }
    with scratch() as directory:
        for turn in range(given.rounds):
            for name, (app, _) in APPS.items():
                for variant in shuffled(VARIANTS, turn):
                    weights[name, variant].append(weigh(app, variant, given.requests, directory))

    figures: dict[str, dict[str, dict[str, float]]] = {name: {} for name in APPS}
    for (name, variant), found in weights.items():
        bare = weights[name, BARE]
        figures[name][variant] = {
            "uss_mb": median(uss for uss, _ in found),
            "uss_added_mb": median(uss for uss, _ in found) - median(uss for uss, _ in bare),
            "rss_mb": median(rss for _, rss in found),
            "rss_added_mb": median(rss for _, rss in found) - median(rss for _, rss in bare),
            "uss_spread_mb": max(uss for uss, _ in found) - min(uss for uss, _ in found),
        }
    print("Megabytes of a worker after its requests.\n")
    print_table(
        ["", "USS", "added", "RSS", "added", "spread of USS"],
        [
            [f"{name}, {variant}", *row.values()]
            for name, rows in figures.items()
            for variant, row in rows.items()
        ],
    )
    print()
    targets = [
        Target(f"{name}, {variant}: USS added, MB", figures[name][variant]["uss_added_mb"], most)
        for name, (_, most) in APPS.items()
        for variant in (WRAPPED, TRIM_OFF)
    ]
    return report(given, figures, targets)


if __name__ == "__main__":
    sys.exit(main())
