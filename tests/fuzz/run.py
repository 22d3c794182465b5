"""Fuzz each target for some minutes, and say how many examples it had (make fuzz).

    python tests/fuzz/run.py [--minutes 10] [--jobs 2] [TARGET...]

Each time with other examples. Exits with 1 if a property does not hold; the smallest example that
shows this is printed.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path[0] = str(Path(__file__).parents[1])  # as pytest has it
from fuzz.targets import TARGETS  # noqa: E402

BATCH = 500  # examples, then the clock is looked at

briefly = settings(
    max_examples=BATCH,
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.target, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


class Outcome(NamedTuple):
    """What a target had: examples, seconds, and the failure as text, if there was one."""

    name: str
    examples: int
    seconds: float
    failure: str


def fuzz(job: tuple[str, float]) -> Outcome:
    """Give a target examples until its time, in minutes, is up, or its property does not hold."""
    name, minutes = job
    logging.disable(logging.CRITICAL)  # LowMemory refuses much here, and says so
    holds, strategies = TARGETS[name]
    examples = 0

    def counted(**arguments: Any) -> None:
        nonlocal examples
        examples += 1
        holds(**arguments)

    counted.__name__ = name
    failure, began = "", time.monotonic()
    while not failure and time.monotonic() - began < 60 * minutes:
        try:
            seed(random.getrandbits(64))(briefly(given(**strategies)(counted)))()
        except Exception:
            failure = traceback.format_exc()
    return Outcome(name, examples, time.monotonic() - began, failure)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="for each target (10)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets at a time")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all, if none is given")
    asked = parser.parse_args()
    unknown = {*asked.targets} - {*TARGETS}
    if unknown:
        parser.error(f"no such target: {', '.join(unknown)} (there are {', '.join(TARGETS)})")
    if asked.minutes <= 0 or asked.jobs < 1:
        parser.error("--minutes must be above 0, and --jobs at least 1")
    failures = []
    print(f"{'target':<22}{'examples':>10}{'minutes':>9}  result")
    # Ctrl-C is for this process alone, which then ends the others.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    workers = multiprocessing.get_context("spawn").Pool(asked.jobs)
    signal.signal(signal.SIGINT, before)
    with workers as pool:
        jobs = [(name, asked.minutes) for name in asked.targets or TARGETS]
        for name, examples, seconds, failure in pool.imap_unordered(fuzz, jobs, chunksize=1):
            result = "does not hold" if failure else "holds"
            print(f"{name:<22}{examples:>10}{seconds / 60:>9.1f}  {result}", flush=True)
            failures += [failure] if failure else []
    print("\n".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped")
