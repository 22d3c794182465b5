"""The status, as one document. Bytes and seconds; None for what cannot be had.

Counts are the site's, all its workers together; `gc` and `cleanups` are of the worker that answers.
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
from ..system.processes import Figures, Remembered, process_age, process_figures, sizes_of
from ..system.usage import Usage
from .diagnosis import diagnose

if TYPE_CHECKING:
    from ..middleware import LowMemory
    from ..workers.record import Seen

# What each process holds is read at most each so many seconds; where what is used has changed by
# such a share of the limit since, each so many.
KEEP, CHANGED, KEEP_CHANGED = 5.0, 0.1, 1.0
# A share of the limit: where the container uses so much more than the processes hold together, it
# is looked at more closely, and once more after so long (seconds), in which a worker that ends is
# gone, and what a request took is given back.
MUCH, AGAIN = 0.15, 0.1


class Readings:
    """What is slow to read, remembered for some seconds."""

    def __init__(self) -> None:
        # Python counts the frozen objects one by one.
        self.frozen = Remembered[None, int](lambda _: gc.get_freeze_count())
        # The processes -> when and at what usage they were read, what they held, what was outside.
        self.processes: dict[
            frozenset[int], tuple[float, int, dict[int, Figures], dict[str, Any] | None]
        ] = {}


def brief(lowmem: LowMemory) -> dict[str, Any]:
    """All that is told without a token."""
    now = _usage(lowmem)
    return {"status": _level(lowmem, now), "memory": _memory(now)}


def _usage(lowmem: LowMemory) -> Usage:
    """Where the monitor runs, it has found the limit not long ago."""
    engine = lowmem.runtime
    return engine.memory.glance() if engine.monitor.running else engine.memory.read()


def _memory(now: Usage) -> dict[str, Any]:
    percent = round(100 * now.used / now.limit, 1) if now.limit else None
    return {"used_bytes": now.used, "limit_bytes": now.limit, "percent": percent}


def _level(lowmem: LowMemory, now: Usage) -> str:
    """The monitor's level; before it runs, what this one reading says."""
    levels = lowmem.runtime.levels
    if lowmem.runtime.monitor.running:
        return levels.level
    return CRITICAL if now.used >= levels.critical else WARN if now.used >= levels.warn else OK


def status(lowmem: LowMemory, readings: Readings) -> dict[str, Any]:
    """All that is told with the token."""
    now = _usage(lowmem)
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
            # The page has room for eight of a worker; of our own we know all.
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
        "replaceable": lowmem.worker.server is not None and lowmem.settings.recycle,
        "allocator": {name: os.environ.get(name) for name in ("PYTHONMALLOC", "MALLOC_ARENA_MAX")},
        "heavy": lowmem.heavy(),
    }
    for key, part in counted.items():
        document.setdefault(key, part)
    return {**document, "diagnosis": diagnose(document), "version": __version__}


def history(lowmem: LowMemory) -> dict[str, Any]:
    """The site's last hour, for the chart: Unix seconds, bytes."""
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


# A key that is None here keeps its place for the counter of that name.
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
    """Each worker of the site, and its master; the one that answers in any case. And what the
    container holds besides them."""
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
    """What each process holds, and `outside`, all of one moment. Remembered for some seconds, as
    walking the page table of a large process takes some milliseconds."""
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
    """Read the container before the processes, and after them. Of both the lesser counts."""
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
    """With the container's other processes. A worker that starts has no place on the page yet, and
    is not outside all the same."""
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
    if seen is None:  # it has no place on the page
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
    """A count: whole, where it is."""
    return int(value) if value == int(value) else round(value, 6)
