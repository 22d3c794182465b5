"""Read the memory of single processes with psutil: more detail than the container's, but slower."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable
from typing import Generic, TypeVar

from .procfs import read_stat, status_bytes

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Figures = dict[str, "int | None"]


def process_age(pid: int | None = None) -> float | None:
    """Return the seconds since the process was started, or forked.

    None for a process that is gone, or that belongs to another user and is hidden.
    """
    import psutil

    try:
        return max(0.0, round(time.time() - float(psutil.Process(pid).create_time()), 3))
    except psutil.Error:
        return None


def process_figures(pid: int | None = None) -> Figures:
    """Return RSS, USS, PSS and peak RSS of a process in bytes. `pid`: None for this process.

    None for a figure that this system does not report.
    """
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
    """Return the parent and the memory of each process: PSS in bytes, or RSS if PSS is hidden.

    None if a process is ending: the kernel is then taking its memory back.
    """
    found = {}
    for pid in pids:
        stat, rss = read_stat(pid), status_bytes("VmRSS:", str(pid))
        if stat is None or stat.ended or not rss:
            return None
        found[pid] = (stat.parent, process_figures(pid)["pss_bytes"] or rss)
    return found


class Remembered(Generic[K, V]):
    """Cache the results of `read(key)` for `keep` seconds, for figures that are slow to read.

    The page table of 500 MB takes some milliseconds to walk, and clients poll the status. `now`: a
    monotonic clock in seconds.
    """

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
        """Return the value of each key. Forget all other keys."""
        now, before, known = self._now(), self._known, {}
        for key in keys:
            found = before.get(key)
            fresh = found is not None and now - found[0] < self._keep
            known[key] = found if found is not None and fresh else (now, self._read(key))
        self._known = known
        return {key: value for key, (_, value) in known.items()}
