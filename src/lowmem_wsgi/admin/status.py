"""The status, as one dictionary. Bytes and seconds; None for what cannot be had."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..memory.governor import CRITICAL, OK, WARN
from ..memory.reading import Usage, process_age, process_figures

if TYPE_CHECKING:
    from ..middleware import LowMemory


def brief(lowmem: LowMemory) -> dict[str, Any]:
    """All that is told without a token."""
    now = lowmem.engine.memory.read()
    return {"status": _level(lowmem, now), "memory": _memory(now)}


def _memory(now: Usage) -> dict[str, Any]:
    percent = round(100 * now.used / now.limit, 1) if now.limit else None
    return {"used_bytes": now.used, "limit_bytes": now.limit, "percent": percent}


def _level(lowmem: LowMemory, now: Usage) -> str:
    """The monitor's level; before it runs, what this one reading says."""
    monitor = lowmem.engine.monitor
    if monitor.running:
        return monitor.level
    warn, critical = monitor.thresholds
    return CRITICAL if now.used >= critical else WARN if now.used >= warn else OK


def status(lowmem: LowMemory) -> dict[str, Any]:
    figures = process_figures()
    now = lowmem.engine.memory.read()
    warn, critical = lowmem.engine.monitor.thresholds
    collector, ladder = lowmem.engine.collector, lowmem.engine.ladder
    last = ladder.last or {"at": None, "freed_bytes": None, "steps": []}
    return {
        "status": _level(lowmem, now),
        "memory": {**_memory(now), "source": now.source, **figures},
        "thresholds": {"warn_bytes": warn, "critical_bytes": critical},
        "gc": {
            "passes": collector.passes,
            "runs": collector.runs,
            "collected": collector.collected,
            "frozen": gc.get_freeze_count(),
            "last_seconds": collector.last_seconds,
            "total_seconds": collector.total_seconds,
            "freed_bytes": collector.freed_bytes,
        },
        "cleanups": {
            "count": ladder.count,
            "last_at": last["at"],
            "last_freed_bytes": last["freed_bytes"],
            "steps": last["steps"],
        },
        "requests": {
            "total": lowmem.overload.total,
            "in_flight": lowmem.overload.in_flight(),
            "uploads_rejected": lowmem.uploads.rejected,
            "sessions_expired": lowmem.sessions.expired,
            "shed": lowmem.overload.shed,
            "out_of_memory": lowmem.out_of_memory,
        },
        "workers": [
            {
                "pid": os.getpid(),
                "rss_bytes": figures["rss_bytes"],
                "uss_bytes": figures["uss_bytes"],
                "age_seconds": process_age(),
                "requests": lowmem.overload.total,
            }
        ],
        "last_death": lowmem.crew.last_death(),
        "routes": [],
        "heavy": lowmem.heavy(),
        "diagnosis": None,
        "version": __version__,
    }
