"""What a whole container weighs at rest, of a Flask hello and of Flask with SQLAlchemy and pandas:
stock Gunicorn, and LowMemory in its three ways of use.

Each server is started afresh for each round, in a memory cgroup of its own: one worker of three
threads. It answers some requests and rests, and then the whole container is weighed (master and
worker: the usage less the file cache that the kernel drops first). The contenders take turns.

    python benchmarks/footprint.py --check     # Linux, as a user who may make a cgroup

On another Python, such as in the chroot of tools/newest-python.sh, only this one is needed:

    pip install -e . flask sqlalchemy pandas gunicorn
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from _common import Target, bare_parser, positive, print_table, report, scratch, shuffled
from _container import Served, at_rest, in_container
from _load import Caller

HELLO, PANDAS = "hello", "pandas"
SITES = {HELLO: "small_flask:app", PANDAS: "clients:app"}
STOCK, CONFIG, RUN, LINE = "stock", "config", "run", "one line"
REQUESTS = 20

# How each contender is started: the server of helpers/servers.py, its arguments, its environment.
Way = tuple[str, dict[str, Any], dict[str, str]]
ONE = {"WEB_CONCURRENCY": "1"}
WAYS: dict[str, Way] = {
    STOCK: ("gthread", {"as_it_comes": True}, {}),
    CONFIG: ("gthread", {"config": "python:lowmem_wsgi.gunicorn"}, ONE),
    RUN: ("run", {}, ONE),
    LINE: ("gthread", {"as_it_comes": True}, {}),
}
# pandas is at the top of the app. LowMemory can import it at its first use.
LATE = {"LOWMEM_LAZY_HEAVY": "on"}
NEW = sys.version_info >= (3, 15)  # Python's own lazy imports
# The most that a way may weigh, as a share of stock.
BOUNDS = {HELLO: 0.86 if NEW else 1.0, PANDAS: 0.45}


@contextlib.contextmanager
def running(way: str, site: str, directory: Path, env: dict[str, str]) -> Iterator[Served]:
    """Yield the server in a new container, once it answers."""
    kind, how, own = WAYS[way]
    environ: dict[str, Any] = {
        "XDG_RUNTIME_DIR": str(directory),
        "BENCH_DATABASE": str(directory / "clients.sqlite3"),
        "BENCH_APP": SITES[site],
        **(LATE if site == PANDAS and way != STOCK else {}),
        **own,
        **env,
    }
    app = "one_line:app" if way == LINE else SITES[site]
    with in_container(app, kind, directory, env=environ, **how) as found:
        yield found


def weigh(way: str, site: str, directory: Path, env: dict[str, str]) -> float:
    """Return the MB of one container at rest."""
    with running(way, site, directory, env) as found:
        caller = Caller(found.port)
        for _ in range(REQUESTS):
            if not (answer := caller.ask("/")).ok:
                raise RuntimeError(f"{way}: {answer.status} {answer.error}\n{found.server.log}")
        return at_rest(found)


def main() -> int:
    options = bare_parser(__doc__)
    options.add_argument("--rounds", type=positive, default=5, help="default 5")
    options.add_argument("--site", choices=SITES, action="append", help="default: both")
    options.add_argument("--way", choices=WAYS, action="append", help="default: all")
    options.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="for all but stock"
    )
    given = options.parse_args()
    # As on a server: Python keeps the bytecode that it compiles.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    more = dict(pair.split("=", 1) for pair in given.env)
    ways = [way for way in WAYS if way == STOCK or way in (given.way or WAYS)]
    sites = given.site or list(SITES)
    found: dict[str, dict[str, list[float]]] = {s: {way: [] for way in ways} for s in sites}
    with scratch() as directory:
        for site in sites:
            for way in ways:  # compiles, and brings the files into the page cache
                weigh(way, site, directory, {} if way == STOCK else more)
            for turn in range(given.rounds):
                for way in shuffled(ways, turn):
                    env = {} if way == STOCK else more
                    found[site][way].append(weigh(way, site, directory, env))
    rows, targets = [], []
    for site, by_way in found.items():
        stock = median(by_way[STOCK])
        for way, figures in by_way.items():
            share = median(figures) / stock
            rows.append([f"{site}, {way}", median(figures), share, min(figures), max(figures)])
            if way in (CONFIG, RUN):
                targets.append(Target(f"{site}, {way}: share of stock", share, BOUNDS[site]))
    print(f"MB of a whole container at rest, Python {sys.version.split()[0]}.\n")
    print_table(["", "median", "of stock", "least", "most"], rows)
    print()
    return report(given, {"MB": found}, targets)


if __name__ == "__main__":
    sys.exit(main())
