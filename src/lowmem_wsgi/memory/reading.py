"""What is used, and what there is: the figures the platform kills on.

A container dies when its own usage meets its limit, not when one process looks large. So:
the cgroup's usage less the file cache that the kernel drops first (`inactive_file`), against
the least limit among the cgroup and its ancestors. Where no cgroup states a limit: the
machine's memory, if that is all there is (a small virtual machine), else the process's own.

Roots are injectable. No reader here raises for what a system lacks, or says in words nobody
has heard of: it falls back, and `Usage.source` says to what.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterator

from ..settings import DEFAULT_LIMIT

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Usage:
    """Bytes used of the bytes there are, and who says so."""

    __slots__ = ("limit", "source", "used")

    def __init__(self, used: int, limit: int, source: str) -> None:
        self.used = used
        self.limit = limit
        self.source = source

    def __repr__(self) -> str:
        return f"Usage({self.used}, {self.limit}, {self.source!r})"


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
        if self._file is not None and self._is_ours():
            os.close(self._file)
        self._file = None
        self._read = self._open

    def _is_ours(self) -> bool:
        """Whether the number is still that of our file: who closes all files closes it, too."""
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
            # Somebody who closes all files has closed this one; its number may be another's now.
            self._file = None
            self._read = _psutil_rss
            return _psutil_rss()


def _psutil_rss() -> int:
    try:
        import psutil

        return int(psutil.Process().memory_info().rss)
    except Exception:  # psutil raises its own where /proc is hidden
        return 0


def own_uss(proc: str = "/proc") -> int:
    """What would be free without this process (USS), in bytes; 0 where it is not told. As psutil
    tells it, but without psutil, which is 0.9 MB."""
    text = read_text(f"{proc}/self/smaps_rollup")
    keys = ("Private_Clean:", "Private_Dirty:", "Private_Hugetlb:")
    return 1024 * sum(_value(text, key) for key in keys)


def process_seconds(proc: str = "/proc") -> float:
    """Seconds since this process was started, or forked; 0 where that is not told."""
    try:
        # Field 22 of proc(5)'s stat, in ticks since the boot.
        ticks = int(read_text(f"{proc}/self/stat").rpartition(")")[2].split()[19])
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        return max(0.0, now - ticks / os.sysconf("SC_CLK_TCK"))
    except (ValueError, IndexError, AttributeError, OSError):
        return 0.0


def shared_bytes(proc: str = "/proc") -> int:
    """What it shares with others, of its RSS, in bytes; 0 where that is not told."""
    text = read_text(f"{proc}/self/smaps_rollup")
    return 1024 * (_value(text, "Shared_Clean:") + _value(text, "Shared_Dirty:"))


def processors(root: str = "") -> float:
    """How many processors this process may use: those it may run on, or the share of them that
    its container has (`cpu.max`, `cpu.cfs_quota_us`)."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    base = f"{root}/sys/fs/cgroup"
    quota, _, period = read_text(f"{base}/cpu.max").strip().partition(" ")
    if not period:
        quota = read_text(f"{base}/cpu/cpu.cfs_quota_us").strip()
        period = read_text(f"{base}/cpu/cpu.cfs_period_us").strip()
    if quota.isdigit() and period.isdigit() and int(period):
        return min(float(own), int(quota) / int(period))
    return float(own)


def status_bytes(key: str, process: str = "self") -> int:
    """What a process's status (proc(5)) says in kB, in bytes; 0 where it says nothing."""
    return _stat(f"/proc/{process}/status", key) * 1024


# --- The container


class Container:
    """Usage and limit of the cgroup that would be out of memory first.

    Finds the cgroup once (a process is seldom moved), reads its files anew each time.
    """

    def __init__(self, root: str = "") -> None:
        self._machine = _mem_total(root)
        self._cgroups = [
            (version, directory)
            for version, own, top in _mounts(root)
            for directory in _upwards(own, top)
        ]
        self._kept: tuple[int, str] | None = None
        self._files: tuple[Kept, ...] = ()
        self._last: tuple[int, int, Kept, Kept] | None = None

    def read(self) -> Usage | None:
        """The reading with the least limit, own cgroup and ancestors; None where none is limited.

        "No limit" is `max` in v2, 9223372036854771712 in v1, and in both anything that the machine
        does not have.
        """
        least: Usage | None = None
        found: tuple[int, str] | None = None
        for version, directory in self._cgroups:
            limit = _LIMITS[version](directory)
            # Of equal limits the outer one counts: it holds what the inner one uses, and more.
            if limit is None or limit > self._machine or (least and limit > least.limit):
                continue
            used = _used(version, *(read_text(f"{directory}/{name}") for name in _FILES[version]))
            if used is not None:
                least = Usage(used, limit, f"cgroup v{version}")
                found = version, directory
        if found is not None and least is not None:
            self._keep(found, least.limit)
        else:
            self._last = None
        return least

    def _keep(self, found: tuple[int, str], limit: int) -> None:
        """For the next glance."""
        version, directory = found
        if self._kept != found:
            self._kept = found
            self._files = tuple(Kept(f"{directory}/{name}") for name in _FILES[version])
        self._last = (version, limit, self._files[0], self._files[1])

    def glance(self) -> Usage | None:
        """As `read` was, by two system calls: of the cgroup that had the least limit, and with
        that limit; None where none had. Each call waits for the interpreter's lock where others
        compute."""
        if self._last is None:
            return None
        version, limit, usage_file, stat_file = self._last
        used = _used(version, usage_file.read(), stat_file.read())
        if used is None:
            usage_file.forget()
            return self.read()
        return Usage(used, limit, f"cgroup v{version}")

    def out_of_memory_kills(self) -> int | None:
        """How many processes of the own cgroup the kernel's OOM killer has taken."""
        for version, directory in self._cgroups[:1]:
            name = "memory.events" if version == 2 else "memory.oom_control"
            if os.path.exists(f"{directory}/{name}"):
                return _stat(f"{directory}/{name}", "oom_kill")
        return None

    def parts(self) -> dict[str, int]:
        """Of what `read` has last counted as used, what is no process's, in bytes: `shmem_bytes`
        (files in a tmpfs, and shared memory, some of which a process may have mapped),
        `cache_bytes` (files in the page cache that are in active use), `kernel_bytes`. Nothing
        where that is not told."""
        if self._last is None:
            return {}
        version, text = self._last[0], self._last[3].read()
        return {
            part: sum(_value(text, key) for key in keys) for part, keys in _PARTS[version].items()
        }

    def pids(self) -> list[int]:
        """The processes in the cgroup that was read last, without those of cgroups below it."""
        if self._kept is None:
            return []
        text = read_text(f"{self._kept[1]}/cgroup.procs")
        return sorted({int(word) for word in text.split() if word.isdigit()})


def _limit_v2(directory: str) -> int | None:
    """memory.max kills; memory.high, where lower, stalls the container instead."""
    found = [_number(f"{directory}/{name}") for name in ("memory.max", "memory.high")]
    return min((limit for limit in found if limit), default=None)


def _limit_v1(directory: str) -> int | None:
    # The second tells of ancestors, too, that a container does not see.
    own = _number(f"{directory}/memory.limit_in_bytes")
    above = _stat(f"{directory}/memory.stat", "hierarchical_memory_limit")
    return min((limit for limit in (own, above) if limit), default=None)


_LIMITS = {1: _limit_v1, 2: _limit_v2}
# What is used, with the file cache, and the rest; in the rest, the cache that the kernel drops
# first.
_FILES = {1: ("memory.usage_in_bytes", "memory.stat"), 2: ("memory.current", "memory.stat")}
_CACHE = {1: "total_inactive_file", 2: "inactive_file"}
_PARTS: dict[int, dict[str, tuple[str, ...]]] = {
    1: {"shmem_bytes": ("total_shmem",), "cache_bytes": ("total_active_file",)},
    2: {
        "shmem_bytes": ("shmem",),
        "cache_bytes": ("active_file",),
        # `kernel`, their sum, came with Linux 5.18.
        "kernel_bytes": ("slab_unreclaimable", "kernel_stack", "pagetables", "percpu", "sock"),
    },
}


def _used(version: int, usage: str, stat: str) -> int | None:
    """Bytes, from the texts of the two files."""
    found = _as_number(usage)
    return None if found is None else max(0, found - _value(stat, _CACHE[version]))


def _upwards(directory: str, top: str) -> Iterator[str]:
    """A cgroup's directory and those above it, as far as the mount."""
    while True:
        yield directory
        if len(directory) <= len(top):
            return
        directory = os.path.dirname(directory)


def _mounts(root: str) -> Iterator[tuple[int, str, str]]:
    """(cgroup version, own directory, the mount's directory) where memory may be limited."""
    own: dict[int, str] = {}
    for line in read_text(f"{root}/proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            own[2] = path
        elif "memory" in controllers.split(","):
            own[1] = path
    for line in read_text(f"{root}/proc/self/mountinfo").splitlines():
        # ID parent major:minor ROOT MOUNTPOINT options... - TYPE source superoptions (proc(5))
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
            top = root + _unescaped(fields[4])
            yield version, _inside(top, _unescaped(fields[3]), own[version]), top


def _unescaped(field: str) -> str:
    """A path as mountinfo writes it: space, tab, newline and backslash in octal (proc(5))."""
    for code, character in (("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\")):
        field = field.replace("\\" + code, character)
    return field


def _inside(top: str, mounted: str, path: str) -> str:
    """The directory of cgroup `path` where the hierarchy is mounted from `mounted` at `top`.

    In a container the mount often begins at the container's own cgroup, while the path may be the
    host's, or climb out of the namespace (`/../other`): then the mount itself is ours.
    """
    parts = [part for part in path.split("/") if part]
    base = [part for part in mounted.split("/") if part]
    if ".." in parts or parts[: len(base)] != base:
        return top
    directory = "/".join([top.rstrip("/"), *parts[len(base) :]])
    return directory if os.path.isdir(directory) else top


# --- All together


class Memory:
    """What the site uses of what it may: call `read`.

    `limit` in bytes is what the settings say (None: what the system says, else DEFAULT_LIMIT).
    """

    def __init__(
        self, limit: int | None = None, *, root: str = "", rss: Callable[[], int] | None = None
    ) -> None:
        self._limit = limit
        self._root = root
        self._last: Usage | None = None
        self._own = False  # whether the last reading was of this process alone
        self._container = Container(root)
        self._rss = OwnRss() if rss is None else rss

    def read(self) -> Usage:
        """The container's figures; else the machine's, where it has no more than the limit; else
        those of this process."""
        usage = self._container.read()
        if usage is not None:
            self._last = usage
        elif self._last is not None and not read_text(f"{self._root}/proc/self/cgroup"):
            usage = self._last  # not even this file opens: we are out of descriptors
        if usage is None:
            asked = self._limit or DEFAULT_LIMIT
            machine = read_machine(self._root)
            fits = machine is not None and machine.limit <= asked
            usage = machine if machine and fits else Usage(self._rss(), asked, "process")
        if self._limit is not None and self._limit < usage.limit:
            usage.limit = self._limit
        self._own = usage.source == "process"
        return usage

    def reopen(self) -> None:
        """In a new child: look again, and at its own figures."""
        self._container = Container(self._root)
        if isinstance(self._rss, OwnRss):
            self._rss.reopen()

    def glance(self) -> Usage:
        """As `read`, but cheaper: of where the limit was found last, if there was one."""
        usage = self._container.glance()
        if usage is None and self._own:
            usage = Usage(self._rss(), self._limit or DEFAULT_LIMIT, "process")
        if usage is None:
            return self.read()
        if self._limit is not None and self._limit < usage.limit:
            usage.limit = self._limit
        return usage

    def parts(self) -> dict[str, int]:
        """What is used of the container and no process's: see Container.parts."""
        return self._container.parts()

    def pids(self) -> list[int]:
        """The processes of the container; none where there is none."""
        return self._container.pids()

    def kills(self) -> int | None:
        """How many processes of the container the OOM killer has taken; None where none is told."""
        return self._container.out_of_memory_kills()


def read_machine(root: str = "") -> Usage | None:
    """The machine's memory: /proc/meminfo, else psutil."""
    path = f"{root}/proc/meminfo"
    text = read_text(path)
    total, available = (_value(text, key) * 1024 for key in ("MemTotal:", "MemAvailable:"))
    if not (total and available) and not root:
        try:
            import psutil

            memory = psutil.virtual_memory()
        except Exception:
            return None
        total, available = memory.total, memory.available
    return Usage(max(0, total - available), total, "machine") if total and available else None


def _mem_total(root: str) -> float:
    return _stat(f"{root}/proc/meminfo", "MemTotal:") * 1024 or float("inf")


# --- Files of the kernel


def _number(path: str) -> int | None:
    """The number in a file; None for `max`, garbage, or no file."""
    return _as_number(read_text(path))


def _as_number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _stat(path: str, key: str) -> int:
    """The number behind `key` in a file of lines such as `key 123 kB`; 0 where there is none."""
    return _value(read_text(path), key)


def _value(text: str, key: str) -> int:
    for line in text.splitlines() if key in text else ():
        if line.startswith(key):
            words = line.split()
            if len(words) > 1 and words[0] == key and words[1].isascii() and words[1].isdigit():
                return int(words[1]) if len(words[1]) < 20 else 0
    return 0


class Kept:
    """A small file of the kernel's, kept open: read anew by one system call."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None
        self._close: Callable[[], object] = _nothing

    def read(self) -> str:
        """Its text; nothing where it cannot be had: the next time it is opened anew."""
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
        """Open it anew the next time."""
        self._close()
        self._file, self._close = None, _nothing


def _nothing() -> None:
    """There is nothing to close."""


def _identity(file: int) -> tuple[int, int]:
    found = os.fstat(file)
    return found.st_dev, found.st_ino


def _close(file: int, identity: tuple[int, int]) -> None:
    # Somebody who closes all files may have closed this one; its number may be another's now.
    try:
        if _identity(file) == identity:
            os.close(file)
    except OSError:
        pass


def read_text(path: str) -> str:
    """The text of a file; nothing where there is none. In small pieces: it must work with next to
    no memory left."""
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
