"""What the import of an Excel sheet of 50,000 rows does to a container: in a child process, as the
example does it, and in the worker itself.

Each server is started afresh for each round, in a memory cgroup of its own. Somebody logs in,
looks at the pages, sends the sheet, and asks for its progress until it is over. The worker's RSS is
read every 20 ms, the container's usage (less the file cache that the kernel drops first) every 5 ms
until the end, and then for a second. "own" is the part of the usage that is no file's.

The packages' files are in the page cache before, charged to nobody who is weighed.

    python benchmarks/excel.py --check     # Linux, as a user who may make a cgroup
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from statistics import median

from _common import Target, bare_parser, positive, print_table, report, scratch, shuffled
from _container import OURS, PLAIN
from _example import Import, Member, example, import_one, warm_up, workbook

SIDES = {OURS: "in a child", PLAIN: "in the worker"}


def main() -> int:
    options = bare_parser(__doc__)
    options.add_argument("--rounds", type=positive, default=3, help="default 3")
    given = options.parse_args()
    rounds: dict[str, list[Import]] = {side: [] for side in SIDES}
    with scratch() as directory:
        sheet = workbook(directory / "clients.xlsx")
        warm_up()
        for turn in range(given.rounds):
            for side in shuffled(SIDES, turn):
                with example(side, directory) as found:
                    rounds[side].append(import_one(found, Member(found.port), sheet, job=1))
    columns = list(asdict(rounds[OURS][0]))
    rows = [
        [words, *(median(asdict(one)[name] for one in rounds[side]) for name in columns)]
        for side, words in SIDES.items()
    ]
    print("MB and seconds, medians")
    print_table(["", *(name.replace("_", " ") for name in columns)], rows)
    print()
    ours = rounds[OURS]
    targets = [
        Target("worker, growth at most, MB", max(i.worker_peak - i.worker_before for i in ours), 3),
        Target("worker, growth after, MB", max(i.worker_after - i.worker_before for i in ours), 3),
        Target("container at its peak, MB", max(i.peak for i in ours), 200),
        Target(
            "container a second after, % more than before",
            max(100 * (i.used_after / i.used_before - 1) for i in ours),
            5,
        ),
    ]
    figures = {side: [asdict(one) for one in found] for side, found in rounds.items()}
    return report(given, figures, targets)


if __name__ == "__main__":
    sys.exit(main())
