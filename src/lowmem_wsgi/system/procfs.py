"""Read the kernel's files under /proc: one parser each. Bytes and seconds.

No reader here raises for a file that a system lacks: the reader returns 0, None or an empty text.
Roots are arguments.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable
from typing import NamedTuple

from .usage import Swap, Usage

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Stat(NamedTuple):
    """Fields of /proc/PID/stat (proc(5))."""

    state: str
    parent: int
    threads: int
    started: int  # ticks after the boot

    @property
    def ended(self) -> bool:
        """Whether the process has ended and its parent has not waited for it yet."""
        return self.state in "ZX"


def read_stat(process: int | str = "self", proc: str = "/proc") -> Stat | None:
    """Return the stat of a process; None if the kernel reports none."""
    # The second field, in brackets, may contain any text. The third field and the rest follow.
    fields = read_text(f"{proc}/{process}/stat").rpartition(")")[2].split()
    try:
        return Stat(fields[0], int(fields[1]), int(fields[17]), int(fields[19]))
    except (ValueError, IndexError):
        return None


class Statm(NamedTuple):
    """Fields of /proc/PID/statm (proc(5)), in bytes."""

    resident: int
    shared: int  # the part of `resident` shared with files and other processes
    data: int  # mapped for data and stacks: RLIMIT_DATA bounds this figure

    @property
    def anonymous(self) -> int:
        """Memory in use that belongs to no file."""
        return self.resident - self.shared


def parse_statm(text: str) -> Statm | None:
    """Parse the text of a statm file; None for any other text."""
    fields = text.split()
    try:
        return Statm(int(fields[1]) * _PAGE, int(fields[2]) * _PAGE, int(fields[5]) * _PAGE)
    except (ValueError, IndexError):
        return None


def read_statm(process: int | str = "self", proc: str = "/proc") -> Statm | None:
    return parse_statm(read_text(f"{proc}/{process}/statm"))


class OwnRss:
    """Read this process's RSS in bytes, fast enough for every request.

    A call makes one pread of an open /proc/self/statm, 1.5 µs; without that file, LowMemory uses
    psutil. Call `reopen` after a fork: the open file is the parent's.
    """

    def __init__(self, proc: str = "/proc") -> None:
        self._path = f"{proc}/self/statm"
        self._file: int | None = None
        self._read: Callable[[], int] = self._open

    def __call__(self) -> int:
        return self._read()

    def reopen(self) -> None:
        if self._file is not None and self._is_ours():
            os.close(self._file)
        self._file = None
        self._read = self._open

    def _is_ours(self) -> bool:
        """Return whether the descriptor still is this file: other code may close all files."""
        try:
            return os.readlink(f"/proc/self/fd/{self._file}").endswith("/statm")
        except OSError:
            return False

    def _open(self) -> int:
        try:
            self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            self._read = self._statm
            return self._statm()
        except (OSError, AttributeError, IndexError, ValueError):
            self._read = _psutil_rss
            return _psutil_rss()

    def _statm(self) -> int:
        try:
            return int(os.pread(self._file, 64, 0).split(None, 2)[1]) * _PAGE  # type: ignore[arg-type]
        except (OSError, ValueError, IndexError):
            # Code that closes all files has closed this one. Its number may be another file's now.
            self._file = None
            self._read = _psutil_rss
            return _psutil_rss()


def _psutil_rss() -> int:
    try:
        import psutil

        return int(psutil.Process().memory_info().rss)
    except Exception:  # psutil raises its own errors if /proc is hidden
        return 0


def own_anonymous(proc: str = "/proc") -> int:
    """Return the bytes of RSS that belong to no file. A fork inherits this figure as it is."""
    statm = read_statm(proc=proc)
    return _psutil_rss() if statm is None else statm.anonymous


def own_uss(proc: str = "/proc") -> int:
    """Return the bytes that would be free without this process (USS); 0 if not reported.

    The same figure as psutil's, without loading psutil, which takes 0.9 MB.
    """
    text = read_text(f"{proc}/self/smaps_rollup")
    keys = ("Private_Clean:", "Private_Dirty:", "Private_Hugetlb:")
    return 1024 * sum(value_of(text, key) for key in keys)


def process_seconds(proc: str = "/proc") -> float:
    """Return the seconds since this process was started, or forked; 0 if not reported."""
    stat = read_stat(proc=proc)
    if stat is None:
        return 0.0
    try:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        return max(0.0, now - stat.started / os.sysconf("SC_CLK_TCK"))
    except (ValueError, AttributeError, OSError):
        return 0.0


def shared_bytes(proc: str = "/proc") -> int:
    """Return the bytes of this process's RSS that others share; 0 if not reported."""
    text = read_text(f"{proc}/self/smaps_rollup")
    return 1024 * (value_of(text, "Shared_Clean:") + value_of(text, "Shared_Dirty:"))


def status_bytes(key: str, process: str = "self") -> int:
    """Return a figure of a process's status file (proc(5)) in bytes; 0 if not reported."""
    return stat_value(f"/proc/{process}/status", key) * 1024


def read_machine(root: str = "") -> Usage | None:
    """Return the machine's memory, from /proc/meminfo, else psutil; None if neither reports it."""
    path = f"{root}/proc/meminfo"
    text = read_text(path)
    total, available = (value_of(text, key) * 1024 for key in ("MemTotal:", "MemAvailable:"))
    if not (total and available) and not root:
        try:
            import psutil

            memory = psutil.virtual_memory()
        except Exception:
            return None
        total, available = memory.total, memory.available
    return Usage(max(0, total - available), total, "machine") if total and available else None


def read_swap(root: str = "") -> Swap | None:
    """Return the machine's swap, from /proc/meminfo; None if not reported."""
    text = read_text(f"{root}/proc/meminfo")
    if "SwapTotal:" not in text:
        return None
    total, free = (value_of(text, key) * 1024 for key in ("SwapTotal:", "SwapFree:"))
    return Swap(max(0, total - free), total)


def memory_total(root: str) -> float:
    return stat_value(f"{root}/proc/meminfo", "MemTotal:") * 1024 or float("inf")


def number_in(path: str) -> int | None:
    """Return the number in a file; None for `max`, other text or no file."""
    return as_number(read_text(path))


def as_number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def stat_value(path: str, key: str) -> int:
    """Return the number after `key` in a file of lines such as `key 123 kB`; 0 if none."""
    return value_of(read_text(path), key)


def value_of(text: str, key: str) -> int:
    for line in text.splitlines() if key in text else ():
        if line.startswith(key):
            words = line.split()
            if len(words) > 1 and words[0] == key and words[1].isascii() and words[1].isdigit():
                return int(words[1]) if len(words[1]) < 20 else 0
    return 0


class Kept:
    """A small kernel file that stays open: each read is one system call."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None
        self._close: Callable[[], object] = _nothing

    def read(self) -> str:
        """Return the file's text. If unreadable, return "" and open the file again next time."""
        try:
            file = self._file
            if file is None:
                self._file = file = os.open(self._path, os.O_RDONLY | _FLAGS)
                self._close = weakref.finalize(self, _close, file, _identity(file))
            text = os.pread(file, 2 * _PIECE, 0).decode("utf-8", "replace")
        except (OSError, AttributeError):
            text = ""
        if not text:
            self.forget()
        return text

    def forget(self) -> None:
        """Close the file. The next `read` opens the file again."""
        self._close()
        self._file, self._close = None, _nothing


def _nothing() -> None:
    """Do nothing: no file is open."""


def _identity(file: int) -> tuple[int, int]:
    found = os.fstat(file)
    return found.st_dev, found.st_ino


def _close(file: int, identity: tuple[int, int]) -> None:
    # Code that closes all files may have closed this one. Its number may be another file's now.
    try:
        if _identity(file) == identity:
            os.close(file)
    except OSError:
        pass


def read_text(path: str) -> str:
    """Return the text of a file; "" if there is none.

    Reads in small pieces, to work with next to no memory left.
    """
    try:
        file = os.open(path, os.O_RDONLY | _FLAGS)
    except (OSError, ValueError):  # ValueError: a path with a NUL in it
        return ""
    try:
        pieces: list[bytes] = []
        while len(pieces) < _PIECES and (piece := os.read(file, _PIECE)):
            pieces.append(piece)
        return b"".join(pieces).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(file)


_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_PIECE, _PIECES = 4096, 256
