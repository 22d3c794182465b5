"""What is used, and what there is: the figures the platform kills on.

A container dies when its own usage meets its limit, not when one process looks large. So:
the cgroup's usage less the file cache that the kernel drops first (`inactive_file`), against
the least limit among the cgroup and its ancestors. Where no cgroup states a limit, the
process's own RSS. Roots are injectable; nothing here raises for what a system lacks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Usage:
    """Bytes used of the bytes there are, and who says so."""

    __slots__ = ("limit", "source", "used")

    def __init__(self, used: int, limit: int | None, source: str) -> None:
        self.used = used
        self.limit = limit
        self.source = source


# --- One process


class OwnRss:
    """The process's own resident set in bytes, fast enough for every request.

    One pread of an open /proc/self/statm, 1.5 µs; psutil where there is none. `reopen` after a
    fork: the open file is the parent's.
    """

    def __init__(self, proc: str = "/proc") -> None:
        self._path = f"{proc}/self/statm"
        self._file: int | None = None
        self._read: Callable[[], int] = self._open

    def __call__(self) -> int:
        return self._read()

    def reopen(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._read = self._open

    def _open(self) -> int:
        try:
            self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            self._read = self._statm
            return self._statm()
        except (OSError, AttributeError, IndexError, ValueError):
            self._read = _psutil_rss
            return _psutil_rss()

    def _statm(self) -> int:
        return int(os.pread(self._file, 64, 0).split(None, 2)[1]) * _PAGE  # type: ignore[arg-type]


def _psutil_rss() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def process_age() -> float:
    """Seconds since this process was started (a forked one: since the fork)."""
    import time

    import psutil

    return max(0.0, round(time.time() - float(psutil.Process().create_time()), 3))


def process_figures() -> dict[str, int | None]:
    """RSS, USS and peak RSS of this process in bytes; None for what this system does not tell."""
    import psutil

    process = psutil.Process()
    figures: dict[str, int | None] = {"rss_bytes": None, "uss_bytes": None, "peak_bytes": None}
    try:
        info = process.memory_info()
        figures["rss_bytes"] = info.rss
        figures["peak_bytes"] = getattr(info, "peak_wset", None) or _peak_rss()
        figures["uss_bytes"] = process.memory_full_info().uss
    except (psutil.Error, OSError, AttributeError):
        pass
    return figures


def _peak_rss(proc: str = "/proc") -> int | None:
    for line in _read(f"{proc}/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


# --- The container


def read_container(root: str = "") -> Usage | None:
    """Usage and limit of the container this process is in; None where no cgroup limits it.

    `root` stands before /proc and /sys, for tests.
    """
    least: Usage | None = None
    for usage in _levels(root):
        if usage.limit is not None and (least is None or usage.limit < least.limit):  # type: ignore[operator]
            least = usage
    return least


def _levels(root: str) -> Iterator[Usage]:
    """The limited cgroups over this process, its own first."""
    machine = _mem_total(root)
    for version, own, top in _mounts(root):
        read = _read_v2 if version == 2 else _read_v1
        directory = own
        while True:
            usage = read(directory)
            if usage is not None and usage.limit is not None and usage.limit < machine:
                yield usage
            if len(directory) <= len(top):
                break
            directory = os.path.dirname(directory)


def _mounts(root: str) -> Iterator[tuple[int, str, str]]:
    """(cgroup version, own directory, the mount's directory) where memory may be limited."""
    own: dict[int, str] = {}
    for line in _read(f"{root}/proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            own[2] = path
        elif "memory" in controllers.split(","):
            own[1] = path
    for line in _read(f"{root}/proc/self/mountinfo").splitlines():
        # ID parent major:minor ROOT MOUNTPOINT options... - TYPE source superoptions
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            version = 2
        elif kind[0] == "cgroup" and "memory" in kind[2].split(","):
            version = 1
        else:
            continue
        if version in own:
            top = root + fields[4]
            yield version, _inside(top, fields[3], own[version]), top


def _inside(top: str, mounted: str, path: str) -> str:
    """The directory of cgroup `path` under the mount of `mounted` at `top`."""
    if mounted != "/":
        # Docker mounts a container's own cgroup; the path in /proc may be the host's.
        path = path[len(mounted) :] if path.startswith(mounted) else "/"
    directory = os.path.normpath(top + "/" + path.replace("..", ""))
    return directory if os.path.isdir(directory) else top


def _read_v2(directory: str) -> Usage | None:
    used = _number(f"{directory}/memory.current")
    if used is None:
        return None
    cache = _stat(f"{directory}/memory.stat", "inactive_file")
    return Usage(max(0, used - cache), _number(f"{directory}/memory.max"), "cgroup v2")


def _read_v1(directory: str) -> Usage | None:
    used = _number(f"{directory}/memory.usage_in_bytes")
    if used is None:
        return None
    cache = _stat(f"{directory}/memory.stat", "total_inactive_file")
    return Usage(max(0, used - cache), _number(f"{directory}/memory.limit_in_bytes"), "cgroup v1")


def _mem_total(root: str) -> float:
    return _stat(f"{root}/proc/meminfo", "MemTotal:") * 1024 or float("inf")


def _number(path: str) -> int | None:
    """The number in a file; None for `max`, garbage, or no file."""
    text = _read(path).strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _stat(path: str, key: str) -> int:
    for line in _read(path).splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            digits = value.split()[:1]
            return int(digits[0]) if digits and digits[0].isdigit() else 0
    return 0


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
