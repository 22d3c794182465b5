"""Make a memory cgroup of one's own, to run child processes under a real limit."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

from .cgroup import own_directories
from .procfs import read_text, stat_value

# The files that limit memory, and memory with swap. The second may be absent.
_LIMITS = {
    1: ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
    2: ("memory.max", "memory.swap.max"),
}
_WAIT = 0.01  # seconds between two tries to remove a cgroup


@contextlib.contextmanager
def memory_cgroup(size: int, root: str = "") -> Iterator[str | None]:
    """Make a cgroup limited to `size` bytes below this process's own. Yield its directory, or None.

    None where no cgroup can be made: not Linux, no right to, or one that holds processes (v2). At
    the end, kill what runs in the cgroup and remove the cgroup.
    """
    directory = _make(size, root)
    try:
        yield directory
    finally:
        if directory is not None:
            _remove(directory)


def inside(directory: str | None, command: list[str]) -> list[str]:
    """Return the command that joins the cgroup and then becomes `command`."""
    if directory is None:
        return command
    return ["sh", "-c", 'echo 0 > "$0/cgroup.procs" && exec "$@"', directory, *command]


def kills(directory: str | None) -> int:
    """Return how many processes of the cgroup the kernel's OOM killer has ended."""
    if directory is None:
        return 0
    files = ("memory.events", "memory.oom_control")
    return sum(stat_value(f"{directory}/{name}", "oom_kill") for name in files)


def _make(size: int, root: str) -> str | None:
    for version, own in own_directories(root):
        directory = f"{own}/lowmem-wsgi-{os.getpid()}-{time.monotonic_ns():x}"
        try:
            os.mkdir(directory)
        except OSError:
            continue
        limit, with_swap = (f"{directory}/{name}" for name in _LIMITS[version])
        try:
            _write(limit, size)
        except OSError:  # v2: the memory controller is not delegated
            _remove(directory)
            continue
        with contextlib.suppress(OSError):
            _write(with_swap, size if version == 1 else 0)
        return directory
    return None


def _write(path: str, number: int) -> None:
    # No O_CREAT: a file that is not there is an error.
    file = os.open(path, os.O_WRONLY)
    try:
        os.write(file, str(number).encode())
    finally:
        os.close(file)


def _remove(directory: str) -> None:
    for _ in range(500):
        for word in read_text(f"{directory}/cgroup.procs").split():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(word), signal.SIGKILL)
        try:
            os.rmdir(directory)
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(_WAIT)
