"""The source document's table, on the example app: memory at the start, at rest and at the peak,
before and after, as numbers and as a picture.

Before: as the document found it, plain Gunicorn and an app with pandas, numpy, matplotlib and
openpyxl at its top that reads workbooks in the worker (apps/as_found.py). After: the app as it is,
under our config with the environment of `lowmem-wsgi run`. Each in a memory cgroup of 512 MB with
one worker of three threads, weighed as a whole (usage less the file cache that the kernel drops
first), and the worker beside it (RSS), because the document does not say what it weighed:

  start   after the first answer
  rest    after 1,200 pages, an import of 50,000 rows from Excel, an export and a chart
  peak    the most that there was, when three such imports then come at once

    python benchmarks/table.py --picture docs/table.png --check
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
from _common import MB, Target, bare_parser, print_table, report, scratch
from _container import OURS, PLAIN, Served, at_rest
from _example import LOOK_EVERY, Member, example, warm_up, workbook
from _load import crowd

from helpers.servers import wait_for

PAGES = ("/", "/healthz", "/login")
REQUESTS, CLIENTS = 1200, 3
AT_ONCE = 3
PATIENCE = 300  # s

# Of the document: from, to; the range that it names.
DOCUMENT = {
    "start": ((90, 90), (30, 40)),
    "rest": ((150, 200), (60, 80)),
    "peak": ((300, 400), (0, 200)),
}
IN_WORDS = {
    "start": ("90 MB", "30–40 MB"),
    "rest": ("150–200 MB", "60–80 MB"),
    "peak": ("300–400 MB", "under 200 MB"),
}


def weigh(side: str, directory: Path, sheets: list[Path]) -> dict[str, float]:
    """MB, by the rows of the table, of the container and of the worker in it."""
    with example(side, directory) as found, Heaviest(found.worker()) as worker:
        figures = {"start": at_rest(found), "worker, start": worker.now()}
        with crowd(found.port, CLIENTS, lambda n: (PAGES[n % 3], None), most=REQUESTS) as visitors:
            visitors.join()
        member = Member(found.port)
        bring(found, member, sheets[:1], first_job=1)
        member.get("/clients.xlsx")
        member.get("/clients/by-month.png")
        figures |= {"rest": at_rest(found), "worker, rest": worker.now()}
        bring(found, member, sheets[1:], first_job=2)
        return figures | {"peak": found.container.peak_mb, "worker, peak": worker.most}


class Heaviest:
    """The most that a process weighed while the block ran (RSS, MB)."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.most = 0.0

    def now(self) -> float:
        return float(self._process.memory_info().rss / MB)

    def _look(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            self.most = max(self.most, self.now())

    def __enter__(self) -> Heaviest:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def bring(found: Served, member: Member, sheets: list[Path], first_job: int) -> None:
    """Import them, all at once."""
    with ThreadPoolExecutor(len(sheets)) as members:
        list(members.map(lambda sheet: Member(found.port).send(sheet), sheets))
    for job in range(first_job, first_job + len(sheets)):
        wait_for(lambda job=job: member.over(job), f"import {job}", PATIENCE)  # type: ignore[misc]
        if b"imported." not in member.get(f"/imports/{job}"):
            raise RuntimeError(f"import {job} failed: {found.server.log}")


def draw(figures: dict[str, dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 11})
    figure, axes = pyplot.subplots(figsize=(8, 3.8), dpi=130, layout="constrained")
    sides = {PLAIN: ("#8f877a", "as the document found it"), OURS: ("#0f5f56", "with lowmem-wsgi")}
    for place, row in enumerate(DOCUMENT):
        for number, (side, (colour, words)) in enumerate(sides.items()):
            at, mb = place + (number - 0.5) * 0.42, figures[side][row]
            axes.barh(at, mb, 0.26, color=colour, label=None if place else words)
            axes.text(mb - 4, at, f"{mb:.0f} MB", va="center", ha="right", color="white")
            low, high = DOCUMENT[row][number]
            axes.plot(
                [low, high],
                [at + 0.18] * 2,
                color="#c2571a",
                marker="|",
                markersize=5,
                label=None if place or number else "what the document says",
            )
    axes.set_yticks(range(3), ["at the start", "at rest", "at the peak"])
    axes.invert_yaxis()
    axes.set_xlabel("MB, the whole container")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    figure.savefig(path)


def main() -> int:
    options = bare_parser(__doc__)
    options.add_argument("--picture", type=Path, metavar="FILE", help="draw it there, as a PNG")
    given = options.parse_args()
    with scratch() as directory:
        sheets = [workbook(directory / f"sheet{n}.xlsx") for n in range(AT_ONCE + 1)]
        warm_up()
        figures = {side: weigh(side, directory, sheets) for side in (PLAIN, OURS)}
    head = ["MB", "document: before", "after", "container: before", "after"]
    head += ["worker: before", "after"]
    rows = [
        [
            row,
            *IN_WORDS[row],
            *(round(figures[side][row]) for side in (PLAIN, OURS)),
            *(round(figures[side][f"worker, {row}"]) for side in (PLAIN, OURS)),
        ]
        for row in DOCUMENT
    ]
    print_table(head, rows)
    print()
    if given.picture:
        draw(figures, given.picture)
    ours = figures[OURS]
    targets = [
        Target("worker at the start, MB", ours["worker, start"], 40),
        Target("container at rest, MB", ours["rest"], 80),
        Target("container at the peak, MB", ours["peak"], 200),
    ]
    return report(given, figures, targets)


if __name__ == "__main__":
    sys.exit(main())
