"""What single processes hold, by psutil: slow beside a reading of the container, and in more
detail."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from .reading import status_bytes

Figures = dict[str, "int | None"]


def process_age(pid: int | None = None) -> float | None:
    """Seconds since the process was started (a forked one: since the fork); None for one that is
    gone, or another user's where those are hidden."""
    import psutil

    try:
        return max(0.0, round(time.time() - float(psutil.Process(pid).create_time()), 3))
    except psutil.Error:
        return None


def process_figures(pid: int | None = None) -> Figures:
    """RSS, USS, PSS and peak RSS of a process (this one) in bytes; None for what this system does
    not tell."""
    import psutil

    figures: Figures = dict.fromkeys(("rss_bytes", "uss_bytes", "pss_bytes", "peak_bytes"))
    try:
        process = psutil.Process(pid)
        info = process.memory_info()
        figures["rss_bytes"] = info.rss
        peak = status_bytes("VmHWM:", "self" if pid is None else str(pid))
        figures["peak_bytes"] = getattr(info, "peak_wset", None) or peak or None
        full = process.memory_full_info()
        figures["uss_bytes"] = full.uss
        figures["pss_bytes"] = getattr(full, "pss", None)  # Linux
    except (psutil.Error, OSError, AttributeError):
        pass
    return figures


class Scales:
    """`process_figures`, remembered for `keep` seconds: a page table of 500 MB takes some
    milliseconds to walk, and who polls need not have it walked each time. Thread-safe."""

    def __init__(
        self,
        keep: float = 5.0,
        *,
        now: Callable[[], float] = time.monotonic,
        figures: Callable[[int], Figures] = process_figures,
    ) -> None:
        self._keep = keep
        self._now = now
        self._figures = figures
        self._known: dict[int, tuple[float, Figures]] = {}

    def weigh(self, pids: Collection[int]) -> dict[int, Figures]:
        """The figures of each. Those of others are forgotten."""
        now, before, known = self._now(), self._known, {}
        for pid in pids:
            found = before.get(pid)
            fresh = found is not None and now - found[0] < self._keep
            known[pid] = found if found is not None and fresh else (now, self._figures(pid))
        self._known = known
        return {pid: figures for pid, (_, figures) in known.items()}
