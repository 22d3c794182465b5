"""What the wrap costs on a tenth of a CPU, as a small plan gives: a quota of 10 ms in 100.

Bare Gunicorn beside the one line, the config (`-c`) and `lowmem-wsgi run`, each one worker of three
threads in a container of 512 MB, started afresh each round, in a new order. "start": seconds from
the command to the first answer. Then one client asks as fast as it is answered: p50 is the half of
the requests that the quota did not stop, the mean has the stops as well. Ratios are of the same
round. "bare again": how far two equal servers come out apart. The CPU times, of all processes, are
the steadiest: what is used up of the quota, whatever else the machine does.

    python benchmarks/slow_cpu.py --check     # Linux, as a user who may make cgroups
    python benchmarks/slow_cpu.py --app clients:app --requests 200
"""

from __future__ import annotations

import os
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

from _common import (
    APPS,
    Client,
    Server,
    Target,
    median_ratio,
    parser,
    percentile,
    print_table,
    report,
    scratch,
    serve,
    shuffled,
)
from _container import LIMIT, TUNED

from helpers.cgroup import cpu_cgroup, memory_cgroup

CONFIG = "python:lowmem_wsgi.gunicorn"
BARE, AGAIN, ONE_LINE, WITH_CONFIG, RUN = "bare", "bare again", "one line", "-c", "run"
ENTRIES = (BARE, AGAIN, ONE_LINE, WITH_CONFIG, RUN)
WARM_UP = 50  # requests
P50, START = 1.15, 1.20  # of the bare server's, at most

Figures = dict[str, float]


def measure(entry: str, app: str, requests: int, share: float, directory: Path) -> Figures:
    """One server: seconds to the first answer, ms of a request."""
    how: dict[str, Any] = {"WEB_CONCURRENCY": "1"}
    if entry == RUN:
        how["server"] = "run"
    elif entry == WITH_CONFIG:
        how["config"] = CONFIG
    env = {
        "XDG_RUNTIME_DIR": str(directory),
        "BENCH_APP": app,
        "BENCH_DATABASE": str(directory / "clients.db"),
    }
    served = "one_line:app" if entry == ONE_LINE else app
    with memory_cgroup(LIMIT) as memory, cpu_cgroup(memory, share) as groups:
        began = time.monotonic()
        with (
            serve(served, tmp_path=directory, cwd=APPS, cgroup=groups, env=env, **how) as server,
            Client(server.port) as client,
        ):
            client.get("/")
            started, to_start = time.monotonic() - began, cpu_seconds(server)
            for _ in range(WARM_UP):
                client.get("/")
            before = cpu_seconds(server)
            times = [time.perf_counter()]
            for _ in range(requests):
                client.get("/")
                times.append(time.perf_counter())
            used = cpu_seconds(server) - before
    took = [1000 * (after - before) for before, after in pairwise(times)]
    return {
        "start, s": started,
        "its CPU, s": to_start,
        "p50, ms": percentile(took, 0.5),
        "mean, ms": mean(took),
        "CPU, ms": 1000 * used / requests,
    }


def cpu_seconds(server: Server) -> float:
    """Return the processor time of the master's and its workers' threads, in seconds."""
    pids = [server.process.pid, *server.workers()]
    threads = (each for pid in pids for each in Path(f"/proc/{pid}/task").iterdir())
    return sum(int((each / "schedstat").read_text().split()[0]) for each in threads) / 1e9


def main() -> int:
    options = parser(__doc__, rounds=7, requests=600)
    options.add_argument("--app", default="small_flask:app", help="default small_flask:app")
    options.add_argument("--cpu", type=float, default=0.1, help="share of a CPU, default 0.1")
    options.add_argument("--only", action="append", choices=ENTRIES, help="repeatable")
    given = options.parse_args()
    # From the benchmark's own environment. Without bytecode every start would compile.
    for name in (*TUNED, "PYTHONDONTWRITEBYTECODE"):
        os.environ.pop(name, None)
    entries = [entry for entry in ENTRIES if entry in (given.only or ENTRIES) or entry == BARE]
    rounds: dict[str, list[Figures]] = {entry: [] for entry in entries}
    with scratch() as directory:
        measure(BARE, given.app, 1, 1.0, directory)  # compiles, and fills the database
        measure(RUN, given.app, 1, 1.0, directory)
        for turn in range(given.rounds):
            for entry in shuffled(entries, turn):
                rounds[entry].append(
                    measure(entry, given.app, given.requests, given.cpu, directory)
                )
    rows, ratios = [], {}
    for entry, found in rounds.items():
        row: list[object] = [entry]
        for name in found[0]:
            ours, bare = ([each[name] for each in rounds[side]] for side in (entry, BARE))
            ratios[entry, name] = median_ratio(ours, bare)
            row += [median(ours), f"{ratios[entry, name]:.2f}"]
        rows.append(row)
    print_table(["", *(cell for name in rounds[BARE][0] for cell in (name, "x bare"))], rows)
    print()
    targets = [
        Target(f"{entry}: {name.partition(',')[0]}, of bare", ratios[entry, name], bound)
        for entry in entries
        if entry not in (BARE, AGAIN)
        for name, bound in (("start, s", START), ("p50, ms", P50))
    ]
    return report(given, {"rounds": rounds}, targets)


if __name__ == "__main__":
    sys.exit(main())
