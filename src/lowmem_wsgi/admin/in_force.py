"""Say what holds at the start: the limits, whose memory is read, a Python that needs more."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping

from .. import log
from .._version import __version__
from ..memory.gc_runner import passes_after_requests
from ..memory.reading import Memory
from ..settings import Settings, format_size, threshold_bytes
from ..system.native import has_gil, on_glibc
from ..system.usage import Swap, Usage

# These releases collect garbage in small steps, and keep much more of it. 3.14.5 has the collector
# of 3.13 again. (A free-threaded build has a collector of its own.)
FIRST_INCREMENTAL, FIRST_WITHOUT = (3, 14, 0), (3, 14, 5)


def announce(settings: Settings, memory: Memory) -> None:
    """Log the limits in force, and a warning if this Python needs more memory than others."""
    log.logger.info("lowmem-wsgi %s: %s", __version__, in_force(settings, has_gil()))
    log.logger.info("%s", of_memory(memory.read(), memory.swap(), settings.memory_limit))
    warning = of_python(sys.version_info[:3], has_gil())
    if warning is not None:
        log.once(logging.WARNING, "Python", warning)


def of_memory(usage: Usage, swap: Swap | None, asked: int | None = None) -> str:
    """Return a sentence or two on whose memory is read, its limit, and the swap beyond.

    `asked`: the limit of the settings in bytes, if there is one.
    """
    limit = format_size(usage.limit)
    if usage.source == "process":
        found = "Memory: no container's limit found. Each process is measured alone, against "
        if asked:
            return f"{found}{limit} (LOWMEM_MEMORY_LIMIT)."
        return (
            f"{found}{limit}. "
            "Set LOWMEM_MEMORY_LIMIT to what the plan allows, divided by the number of workers."
        )
    whose = "this machine" if usage.source == "machine" else f"the container, {usage.source}"
    sentence = f"Memory: {format_size(usage.used)} of {limit} ({whose})."
    if swap is not None and swap.limit:
        sentence += (
            f" The {format_size(swap.limit)} of swap do not count: a site that swaps is slow."
        )
    return sentence


def at_start(
    settings: Settings, usage: Usage, workers: int, threads: int, environ: Mapping[str, str]
) -> str:
    """Return for the log what a server has to live with, in one line."""
    warn, critical = (
        format_size(threshold_bytes(threshold, usage.limit))
        for threshold in (settings.warn_at, settings.critical_at)
    )
    heaps = environ.get("MALLOC_ARENA_MAX", "")
    allocator = "the C library" if _new_objects_are_cs(settings, environ) else "Python's own"
    late = _late()
    return "; ".join(
        [
            f"limit {format_size(usage.limit)} ({_SOURCES.get(usage.source, usage.source)})",
            f"warn at {warn}, critical at {critical}",
            f"{_count(workers, 'worker')} of {_count(threads, 'thread')}",
            f"allocator: {allocator}"
            + (f", {_count(int(heaps), 'heap')}" if heaps.isdecimal() else ""),
            f"imported late: {', '.join(late) or 'nothing'}",
        ]
    )


def _new_objects_are_cs(settings: Settings, environ: Mapping[str, str]) -> bool:
    """Return whether the C library holds the objects of requests (system/malloc.py)."""
    asked = environ.get("PYTHONMALLOC", "")
    if asked:
        return asked == "malloc"
    return settings.trim and settings.system_malloc and on_glibc() and has_gil()


_SOURCES = {"process": "for each process; the system enforces none"}


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def of_python(version: tuple[int, int, int], gil: bool = True) -> str | None:
    """Return a warning of this release of Python, or None. `gil`: whether the build has a GIL."""
    if not gil or not FIRST_INCREMENTAL <= version < FIRST_WITHOUT:
        return None
    return (
        f"Python {'.'.join(map(str, version))} keeps much more memory than other releases, because "
        f"of its incremental garbage collector. Use {'.'.join(map(str, FIRST_WITHOUT))} or later."
    )


def in_force(settings: Settings, gil: bool = True) -> str:
    """Return the limits in force, each with the variable that sets it. `gil`: see `of_python`."""
    limits = [f"preset {settings.preset}"]
    if settings.max_upload is not None:
        limits.append(f"uploads to {format_size(settings.max_upload)} (LOWMEM_MAX_UPLOAD)")
    limits += [
        f"{path} to {format_size(size)} (LOWMEM_UPLOAD_LIMITS)"
        for path, size in (settings.upload_limits or {}).items()
    ]
    if settings.session_cookies:
        limits.append(f"sessions for {settings.session_lifetime:g} s (LOWMEM_SESSION_LIFETIME)")
    if settings.static_max_age is not None:
        age = f"{settings.static_max_age:g} s"
        limits.append(f"static files cached for {age} (LOWMEM_STATIC_MAX_AGE)")
    passes = passes_after_requests(settings.gc_passes, gil)
    limits.append(f"{passes} passes after each request (LOWMEM_GC_PASSES)")
    if passes < settings.gc_passes:
        limits[-1] = "garbage collected when memory has grown, because this Python has no GIL"
    if settings.max_in_flight is not None:
        limits.append(f"{settings.max_in_flight} requests at once (LOWMEM_MAX_IN_FLIGHT)")
    if settings.gc_threshold is not None:
        limits.append(f"collector's threshold {settings.gc_threshold} (LOWMEM_GC_THRESHOLD)")
    if settings.recursion_limit is not None:
        limits.append(f"recursion to {settings.recursion_limit} (LOWMEM_RECURSION_LIMIT)")
    late = _late()
    if late:
        limits.append(f"{', '.join(late)} imported late (LOWMEM_LAZY_HEAVY)")
    elif settings.lazy_heavy:
        limits.append(
            "nothing imported late: use the Gunicorn config lowmem_wsgi.gunicorn, or call "
            "imports.install() before the app's imports (LOWMEM_LAZY_HEAVY)"
        )
    limits += [
        f"no {name} (LOWMEM_{name.upper()})"
        for name in ("gc_freeze", "trim")
        if not getattr(settings, name)
    ]
    return ", ".join(limits)


def _late() -> tuple[str, ...]:
    """Return the modules that are imported late."""
    lazy = sys.modules.get("lowmem_wsgi.imports.lazy")  # loaded only if in use
    return tuple(lazy.installed()) if lazy is not None else ()
