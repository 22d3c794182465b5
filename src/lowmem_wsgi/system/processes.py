"""What single processes hold, by psutil: slow beside a reading of the container, and in more
detail."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable
from typing import Generic, TypeVar

from .procfs import read_stat, status_bytes

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
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


def sizes_of(pids: Collection[int]) -> dict[int, tuple[int, int]] | None:
    """The parent of each of these processes, and what it holds: its PSS, or RSS where that of
    others is not told. None where one is ending: what it held is being given back."""
    found = {}
    for pid in pids:
        stat, rss = read_stat(pid), status_bytes("VmRSS:", str(pid))
        if stat is None or stat.ended or not rss:
            return None
        found[pid] = (stat.parent, process_figures(pid)["pss_bytes"] or rss)
    return found


class Remembered(Generic[K, V]):
    """`read(key)`, remembered for `keep` seconds: for what is slow to read, where who polls need
    not have it anew each time. A page table of 500 MB takes some milliseconds to walk."""

    def __init__(
        self,
        read: Callable[[K], V],
        keep: float = 5.0,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._keep = keep
        self._now = now
        self._known: dict[K, tuple[float, V]] = {}

    def get(self, keys: Collection[K]) -> dict[K, V]:
        """What was read of each; others are forgotten."""
        now, before, known = self._now(), self._known, {}
        for key in keys:
            found = before.get(key)
            fresh = found is not None and now - found[0] < self._keep
            known[key] = found if found is not None and fresh else (now, self._read(key))
        self._known = known
        return {key: value for key, (_, value) in known.items()}
