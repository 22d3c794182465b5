"""Find the cause of a worker's death, from its record on the shared page."""

from __future__ import annotations

import time
from typing import Any

from .. import log
from ..settings import format_size
from .record import GONE, READY, Seen
from .shared_page import SharedPage

OOM_KILL, TIMEOUT, CRASH = "OOM kill", "timeout", "crash, or a kill from outside"

# The counter of each cause, in metrics.COUNTERS.
COUNTED = {OOM_KILL: "deaths_oom", TIMEOUT: "deaths_timeout", CRASH: "deaths_crash"}


def cause(*, timed_out: bool, killed: bool, orderly: bool) -> str | None:
    """Return one of the three causes; None for a worker that ended in order."""
    causes = ((killed and not orderly, OOM_KILL), (timed_out, TIMEOUT), (not orderly, CRASH))
    return next((name for holds, name in causes if holds), None)


def left_in_order(seen: Seen) -> bool:
    return bool(seen.state & GONE) or (seen.state != READY and not seen.in_flight)


def completed(seen: Seen, peak: int, limit: int, *, now: float | None = None) -> Seen:
    """Return the record with the kernel's figures of the end, which comes between two readings.

    `peak`: the worker's peak RSS. `limit`: for an OOM kill, the container's limit. Both in bytes, 0
    if not known. `now`: monotonic seconds.
    """
    rss = max(seen.rss, peak)
    if limit:
        at = time.monotonic() if now is None else now
        return seen._replace(rss=rss, points=[*seen.points, (at, rss, limit)])
    return seen._replace(rss=rss)


def report(page: SharedPage, seen: Seen, why: str, *, now: float | None = None) -> dict[str, Any]:
    """Log the death in one line, keep it for the status, and fold in the worker's figures."""
    death = describe(seen, why, time.monotonic() if now is None else now)
    page.add_death({**death, "at": time.time()})
    page.history.event("death", death["rss_bytes"], why)
    page.fold_in(seen, {COUNTED[why]: 1})
    log.logger.error("💀 %s", sentence(death))
    return death


def describe(seen: Seen, why: str, now: float) -> dict[str, Any]:
    """Return the death as a dict for JSON, in bytes and seconds."""
    first, last = (seen.points[0], seen.points[-1]) if seen.points else ((now, 0, 0),) * 2
    return {
        "pid": seen.pid,
        "cause": why,
        "age_seconds": round(now - seen.born, 3),
        "requests": seen.requests,
        "rss_bytes": seen.rss,
        "used_before_bytes": first[2],
        "used_bytes": last[2],
        "seconds": round(last[0] - first[0], 3),
        "in_flight": [
            {
                "route": request.what,
                "seconds": round(now - request.begun, 3),
                "grown_bytes": max(0, seen.rss - request.rss),
            }
            for request in seen.in_flight
        ],
    }


def sentence(death: dict[str, Any]) -> str:
    """Return the death as a sentence for the log."""
    in_flight = [
        f"{log.printable(request['route'])} (for {request['seconds']:.1f} s, the worker grew "
        f"{format_size(request['grown_bytes'])} meanwhile)"
        for request in death["in_flight"]
    ]
    before, then = (format_size(death[name]) for name in ("used_before_bytes", "used_bytes"))
    return (
        f"worker {death['pid']} died: {death['cause']}. "
        f"In flight: {', '.join(in_flight) or 'nothing'}. "
        f"Memory, as last seen: {before} → {then} in its last {death['seconds']:.1f} s, "
        f"the worker itself {format_size(death['rss_bytes'])} after {death['age_seconds']:.0f} s; "
        f"requests: {death['requests']}"
    )
