"""Which allocator wins under LowMemory: at rest, after spikes, with holes in the heap, in CPU time.

Each server is started afresh for each round, in a memory cgroup of its own, by `lowmem-wsgi run`
(and, for `sync`, by the plain one line), with one worker.

  rest      MB of the whole container, after 20 requests
  pieces    RSS of the worker within a second of a spike of 60 MB in pieces, by RSS before; the
            worst of 8
  dicts     the same, after 300,000 dicts
  holes     RSS at the end, after ten requests that keep 1,000 of 100,000 dicts each, by RSS before
  CPU       µs of the worker for a page with a template

    python benchmarks/allocators.py     # Linux, as a user who may make a cgroup
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from _common import MB, bare_parser, positive, print_table, report, scratch, shuffled
from _container import Served, at_rest, in_container
from _load import Caller

SPIKES, KEEPS, PAGES = 8, 10, 1000
WAIT = 1.0  # s after a spike
# Way -> the server of helpers/servers.py, the app, options, environment.
Way = tuple[str, str, Sequence[str], dict[str, str]]
CONFIG = ("-c", "python:lowmem_wsgi.gunicorn")
WAYS: dict[str, Way] = {
    "run, malloc": ("run", "spikes:app", (), {"PYTHONMALLOC": "malloc"}),
    "run, pymalloc": ("run", "spikes:app", (), {"LOWMEM_SYSTEM_MALLOC": "off"}),
    "run, mimalloc": ("run", "spikes:app", (), {"PYTHONMALLOC": "mimalloc"}),
    "run": ("run", "spikes:app", (), {}),
    "config": ("gthread", "spikes:app", CONFIG, {}),
    "one line, sync": ("sync", "one_line:app", (), {}),
    "one line, gthread": ("gthread", "one_line:app", (), {}),
}
if sys.version_info < (3, 13):
    del WAYS["run, mimalloc"]

Figures = dict[str, float]


@contextlib.contextmanager
def running(way: str, directory: Path, env: dict[str, str]) -> Iterator[Served]:
    kind, app, options, own = WAYS[way]
    environ: dict[str, Any] = {
        "XDG_RUNTIME_DIR": str(directory),
        "BENCH_APP": "spikes:app",
        "WEB_CONCURRENCY": "1",
        **own,
        **env,
    }
    with in_container(app, kind, directory, env=environ, options=options) as found:
        yield found


def measure(way: str, directory: Path, env: dict[str, str]) -> Figures:
    with running(way, directory, env) as found:
        caller = Caller(found.port)

        def ask(path: str) -> str:
            if not (answer := caller.ask(path)).ok:
                raise RuntimeError(f"{way}: {path}: {answer.status}\n{found.server.log}")
            return answer.body.decode()

        for _ in range(20):
            ask("/page")
        figures = {"rest": at_rest(found)}
        worker = psutil.Process(found.worker())

        def rss() -> float:
            return float(worker.memory_info().rss / MB)

        began = float(ask("/cpu"))
        for _ in range(PAGES):
            ask("/page")
        figures["CPU"] = (float(ask("/cpu")) - began) / PAGES * 1e6
        time.sleep(WAIT)
        before = rss()
        figures["RSS"] = before
        for name in ("pieces", "dicts"):
            worst = 0.0
            for _ in range(SPIKES):
                ask(f"/{name}")
                end = time.monotonic() + WAIT
                least = rss()
                while time.monotonic() < end:
                    ask("/")
                    least = min(least, rss())
                    time.sleep(0.1)
                worst = max(worst, least)
            figures[name] = worst / before
        for _ in range(KEEPS):
            ask("/keep")
        time.sleep(WAIT)
        figures["holes"] = rss() / before
        return figures


def main() -> int:
    options = bare_parser(__doc__)
    options.add_argument("--rounds", type=positive, default=3, help="default 3")
    options.add_argument("--way", choices=WAYS, action="append", help="default: all")
    options.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    given = options.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    more = dict(pair.split("=", 1) for pair in given.env)
    ways = given.way or list(WAYS)
    found: dict[str, list[Figures]] = {way: [] for way in ways}
    with scratch() as directory:
        for turn in range(given.rounds):
            for way in shuffled(ways, turn):
                found[way].append(measure(way, directory, more))
    names = list(found[ways[0]][0])
    # What is given back has to be given back each time: the worst round.
    least = {"rest", "CPU", "RSS"}
    rows = [
        [way, *((median if n in least else max)([f[n] for f in fs]) for n in names)]
        for way, fs in found.items()
    ]
    print(f"Python {sys.version.split()[0]}; MB, µs, and shares of RSS before.\n")
    print_table(["", *names], rows)
    print()
    return report(given, {"rounds": found}, [])


if __name__ == "__main__":
    sys.exit(main())
