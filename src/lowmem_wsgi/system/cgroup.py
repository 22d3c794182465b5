"""Read the memory cgroup of this process: usage, limit and parts. Versions 1 and 2.

A container dies when its own usage meets its limit, not when one process looks large. So LowMemory
compares the cgroup's usage, less the file cache that the kernel drops first (`inactive_file`), with
the least limit of the cgroup and its ancestors.

Roots are arguments. No reader here raises for a file or a key that a system lacks, or for a text
that it does not know.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from .procfs import Kept, as_number, memory_total, number_in, read_text, stat_value, value_of
from .usage import Swap, Usage


def processors(root: str = "") -> float:
    """Return how many processors this process may use, often a fraction.

    The processors of its affinity, or the container's share of them if less (`cpu.max`,
    `cpu.cfs_quota_us`).
    """
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    base = f"{root}/sys/fs/cgroup"
    quota, _, period = read_text(f"{base}/cpu.max").strip().partition(" ")
    if not period:
        quota = read_text(f"{base}/cpu/cpu.cfs_quota_us").strip()
        period = read_text(f"{base}/cpu/cpu.cfs_period_us").strip()
    allowed, length = as_number(quota), as_number(period)
    return min(float(own), allowed / length) if allowed and length else float(own)


class Container:
    """Usage and limit of the cgroup that would run out of memory first.

    Finds the cgroups once (a process is seldom moved), and reads their files each time.
    """

    def __init__(self, root: str = "") -> None:
        self._machine = memory_total(root)
        self._cgroups = [
            (version, directory)
            for version, own, top in _mounts(root)
            for directory in _upwards(own, top)
        ]
        self._kept: tuple[int, str] | None = None
        self._files: tuple[Kept, ...] = ()
        self._last: tuple[int, int, Kept, Kept] | None = None

    def read(self) -> Usage | None:
        """Return the reading of the cgroup with the least limit, own or ancestor; None without one.

        "No limit" is `max` in v2, 9223372036854771712 in v1, and in both any figure above the
        machine's memory.
        """
        least: Usage | None = None
        found: tuple[int, str] | None = None
        for version, directory in self._cgroups:
            limit = _LIMITS[version](directory)
            # Of equal limits the outer cgroup counts: its usage includes the inner one's.
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
        """Keep the files of this cgroup for the next glance."""
        version, directory = found
        if self._kept != found:
            self._kept = found
            self._files = tuple(Kept(f"{directory}/{name}") for name in _FILES[version])
        self._last = (version, limit, self._files[0], self._files[1])

    def glance(self) -> Usage | None:
        """Return the usage of the cgroup that `read` found, with the same limit; None without one.

        Takes two system calls. After each call, this thread waits for the GIL while other threads
        compute.
        """
        if self._last is None:
            return None
        version, limit, usage_file, stat_file = self._last
        used = _used(version, usage_file.read(), stat_file.read())
        if used is None:
            usage_file.forget()
            return self.read()
        return Usage(used, limit, f"cgroup v{version}")

    def out_of_memory_kills(self) -> int | None:
        """Return how many processes of the own cgroup the kernel's OOM killer has ended.

        None where the kernel reports no count.
        """
        for version, directory in self._cgroups[:1]:
            name = "memory.events" if version == 2 else "memory.oom_control"
            if os.path.exists(f"{directory}/{name}"):
                return stat_value(f"{directory}/{name}", "oom_kill")
        return None

    def parts(self) -> dict[str, int]:
        """Return the memory that belongs to no process, in bytes, of the cgroup that `read` found.

        `shmem_bytes`: files in a tmpfs and shared memory, some of which a process may have mapped.
        `cache_bytes`: files in the page cache in active use. `kernel_bytes`: the kernel's own, not
        in version 1. An empty dict if `read` has found no limit.
        """
        if self._last is None:
            return {}
        version, text = self._last[0], self._last[3].read()
        return {
            part: sum(value_of(text, key) for key in keys) for part, keys in _PARTS[version].items()
        }

    def swap(self, machine: Swap) -> Swap:
        """Return the swap of the cgroup that `read` found. `machine`: the machine's swap.

        The limit of memory does not include swap. In version 1 a second limit holds for the sum of
        both. Where the kernel does not count swap by cgroup, the machine's figures hold.
        """
        if self._kept is None:
            return machine
        version, directory = self._kept
        stat = read_text(f"{directory}/memory.stat")
        if version == 2:
            used = number_in(f"{directory}/memory.swap.current")
            found = [
                number_in(f"{each}/memory.swap.max") for kind, each in self._cgroups if kind == 2
            ]
            limits = [limit for limit in found if limit is not None]
        else:
            both, memory = (
                value_of(stat, f"hierarchical_{which}_limit") for which in ("memsw", "memory")
            )
            used = value_of(stat, "total_swap") if both else None
            limits = [both - memory]
        if used is None:
            return machine
        return Swap(used, max(0, min([machine.limit, *limits])))

    def pids(self) -> list[int]:
        """Return the pids in the cgroup read last, without the pids of cgroups below."""
        if self._kept is None:
            return []
        text = read_text(f"{self._kept[1]}/cgroup.procs")
        return sorted({pid for word in text.split() if (pid := as_number(word)) is not None})


def own_directories(root: str = "") -> Iterator[tuple[int, str]]:
    """Yield (version, directory) of each cgroup of this process that can limit memory."""
    for version, own, _ in _mounts(root):
        yield version, own


def used_in(directory: str) -> int | None:
    """Return the bytes that a cgroup uses, less the file cache that the kernel drops first.

    None if unreadable.
    """
    version = 2 if os.path.exists(f"{directory}/memory.current") else 1
    return _used(version, *(read_text(f"{directory}/{name}") for name in _FILES[version]))


def _limit_v2(directory: str) -> int | None:
    """Return the lesser of memory.max and memory.high, in bytes; None without a limit.

    At memory.max the kernel kills. At memory.high, if lower, the kernel stalls the container.
    """
    found = [number_in(f"{directory}/{name}") for name in ("memory.max", "memory.high")]
    return min((limit for limit in found if limit), default=None)


def _limit_v1(directory: str) -> int | None:
    # hierarchical_memory_limit also includes ancestors that a container does not see.
    own = number_in(f"{directory}/memory.limit_in_bytes")
    above = stat_value(f"{directory}/memory.stat", "hierarchical_memory_limit")
    return min((limit for limit in (own, above) if limit), default=None)


_LIMITS = {1: _limit_v1, 2: _limit_v2}
# The files with the usage, file cache included, and with the details. The key in the details of the
# cache that the kernel drops first.
_FILES = {1: ("memory.usage_in_bytes", "memory.stat"), 2: ("memory.current", "memory.stat")}
_CACHE = {1: "total_inactive_file", 2: "inactive_file"}
_PARTS: dict[int, dict[str, tuple[str, ...]]] = {
    1: {"shmem_bytes": ("total_shmem",), "cache_bytes": ("total_active_file",)},
    2: {
        "shmem_bytes": ("shmem",),
        "cache_bytes": ("active_file",),
        # `kernel`, the sum of these, exists since Linux 5.18.
        "kernel_bytes": ("slab_unreclaimable", "kernel_stack", "pagetables", "percpu", "sock"),
    },
}


def _used(version: int, usage: str, stat: str) -> int | None:
    """Return the bytes used, from the texts of the two files; None if unreadable."""
    found = as_number(usage)
    return None if found is None else max(0, found - value_of(stat, _CACHE[version]))


def _upwards(directory: str, top: str) -> Iterator[str]:
    """Yield a cgroup's directory and the directories above, up to the mount."""
    while True:
        yield directory
        if len(directory) <= len(top):
            return
        directory = os.path.dirname(directory)


def _mounts(root: str) -> Iterator[tuple[int, str, str]]:
    """Yield (cgroup version, own directory, mount directory) where memory may be limited."""
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
    """Decode a path of mountinfo: space, tab, newline and backslash are in octal (proc(5))."""
    for code, character in (("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\")):
        field = field.replace("\\" + code, character)
    return field


def _inside(top: str, mounted: str, path: str) -> str:
    """Return the directory of cgroup `path`, in a hierarchy mounted from `mounted` at `top`.

    In a container the mount often begins at the container's own cgroup. Then the path may be the
    host's, or lead out of the namespace (`/../other`), and the directory is the mount itself.
    """
    parts = [part for part in path.split("/") if part]
    base = [part for part in mounted.split("/") if part]
    if ".." in parts or parts[: len(base)] != base:
        return top
    directory = "/".join([top.rstrip("/"), *parts[len(base) :]])
    return directory if os.path.isdir(directory) else top
