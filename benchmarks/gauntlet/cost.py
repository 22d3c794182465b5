"""What a request costs as the work grows: the heap, requests at once, workers, routes.

Gunicorn alone, with lowmem-wsgi, and by the letter of the source document; each cell is a server in
a container of its own, loaded for a moment: milliseconds of CPU time a request, by the cgroup.

    python benchmarks/gauntlet cost --quick
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from _common import APPS, Target, positive, print_table, scratch, shuffled
from _container import container
from _load import Caller, Request, crowd

from helpers.cgroup import cpu_cgroup, cpu_seconds
from helpers.servers import serve, wait_for

from . import charts
from .machine import machine, versions

PLAIN, OURS, LETTER = "Gunicorn gthread", "with lowmem-wsgi", "source document"
COLOURS = {PLAIN: "peer", OURS: "ours", LETTER: "bad"}
HEAPS = (30_000, 100_000, 300_000, 1_000_000)
AT_ONCE = (1, 3, 10)
WORKERS = (1, 2, 3, 4)
ROUTES = (10, 100, 1000)
FLAT = 0.20
# In these the whole container may take what it needs: time is measured, not memory.
ROOM = 4 << 30
HEAP, WORKER, ROUTE = "heap", "workers", "routes"
TITLES = {
    HEAP: "objects on the heap, {} at once",
    WORKER: "workers",
    ROUTE: "routes",
}


class Cell(NamedTuple):
    """One server."""

    panel: str
    side: str
    size: int  # of what the panel varies
    objects: int = 100_000
    at_once: int = 3
    workers: int = 1
    routes: int = 10


def cells(heaps: Sequence[int]) -> list[Cell]:
    found = []
    for side in COLOURS:
        for at_once, heap in itertools.product(AT_ONCE, heaps):
            panel = TITLES[HEAP].format(at_once)
            found.append(Cell(panel, side, heap, objects=heap, at_once=at_once))
        found += [Cell(WORKER, side, count, workers=count) for count in WORKERS]
        found += [Cell(ROUTE, side, count, routes=count) for count in ROUTES]
    return found


@contextlib.contextmanager
def serving(cell: Cell, directory: Path) -> Iterator[tuple[int, list[Path]]]:
    """The cell's server, answering already: its port and its cgroups."""
    environ: dict[str, Any] = {
        "XDG_RUNTIME_DIR": str(directory),
        "COST_OBJECTS": str(cell.objects),
        "COST_ROUTES": str(cell.routes),
        "WEB_CONCURRENCY": str(cell.workers),
        **({"COST_LETTER": "1"} if cell.side == LETTER else {}),
    }
    how: dict[str, Any] = {"workers": cell.workers}
    if cell.side == OURS:
        how = {"config": "python:lowmem_wsgi.gunicorn"}
    with (
        container(ROOM) as limited,
        cpu_cgroup(limited.group, 2.0) as groups,
        serve("cost_site:app", tmp_path=directory, cwd=APPS, cgroup=groups, **how, **environ) as up,
    ):
        limited.look_every(0.25)
        wait_for(lambda: Caller(up.port).ask("/").ok, lambda: f"an answer: {up.log}", 120)
        yield up.port, groups


def measured(cell: Cell, directory: Path, seconds: float) -> float:
    """Milliseconds of CPU time a request."""

    def request(number: int) -> Request:
        return f"/pages/{number % cell.routes}/{number}", None

    with serving(cell, directory) as (port, groups):
        with crowd(port, cell.at_once, request, most=20 * cell.workers) as warm_up:
            warm_up.join()
        before = cpu_seconds(groups)
        with crowd(port, cell.at_once, request) as asking:
            time.sleep(seconds)
        used = cpu_seconds(groups) - before
    wrong = [answer for answer in asking.answers if not answer.body.startswith(b"page ")]
    if wrong or not asking.answers:
        raise RuntimeError(f"{cell}: {len(wrong)} of {len(asking.answers)} answers are not right")
    return 1000 * used / len(asking.answers)


def figures_of(document: dict[str, Any]) -> dict[Cell, float]:
    """The median of each cell of a run, as it is in the JSON."""
    return {
        Cell(**{k: v for k, v in cell.items() if k != "ms"}): median(cell["ms"])
        for cell in document["cells"]
    }


def rows(figures: dict[Cell, float]) -> list[tuple[str, list[float]]]:
    """By panel and size: the figures of all sides."""
    by = {(cell.panel, cell.size, cell.side): ms for cell, ms in figures.items()}
    sizes = dict.fromkeys((cell.panel, cell.size) for cell in figures)
    return [(f"{p}: {s:,}", [by[p, s, side] for side in COLOURS]) for p, s in sizes]


def flatness(figures: dict[Cell, float], side: str) -> dict[str, float]:
    """By panel of heaps: the dearest heap's cost over the cheapest's, less 1."""
    panels: dict[str, list[float]] = {}
    for cell, ms in figures.items():
        if cell.side == side and cell.panel.startswith("objects"):
            panels.setdefault(cell.panel, []).append(ms)
    return {panel: max(found) / min(found) - 1 for panel, found in panels.items()}


def drawn(figures: dict[Cell, float], dress: str) -> str:
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for cell, ms in figures.items():
        panels.setdefault(cell.panel, {}).setdefault(cell.side, []).append((cell.size, ms))
    return charts.cost(panels, COLOURS, charts.DRESSES[dress])


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="gauntlet cost", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one round of 1 s a server")
    parser.add_argument("--rounds", type=positive, help="default 3; with --quick 1")
    parser.add_argument("--seconds", type=float, help="of load; default 3, with --quick 1")
    parser.add_argument("--heap", type=positive, action="append", help="objects; repeatable")
    parser.add_argument("--out", type=Path, default=Path("docs/gauntlet"))
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    given = parser.parse_args(arguments)
    try:
        return run(given)
    except KeyboardInterrupt:
        print("\ngauntlet cost: stopped, nothing is written", file=sys.stderr)
        return 130
    except (FileNotFoundError, RuntimeError) as error:
        print(f"gauntlet cost: {error}", file=sys.stderr)
        return 2


def run(given: argparse.Namespace) -> int:
    rounds = given.rounds or (1 if given.quick else 3)
    seconds = given.seconds or (1.0 if given.quick else 3.0)
    todo = cells(given.heap or HEAPS)
    found: dict[Cell, list[float]] = {cell: [] for cell in todo}
    with scratch() as directory:
        for turn in range(rounds):
            numbers = shuffled(map(str, range(len(todo))), turn)
            for done, number in enumerate(numbers):
                cell = todo[int(number)]
                found[cell].append(measured(cell, directory, seconds))
                print(
                    f"round {turn + 1} of {rounds}, {done + 1} of {len(todo)}: {cell.side},"
                    f" {cell.panel}, {cell.size}: {found[cell][-1]:.2f} ms",
                    flush=True,
                )
    document = {
        "date": time.strftime("%Y-%m-%d"),
        **{"machine": machine(), "versions": versions(), "rounds": rounds, "seconds": seconds},
        "cells": [{**cell._asdict(), "ms": values} for cell, values in found.items()],
    }
    figures = figures_of(document)
    print()
    print_table(
        ["CPU ms a request", *COLOURS], [[words, *values] for words, values in rows(figures)]
    )
    targets = [
        Target(f"{panel}: dearest heap over cheapest, less 1", more, FLAT)
        for panel, more in flatness(figures, OURS).items()
    ]
    print()
    for target in targets:
        print(target)
    name = f"{document['date']}-cost"
    given.out.mkdir(parents=True, exist_ok=True)
    texts = {f"{name}.json": json.dumps(document, indent=1) + "\n"}
    texts |= {f"{name}-{dress}.svg": drawn(figures, dress) for dress in charts.DRESSES}
    for file, text in texts.items():
        (given.out / file).write_text(text, encoding="utf-8")
    print(f"\nWritten to {given.out}: {', '.join(texts)}. The next page has it (--render).")
    return int(given.check and not all(target.met for target in targets))
