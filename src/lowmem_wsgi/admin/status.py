"""The status, as one dictionary. Bytes and seconds; None for what cannot be had."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..memory.reading import Usage, process_age, process_figures, read_container
from ..settings import DEFAULT_LIMIT, Settings, threshold_bytes

if TYPE_CHECKING:
    from ..middleware import LowMemory


def usage(settings: Settings, rss: int | None) -> Usage:
    """What is used of what there is: the container's where it has a limit, else the process's."""
    container = read_container()
    if container is not None:
        return Usage(container.used, settings.memory_limit or container.limit, container.source)
    return Usage(rss or 0, settings.memory_limit or DEFAULT_LIMIT, "process")


def level(used: int, warn: int, critical: int) -> str:
    return "critical" if used >= critical else "warn" if used >= warn else "ok"


def brief(settings: Settings) -> dict[str, Any]:
    """All that is told without a token."""
    figures = process_figures()
    now = usage(settings, figures["rss_bytes"])
    limit = now.limit or DEFAULT_LIMIT
    return {
        "status": level(
            now.used,
            threshold_bytes(settings.warn_at, limit),
            threshold_bytes(settings.critical_at, limit),
        ),
        "memory": {
            "used_bytes": now.used,
            "limit_bytes": limit,
            "percent": round(100 * now.used / limit, 1),
        },
    }


def status(lowmem: LowMemory) -> dict[str, Any]:
    settings = lowmem.settings
    figures = process_figures()
    now = usage(settings, figures["rss_bytes"])
    limit = now.limit or DEFAULT_LIMIT
    warn = threshold_bytes(settings.warn_at, limit)
    critical = threshold_bytes(settings.critical_at, limit)
    collector, ladder = lowmem.collector, lowmem.ladder
    last = ladder.last or {"at": None, "freed_bytes": None, "steps": []}
    return {
        "status": level(now.used, warn, critical),
        "memory": {
            "used_bytes": now.used,
            "limit_bytes": limit,
            "percent": round(100 * now.used / limit, 1),
            "source": now.source,
            **figures,
        },
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
        "routes": [],
        "diagnosis": None,
        "version": __version__,
    }
