"""One batch of contenders through all phases; what each left is a record for the JSON."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from _common import shuffled

from .box import ACTIVE, RESTING, START, Box, boxed
from .contenders import CONTENDERS
from .figures import Record, binned, percentiles, unavailable
from .phases import DAMAGE, Tally, in_time, is_page, neighbours, steady
from .plan import Plan

BINS = 24  # of the memory over time, a phase
TRIES = 3  # starts that end without an answer
SETTLED = 1.0  # s after the spikes, before memory is read
WARM_UP, WARM_UP_SECONDS = 40, 0.3  # requests, for so long at most
# Containers that are damaged at the same time, where together they have no more than one processor.
SIDE_BY_SIDE = 4
Say = Callable[[str], None]
Spans = list[tuple[float, float]]


class Run:
    """What one contender has shown so far in this round."""

    def __init__(self, name: str, share: float, turn: int, plan: Plan) -> None:
        self.record: Record = {
            **{"contender": name, "share": share, "round": turn, "missing": "", "plan": plan.name},
            **{"version": CONTENDERS[name].version, "began": time.strftime("%Y-%m-%dT%H:%M:%S")},
            **{"memory": {}, "phases": {}, "steady": [], "trace": {}},
        }
        self.spans: dict[str, Spans] = {}
        self.milliseconds: list[float] = []  # of all good answers of the steady phase

    def span(self, phase: str, began: float) -> None:
        self.spans.setdefault(phase, []).append((began, time.monotonic()))

    def count(self, phase: str, tally: Tally) -> None:
        """Add a tally to a phase's."""
        found = self.record["phases"].setdefault(phase, asdict(Tally()))
        for key in ("asked", "failed", "wrong"):
            found[key] += getattr(tally, key)
        for what, number in tally.what.items():
            found["what"][what] = found["what"].get(what, 0) + number
        found["runaways"].update(tally.runaways)


def batch(
    names: Sequence[str], share: float, turn: int, plan: Plan, directory: Path, say: Say, seed: str
) -> Iterator[Record]:
    """Start all; let all rest; load them in turn; damage one after the other, or some at a time
    (see `side_by_side`). Yields a record as soon as it is complete. `seed`: of the orders."""
    with contextlib.ExitStack() as stack:
        boxes: dict[str, tuple[Box, Run]] = {}
        exits: dict[str, contextlib.ExitStack] = {}
        for name in shuffled(names, f"{seed} start {turn}"):
            run = Run(name, share, turn, plan)
            say(f"{name}: start")
            exits[name] = stack.enter_context(contextlib.ExitStack())
            reason = CONTENDERS[name].missing(directory)
            if not reason:
                place = directory / f"{turn}-{share}-{list(CONTENDERS).index(name)}"
                box = exits[name].enter_context(boxed(CONTENDERS[name], place, plan, share))
                boxes[name] = box, run
                reason = started(box, run)
            if reason:
                say(f"{name}: not run: {reason}")
                boxes.pop(name, None)
                exits[name].close()
                yield {**run.record, "missing": reason}
        if not boxes:
            return
        say(f"all {len(boxes)} at rest for {plan.idle:g} s")
        began = time.monotonic()
        time.sleep(plan.idle)
        for box, run in boxes.values():
            run.span("idle", began)
            run.record["memory"]["idle"] = box.container.used_mb
        for number in range(plan.slices):
            say(f"steady, slice {number + 1} of {plan.slices}")
            for name in shuffled(boxes, f"{seed} slice {turn} {number}"):
                loaded(*boxes[name], first=not number)
        order = shuffled(boxes, f"{seed} damage {turn}")
        for name in all_damaged(
            order, lambda name: damaged(*boxes[name], say), side_by_side(share)
        ):
            exits[name].close()
            yield boxes[name][1].record


def side_by_side(share: float) -> int:
    """How many containers are damaged at the same time: one, unless their CPUs are slow."""
    return max(1, min(SIDE_BY_SIDE, int(1 / share)))


def all_damaged(
    names: Sequence[str], damage: Callable[[str], None], at_a_time: int
) -> Generator[str, None, None]:
    """Damage all, in this order, so many at a time. Yields each name when its damage is done.

    Raises what `damage` raises. Whoever stops early does not wait for the damage that goes on.
    """
    todo: queue.SimpleQueue[str] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[str, BaseException | None]] = queue.SimpleQueue()
    stopped = threading.Event()

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while not stopped.is_set():
                name, failure = todo.get_nowait(), None
                try:
                    damage(name)
                except BaseException as error:
                    failure = error
                done.put((name, failure))

    for name in names:
        todo.put(name)
    try:
        for _ in range(at_a_time):
            threading.Thread(target=work, daemon=True).start()
        for _ in names:
            name, failure = done.get()
            if failure is not None:
                raise failure
            yield name
    finally:
        stopped.set()


def started(box: Box, run: Run) -> str:
    """Wait for the first answer. Why there is none, or ""."""
    began = time.monotonic()
    while not box.wait_until_well(1):
        if box.restarts >= TRIES or time.monotonic() - began > START / box.share:
            said = [line.strip() for line in box.log.splitlines() if line.strip()]
            return f"no answer to the first request. Its log: {' / '.join(said[:1] + said[-2:])}"
    run.span("start", began)
    run.record["start"] = time.monotonic() - began
    run.record["memory"]["initial"] = box.container.used_mb
    box.container.look_every(RESTING)
    return ""


def loaded(box: Box, run: Run, *, first: bool) -> None:
    """A slice of the steady phase."""
    box.container.look_every(ACTIVE)
    began = time.monotonic()
    if first:
        box.wait_until_well(1)
        for _ in range(WARM_UP):
            if time.monotonic() - began < WARM_UP_SECONDS / box.share:
                box.wait_until_well(1)
    tally, times, seconds, cpu = steady(box)
    run.span("steady", began)
    run.count("steady", tally)
    milliseconds = [1000 * one for one in times]
    run.milliseconds += milliseconds
    run.record["steady_all"] = {"answers": len(run.milliseconds), **percentiles(run.milliseconds)}
    run.record["steady"].append(
        {
            **percentiles(milliseconds),
            "rate": len(times) / seconds,
            "cpu": 1000 * cpu / len(times) if times else math.nan,
        }
    )
    box.container.look_every(RESTING)


def damaged(box: Box, run: Run, say: Say) -> None:
    """All that comes after the steady phase; completes the record."""
    try:
        _damaged(box, run, say)
    except Exception as error:  # of ours: the others are still worth measuring
        run.record["missing"] = f"the benchmark failed: {error!r}"
        say(f"{run.record['contender']}: {run.record['missing']}")


def _damaged(box: Box, run: Run, say: Say) -> None:
    record, ends, plan = run.record, [("", time.monotonic())], box.plan
    with box.guarded():
        beside = neighbours(box)
        try:
            for phase in DAMAGE:
                began, kills, deaths = time.monotonic(), box.container.kills, box.deaths
                tally = Tally()
                phase.run(box, tally)
                if phase.name != "recovery":
                    box.wait_until_well(plan.well / box.share)
                run.count(phase.name, tally)
                run.span(phase.name, began)
                ends.append((phase.name, time.monotonic()))
                if phase.name == "spikes":
                    time.sleep(SETTLED)
                    record["memory"]["spiked"] = box.container.used_mb
                found = record["phases"][phase.name]
                found["kills"] = box.container.kills - kills
                found["deaths"] = box.deaths - deaths
                found["seconds"] = time.monotonic() - began
                say(f"{record['contender']}: {phase.name}, {found['seconds']:.1f} s")
        finally:
            beside.stop()
        beside.join()
    for answer in beside.answers:
        at = next((name for name, end in ends if answer.began < end), ends[-1][0])
        tally = Tally()
        tally.check(answer, is_page(answer), "neighbour")
        run.count(at, tally)
    began = time.monotonic()
    time.sleep(plan.final_idle)
    run.span("idle again", began)
    refused = [not came for came in record["phases"]["runaways"]["runaways"].values()]
    record["memory"] |= {"final": box.container.used_mb, "peak": box.container.peak_mb}
    record |= {
        "kills": box.container.kills,
        "deaths": box.deaths,
        "restarts": box.restarts,
        "refused": sum(refused),
        "slowest": max((a.seconds for a in beside.answers if is_page(a)), default=math.nan),
        "unavailable": unavailable(
            [(a.began, a.ended, is_page(a) and in_time(a, box.share)) for a in beside.answers]
        ),
    }
    points = box.points()
    record["trace"] = {
        phase: [None if math.isnan(mb) else round(mb, 1) for mb in binned(points, spans, BINS)]
        for phase, spans in run.spans.items()
    }
    lost = {
        name: found["failed"] + found["wrong"]
        for name, found in record["phases"].items()
        if found["failed"] + found["wrong"]
    }
    say(
        f"{record['contender']}: {record['kills']} OOM kills, {record['deaths']} deaths,"
        f" {lost or 'nothing'} failed,"
        f" {record['unavailable']:.1f} s unavailable, {record['refused']} of {len(refused)}"
        f" runaways refused, peak {record['memory']['peak']:.0f} MB"
    )
