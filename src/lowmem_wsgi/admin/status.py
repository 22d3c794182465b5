"""Collect the status in one document. Bytes and seconds; None for a figure that is not available.

Counts are the site's, summed over all its workers. Other figures in `gc` and `cleanups` are those
of the answering worker.
"""

from __future__ import annotations

import gc
import os
import time
from typing import TYPE_CHECKING, Any

from .. import metrics
from .._version import __version__
from ..memory.attribution import OTHER
from ..memory.levels import CRITICAL, OK, WARN
from ..system import malloc
from ..system.processes import Figures, Remembered, process_age, process_figures, sizes_of
from ..system.usage import Usage
from .diagnosis import diagnose, remedies
from .in_force import of_memory

if TYPE_CHECKING:
    from ..middleware import LowMemory
    from ..workers.record import Seen

# LowMemory reads the processes' memory at most every KEEP seconds. If the memory in use has changed
# by CHANGED (a share of the limit) since, at most every KEEP_CHANGED seconds.
KEEP, CHANGED, KEEP_CHANGED = 5.0, 0.1, 1.0
# If the container uses MUCH (a share of the limit) more than all processes hold together, LowMemory
# reads again after AGAIN seconds. By then an ending worker is gone, and the memory of a request is
# given back.
MUCH, AGAIN = 0.15, 0.1


class Readings:
    """Figures that are slow to read, kept for some seconds."""

    def __init__(self) -> None:
        # Slow, because Python counts the frozen objects one by one.
        self.frozen: Remembered[None, int] = Remembered[None, int](lambda _: gc.get_freeze_count())
        # The pids -> time and usage at the reading, the memory of each process, and `outside`.
        self.processes: dict[
            frozenset[int], tuple[float, int, dict[int, Figures], dict[str, Any] | None]
        ] = {}


def brief(lowmem: LowMemory) -> dict[str, Any]:
    """Return the brief status, for clients when no token is set."""
    now = _usage(lowmem)
    return {"status": _level(lowmem, now), "memory": _memory(now)}


def _usage(lowmem: LowMemory) -> Usage:
    """Return the usage. A glance is enough while the monitor runs, which looks up the limit."""
    engine = lowmem.runtime
    return engine.memory.glance() if engine.monitor.running else engine.memory.read()


def _memory(now: Usage) -> dict[str, Any]:
    percent = round(100 * now.used / now.limit, 1) if now.limit else None
    return {"used_bytes": now.used, "limit_bytes": now.limit, "percent": percent}


def _level(lowmem: LowMemory, now: Usage) -> str:
    """Return the monitor's level. Before the monitor runs, the level of this one reading."""
    levels = lowmem.runtime.levels
    if lowmem.runtime.monitor.running:
        return levels.level
    return CRITICAL if now.used >= levels.critical else WARN if now.used >= levels.warn else OK


def status(lowmem: LowMemory, readings: Readings) -> dict[str, Any]:
    """Return the whole status, for clients with the token."""
    now, swap = _usage(lowmem), lowmem.runtime.memory.swap()
    warn, critical = lowmem.runtime.levels.warn, lowmem.runtime.levels.critical
    counted = metrics.document(
        {name: _number(value) for name, value in lowmem.worker.counts().items()}
    )
    workers, outside = _workers(lowmem, readings)
    own = next(worker for worker in workers if worker["this"])
    peak = own.pop("peak_bytes")
    document: dict[str, Any] = {
        "status": _level(lowmem, now),
        "memory": {
            **_memory(now),
            "source": now.source,
            "about": of_memory(now, swap, lowmem.settings.memory_limit),
            "swap_bytes": swap and swap.used,
            "swap_limit_bytes": swap and swap.limit,
            "rss_bytes": own["rss_bytes"],
            "uss_bytes": own["uss_bytes"],
            "peak_bytes": peak,
            "processes_bytes": _sum(worker["pss_bytes"] for worker in workers),
            "outside": outside,
        },
        "thresholds": {"warn_bytes": warn, "critical_bytes": critical},
        "gc": _gc(lowmem, readings) | counted["gc"],
        "cleanups": _cleanups(lowmem) | counted["cleanups"],
        "requests": {
            "total": None,
            # The page has room for eight requests of a worker. This worker knows all its own.
            "in_flight": lowmem.runtime.in_flight.count()
            + sum(len(worker["in_flight"]) for worker in workers if not worker["this"]),
            **counted["requests"],
        },
        "workers": workers,
        "routes": _routes(lowmem),
        "recycles": counted["recycles"],
        "deaths": counted["deaths"],
        "last_death": lowmem.worker.last_death(),
        "now": time.time(),
        "closed": lowmem.runtime.admission.closed,
        "ceiling": lowmem.runtime.ceiling.limit,
        "replaceable": lowmem.worker.irreplaceable() is None,
        "irreplaceable": lowmem.worker.irreplaceable(),
        "allocator": malloc.in_force(os.environ, switched=lowmem.runtime.system_malloc),
        "heavy": lowmem.heavy(),
    }
    for key, part in counted.items():
        document.setdefault(key, part)
    return {
        **document,
        "diagnosis": diagnose(document),
        "findings": remedies(document),
        "version": __version__,
    }


def history(lowmem: LowMemory) -> dict[str, Any]:
    """Return the site's last hour for the chart, in Unix seconds and bytes."""
    past = lowmem.worker.history
    return {
        "interval_seconds": past.every,
        "points": past.points(),
        "events": [
            {"at": event.at, "kind": event.kind, "freed_bytes": event.freed, "what": event.what}
            for event in past.events()
        ],
    }


# --- Its parts


# A None here keeps the key's position; the counter of that name replaces the value.
def _gc(lowmem: LowMemory, readings: Readings) -> dict[str, Any]:
    collector = lowmem.runtime.gc_runner
    return {
        "passes": collector.passes,
        "runs": None,
        "collected": None,
        "frozen": readings.frozen.get([None])[None],
        "last_seconds": collector.last_seconds,
    }


def _cleanups(lowmem: LowMemory) -> dict[str, Any]:
    last = lowmem.runtime.cleanups.last or {"at": None, "freed_bytes": None, "steps": []}
    return {
        "count": None,
        "last_at": last["at"],
        "last_freed_bytes": last["freed_bytes"],
        "steps": last["steps"],
    }


def _workers(
    lowmem: LowMemory, readings: Readings
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Return the rows of the site's workers and master, and the memory outside these processes.

    The rows always include the answering worker.
    """
    now = time.monotonic()
    seen = {found.pid: found for found in lowmem.worker.alive()}
    own, server = os.getpid(), lowmem.worker.server
    others = [] if server is None or server.master == own else [server.master]
    weights, outside = _weights(lowmem, frozenset({own, *seen, *others}), readings)
    rows = [_worker(pid, seen.get(pid), lowmem, now) for pid in sorted({own, *seen})]
    rows += [
        {"pid": pid, "role": "master", "state": "ready", "this": False, "in_flight": []}
        | {"age_seconds": process_age(pid), "requests": None, "born_bytes": None}
        | {"held_bytes": None}
        for pid in others
    ]
    for row in rows:
        if row["pid"] in seen:
            row["held_bytes"] = lowmem.worker.held(seen[row["pid"]].place)
        row.update(weights[row["pid"]])
        if not row["this"]:
            del row["peak_bytes"]
    return rows, outside


def _weights(
    lowmem: LowMemory, pids: frozenset[int], readings: Readings
) -> tuple[dict[int, Figures], dict[str, Any] | None]:
    """Return the memory of each process, and `outside`, all of one moment.

    Keeps the result for some seconds: walking the page table of a large process takes some
    milliseconds.
    """
    now, usage, found = time.monotonic(), _usage(lowmem), readings.processes.get(pids)
    changed = found is not None and abs(usage.used - found[1]) >= CHANGED * usage.limit
    if found is None or now - found[0] >= (KEEP_CHANGED if changed else KEEP):
        figures, outside = _moment(lowmem, pids)
        if outside is not None and outside["bytes"] >= MUCH * outside["limit_bytes"]:
            time.sleep(AGAIN)
            figures, again = _moment(lowmem, pids)
            least = again and min(outside, again, key=lambda each: int(each["bytes"]))
            outside = least and _besides(lowmem, least, pids)
        found = now, usage.used, figures, outside
        readings.processes.clear()
        readings.processes[pids] = found
    return found[2], found[3]


def _moment(
    lowmem: LowMemory, pids: frozenset[int]
) -> tuple[dict[int, Figures], dict[str, Any] | None]:
    """Read the processes, and the container before and after. The lower container figure counts.

    Return the memory of each process, and `outside`: the container's memory in no process. None
    without a cgroup, or if the PSS of a process is not known.
    """
    memory = lowmem.runtime.memory
    before = memory.glance()
    figures = {pid: process_figures(pid) for pid in pids}
    after = memory.glance()
    known = [each["pss_bytes"] for each in figures.values()]
    if not after.source.startswith("cgroup") or None in known:
        return figures, None
    used = min(before.used, after.used)
    rest = max(0, used - sum(size or 0 for size in known))
    return figures, {
        "bytes": rest,
        "used_bytes": used,
        "limit_bytes": after.limit,
        **dict.fromkeys(("shmem_bytes", "cache_bytes", "kernel_bytes")),
        **memory.parts(),
        "processes_bytes": None,
        "processes": None,
    }


def _besides(
    lowmem: LowMemory, outside: dict[str, Any], pids: frozenset[int]
) -> dict[str, Any] | None:
    """Add the container's other processes to `outside`.

    A starting worker has no place on the page yet, but does not count as outside. None if a process
    is ending.
    """
    others = sizes_of(set(lowmem.runtime.memory.pids()) - pids)
    if others is None:
        return None
    server = lowmem.worker.server
    master = 0 if server is None else server.master
    ours = [size for parent, size in others.values() if parent == master]
    strangers = [size for parent, size in others.values() if parent != master]
    return {
        **outside,
        "bytes": max(0, outside["bytes"] - sum(ours)),
        "processes_bytes": sum(strangers),
        "processes": len(strangers),
    }


def _worker(pid: int, seen: Seen | None, lowmem: LowMemory, now: float) -> dict[str, Any]:
    row = {"pid": pid, "role": "worker", "state": "ready", "this": pid == os.getpid()}
    if seen is None:  # no place on the page
        total = lowmem.runtime.in_flight.total
        return row | {
            "age_seconds": process_age(),
            "requests": total,
            "born_bytes": None,
            "held_bytes": None,
            "in_flight": [],
        }
    return row | {
        "state": "ready" if seen.ready else "retiring",
        "age_seconds": round(now - seen.born, 3),
        "requests": seen.requests,
        "born_bytes": seen.born_rss,
        "in_flight": [
            {
                "route": request.what,
                "seconds": round(now - request.begun, 3),
                "grown_bytes": max(0, seen.rss - request.rss),
            }
            for request in seen.in_flight
        ],
    }


def _routes(lowmem: LowMemory) -> list[dict[str, Any]]:
    rows = [
        {
            "route": name,
            "requests": found.requests,
            "grown_bytes": found.gone + found.held,
            "held_bytes": found.held,
            "replaced_workers": found.workers,
            "rises": found.rises,
            "quiet_requests": found.quiet,
            "worst_bytes": found.worst,
            "shared": round(found.shared / found.requests, 3) if found.requests else 0.0,
        }
        for name, found in lowmem.worker.growth().items()
    ]
    return sorted(rows, key=lambda row: (row["route"] == OTHER, -row["grown_bytes"], row["route"]))


def _sum(values: Any) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _number(value: float) -> float | int:
    """Return a count as int if whole, else rounded to six digits."""
    return int(value) if value == int(value) else round(value, 6)
