"""The number of workers that a hosting platform sets by itself, without anybody's choice."""

from __future__ import annotations

import os
from collections.abc import Mapping


def heroku(environ: Mapping[str, str], cores: int) -> int | None:
    """Return what Heroku's Python buildpack sets as WEB_CONCURRENCY; None elsewhere.

    The least of a worker for each 256 MB of the dyno, and of two a core and one more (changelog
    item 2846 of Heroku's Dev Center, March 2024). The buildpack exports the dyno's memory in MB as
    DYNO_RAM. `cores`: as `nproc` prints them.
    """
    ram = environ.get("DYNO_RAM", "")
    if "DYNO" not in environ or not (ram.isascii() and ram.isdigit()):
        return None
    return min(max(1, int(ram) // 256), 2 * cores + 1)


# A platform's name -> a function that returns the number that the platform sets, or None.
PLATFORMS = {"Heroku": heroku}


def sets_this_itself(environ: Mapping[str, str], cores: int | None = None) -> str | None:
    """Return the platform's name if WEB_CONCURRENCY has the value that the platform sets.

    None for another value, or if it is not set. Somebody may have chosen the same number: that
    looks alike. `cores`: of the machine.
    """
    text = environ.get("WEB_CONCURRENCY", "").strip()
    counts = _cores(environ) if cores is None else {cores}
    for name, default in PLATFORMS.items():
        if text and text in {str(default(environ, count)) for count in counts}:
            return name
    return None


def _cores(environ: Mapping[str, str]) -> set[int]:
    """Return what `nproc` may have printed: OMP_NUM_THREADS, or the cores of this process.

    Both, because LowMemory may have set OMP_NUM_THREADS since then (workers/variables.py).
    """
    try:
        found = {len(os.sched_getaffinity(0))}
    except AttributeError:  # not on macOS
        found = {os.cpu_count() or 1}
    asked = environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return found | {int(asked)} if asked.isascii() and asked.isdigit() and int(asked) else found
