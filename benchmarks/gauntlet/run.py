"""The command: contenders through the phases, and the page, the charts and the JSON of them."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from _common import positive, print_table, scratch

from .box import settings
from .contenders import CONTENDERS, HIGHLIGHTED, PLAIN
from .course import batch
from .figures import METRICS, Record, agreement, order, promises, summarise
from .machine import machine, versions
from .page import written
from .plan import FULL, PLANS, QUICK, Plan

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "gauntlet"
KEPT = ROOT / ".gauntlet"
LIMIT_MB = 512
Document = dict[str, Any]


def options() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="gauntlet", description=__doc__)
    found.add_argument("--quick", action="store_true", help="short phases: 12 minutes")
    found.add_argument("--plan", choices=PLANS, help="full (default), quick or tiny (for tests)")
    found.add_argument("--only", action="append", choices=CONTENDERS, help="repeatable")
    found.add_argument("--cpu", action="append", type=float, metavar="SHARE", help="repeatable")
    found.add_argument("--rounds", type=positive, help="of all contenders")
    found.add_argument("--at-once", type=positive, help="containers; default: as many as fit")
    found.add_argument("--out", type=Path, default=DOCS, help="default docs/gauntlet")
    found.add_argument("--logs", type=Path, metavar="DIR", help="keep the servers' logs there")
    found.add_argument("--resume", type=Path, metavar="FILE", help="go on from here, or save here")
    found.add_argument("--render", type=Path, metavar="JSON", help="write the page of this run")
    found.add_argument("--again", type=Path, metavar="JSON", help="another run, for the page")
    found.add_argument(
        "--compare", type=Path, nargs=2, metavar="JSON", help="how far two runs agree"
    )
    found.add_argument("--check", action="store_true", help="exit with 1 if a promise is broken")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background, too
    given = options().parse_args(arguments)
    try:
        if given.compare:
            return compare(*map(load, given.compare))
        if given.render:
            return report(load(given.render), given)
        plan = chosen(given)
        names = given.only or list(CONTENDERS)
        return measured(plan, names, given)
    except (OSError, ValueError) as error:
        print(f"gauntlet: {error}", file=sys.stderr)
        return 2


def chosen(given: argparse.Namespace) -> Plan:
    plan = PLANS[given.plan] if given.plan else QUICK if given.quick else FULL
    shares = tuple(given.cpu) if given.cpu else plan.shares
    if not all(0.05 <= share <= 1 for share in shares):
        raise ValueError("--cpu takes a share of one processor, from 0.05 to 1")
    return dataclasses.replace(plan, shares=shares, rounds=given.rounds or plan.rounds)


def measured(plan: Plan, names: Sequence[str], given: argparse.Namespace) -> int:
    """Run, save each record as it comes, and report at the end."""
    file = given.resume or KEPT / f"{time.strftime('%Y-%m-%d-%H%M%S')}-{plan.name}.jsonl"
    file.parent.mkdir(exist_ok=True)
    records = saved(file, plan) if file.exists() else []
    seed = str(records[0]["seed"]) if records else time.strftime("%Y%m%d%H%M%S")
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", flush=True)

    try:
        with scratch() as temporary, file.open("a") as lines:
            directory = given.logs.resolve() if given.logs else temporary
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o755)  # Apache's other user finds the way in
            gc.disable()  # a pause of the client is none of a server
            for share, turn in itertools.product(plan.shares, range(plan.rounds)):
                done = {
                    r["contender"] for r in records if (r["share"], r["round"]) == (share, turn)
                }
                left = [name for name in names if name not in done]
                most = given.at_once or at_once()
                for start in range(0, len(left), most):
                    part = left[start : start + most]
                    say(
                        f"--- CPU {share:g}, round {turn + 1} of {plan.rounds}: {len(part)} of them"
                    )
                    for record in batch(part, share, turn, plan, directory, say, seed):
                        records.append({**record, "seed": seed})
                        lines.write(json.dumps(records[-1]) + "\n")
                        lines.flush()
                    gc.collect()
    except KeyboardInterrupt:
        print(f"\ngauntlet: stopped. Go on with --resume {shown(file)}", file=sys.stderr)
        return 130
    say("all done")
    return report(document(records, plan), given)


def saved(file: Path, plan: Plan) -> list[Record]:
    """The records of a run that was interrupted. A last line that is not whole leaves the file.

    Raises ValueError for the records of another plan.
    """
    records, whole = [], ""
    for line in file.read_text().splitlines(keepends=True):
        try:
            records.append(json.loads(line))
        except ValueError:
            break
        whole += line
    others = {record["plan"] for record in records} - {plan.name}
    if others:
        raise ValueError(f"{file} has records of the plan {', '.join(others)}, not {plan.name}")
    file.write_text(whole)
    return records


def at_once() -> int:
    """How many containers may be full at the same time."""
    return max(1, int(0.8 * psutil.virtual_memory().available) // (LIMIT_MB << 20))


def document(records: list[Record], plan: Plan) -> Document:
    """All of a run, for the JSON."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(),
        "limit MB": LIMIT_MB,
        "plan": dataclasses.asdict(plan),
        "contenders": {
            name: {
                "group": row.group,
                "command": " ".join(row.server.command.split()),
                "environment": settings(row, plan.lifetime),
                "advice": row.advice,
                "version": row.version,
            }
            for name, row in CONTENDERS.items()
            if any(record["contender"] == name for record in records)
        },
        "records": records,
    }


def load(path: Path) -> Document:
    found: Document = json.loads(path.read_text())
    return found


def report(run: Document, given: argparse.Namespace) -> int:
    """Write all files in one step, and print the table."""
    costs = sorted(given.out.glob("*-cost.json"))
    again = load(given.again) if given.again else None
    if again:
        same_kind(run, again)
    files = written(run, load(costs[-1]) if costs else None, again)
    given.out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (given.out / f".{name}.new").write_text(text, encoding="utf-8")
    for name in files:
        (given.out / f".{name}.new").replace(given.out / name)
    broken = 0
    for share in run["plan"]["shares"]:
        table = summarise(run["records"], share)
        print(f"\nCPU {share:g}\n")
        print_table(
            ["", *(metric.title for metric in METRICS)],
            [[n, *(f"{r[m.key].value:.{m.digits}f}" for m in METRICS)] for n, r in table.items()],
        )
        print()
        for promise in promises(table, HIGHLIGHTED, PLAIN):
            verdict = "kept  " if promise.kept else "BROKEN"
            print(f"{verdict}  {promise.text}: {promise.figure:.3f} (<= {promise.bound:g})")
            broken += not promise.kept
    print(f"\nWritten to {shown(given.out)}: {', '.join(files)}")
    return int(given.check and broken > 0)


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def same_kind(first: Document, second: Document) -> None:
    """Raise ValueError unless these are two runs of one plan on one machine."""
    if first["records"] == second["records"]:
        raise ValueError("the two runs are the same")
    for what in ("machine", "versions"):
        if first[what] != second[what]:
            raise ValueError(f"the two runs differ in {what}: {first[what]}, {second[what]}")
    for key, value in first["plan"].items():
        if key not in ("shares", "rounds") and value != second["plan"][key]:
            raise ValueError(f"the two runs differ in {key}: {value}, {second['plan'][key]}")


def compare(first: Document, second: Document) -> int:
    """Print how far two runs agree, at each CPU share that both have."""
    same_kind(first, second)
    shares = [share for share in first["plan"]["shares"] if share in second["plan"]["shares"]]
    if not shares:
        raise ValueError("the two runs have no CPU share in common")
    for share in shares:
        one, other = (summarise(run["records"], share) for run in (first, second))
        keys = [metric.key for metric in METRICS if metric.unit]
        pairs = order(one, other)
        turned = "; ".join(f"{a} and {b}" for a, b in pairs.turned)
        print(
            f"CPU {share:g}: {pairs.same} pairs in the same order, {pairs.unsure} not told apart"
            f" in both, {len(pairs.turned)} in the other order {turned}"
        )
        print_table(
            ["ratio to the median", "usual change", "largest", "whose"],
            [[key, *change] for key, change in agreement(one, other, keys).items()],
        )
    return 0
