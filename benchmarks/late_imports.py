"""What a container weighs at rest whose app imports pandas, numpy, matplotlib and openpyxl at its
top, with late imports and without.

Each server is started afresh for each round, in a memory cgroup of its own, with our config, one
worker of three threads and the environment of `lowmem-wsgi run`; and once more as plain Gunicorn.
It answers one light request, rests, and the whole container is weighed (master and worker: the
usage less the file cache that the kernel drops first). Then comes the first request that uses all
four, which with late imports has to wait for them; and, after another rest, the next one.

    python benchmarks/late_imports.py --check     # Linux, as a user who may make a cgroup
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median

from _common import Target, bare_parser, positive, print_table, report, scratch, shuffled
from _container import OURS, PLAIN, at_rest, served
from _load import Caller

APP = "heavy_imports:app"
MODULES = "pandas,numpy,matplotlib,openpyxl"
LATE, AT_ONCE = "late imports", "without"
SIDES: dict[str, tuple[str, dict[str, str]]] = {
    LATE: (OURS, {"LOWMEM_LAZY_HEAVY": "on", "LOWMEM_HEAVY_MODULES": MODULES}),
    AT_ONCE: (OURS, {"LOWMEM_LAZY_HEAVY": "off", "LOWMEM_HEAVY_MODULES": MODULES}),
    "plain Gunicorn": (PLAIN, {}),
}

Figures = dict[str, float]


def weigh(side: str, directory: Path) -> Figures:
    """One server: MB and seconds."""
    kind, env = SIDES[side]
    began = time.monotonic()
    with served(kind, APP, directory, env={"MPLCONFIGDIR": str(directory), **env}) as found:
        started = time.monotonic() - began
        caller = Caller(found.port)
        figures = {"start, s": started, "at rest, MB": at_rest(found)}
        for name in ("first use", "next use"):
            answer = caller.ask("/heavy")
            if answer.body != b"1001":
                raise RuntimeError(f"{side}: {answer.status} {answer.error}\n{found.server.log}")
            figures[f"{name}, s"] = answer.seconds
            figures["at rest again, MB"] = at_rest(found)
        return figures


def main() -> int:
    options = bare_parser(__doc__)
    options.add_argument("--rounds", type=positive, default=3, help="default 3")
    given = options.parse_args()
    rounds: dict[str, list[Figures]] = {side: [] for side in SIDES}
    with scratch() as directory:
        weigh(LATE, directory)  # compiles, and makes matplotlib's font list
        for turn in range(given.rounds):
            for side in shuffled(SIDES, turn):
                rounds[side].append(weigh(side, directory))
    medians = {
        side: {name: median(figures[name] for figures in found) for name in found[0]}
        for side, found in rounds.items()
    }
    print_table(
        ["", *medians[LATE]], [[side, *figures.values()] for side, figures in medians.items()]
    )
    print()
    late, at_once = (medians[side]["at rest, MB"] for side in (LATE, AT_ONCE))
    targets = [
        Target("container at rest with late imports, MB", late, 40),
        Target("what they save, MB", at_once - late, 40, at_least=True),
    ]
    return report(given, {"rounds": rounds, "medians": medians}, targets)


if __name__ == "__main__":
    sys.exit(main())
