"""Serve the app in one of the three ways, in a memory cgroup of its own, and watch the memory."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from typing import IO

from ...system.cgroup import used_in
from ...system.memory_cgroup import inside, kills, memory_cgroup
from ...system.procfs import stat_value, status_bytes
from ..children import end_with_parent, no_orphans
from .contenders import Contender

# Seconds between two readings: of a cgroup, and of a process tree, which takes longer.
LOOK_CGROUP, LOOK_TREE = 0.01, 0.1
# Seconds for a server to end by itself.
GRACE = 3.0
# Connections that wait to be accepted: the server's are more, where it listens itself.
BACKLOG = 64
# How much of what the server has logged is kept for a message, in bytes.
LAST = 16_384


class Server:
    """A server that runs. `port`: on 127.0.0.1. `started`: by the monotonic clock."""

    def __init__(
        self, process: subprocess.Popen[bytes], group: str | None, log: IO[bytes], port: int
    ) -> None:
        self._process, self._group, self._log = process, group, log
        self.port = port
        self.started: float = time.monotonic()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    @property
    def kills(self) -> int:
        """How many of its processes the kernel has killed for want of memory."""
        return kills(self._group)

    @property
    def look_every(self) -> float:
        return LOOK_TREE if self._group is None else LOOK_CGROUP

    def used(self) -> int | None:
        """Return the bytes in use: of the cgroup, else of all processes (PSS)."""
        return _tree() if self._group is None else used_in(self._group)

    def last_lines(self) -> list[str]:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - LAST))
        return self._log.read().decode("utf-8", "replace").splitlines()


@contextlib.contextmanager
def served(
    contender: Contender,
    app: str,
    limit: int,
    given: Mapping[str, str],
    *,
    cgroup: bool,
) -> Iterator[Server]:
    """Start a server. At the end, end it, all that it has started, and its cgroup.

    The block must not be left by a signal while the server starts or ends: see `stopping.Stop`.
    Raises OSError if no process can be started.
    """
    with (
        memory_cgroup(limit) if cgroup else contextlib.nullcontext() as group,
        tempfile.TemporaryDirectory(prefix="lowmem-compare-") as runtime,
        tempfile.TemporaryFile() as log,
        no_orphans(),
    ):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(BACKLOG)
            port = listener.getsockname()[1]
            process = subprocess.Popen(
                inside(group, contender.command(app, listener.fileno())),
                env=contender.environ(given, limit, runtime),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                start_new_session=True,  # Ctrl-C is the command's alone
                # No other thread runs now, which could hold a lock.
                preexec_fn=end_with_parent,  # noqa: PLW1509
            )
        try:
            yield Server(process, group, log, port)
        finally:
            _end(process)


def can_limit(limit: int) -> bool:
    """Return whether a process can be put into a memory cgroup of its own here."""
    with memory_cgroup(limit) as group:
        return group is not None and subprocess.call(inside(group, ["true"])) == 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server as a platform does, then kill what is left of its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tree() -> int:
    """Return the memory of all processes below this one: of shared pages, each one's share."""
    import psutil

    total = 0
    for child in psutil.Process().children(recursive=True):
        share = stat_value(f"/proc/{child.pid}/smaps_rollup", "Pss:") * 1024
        total += share or status_bytes("VmRSS:", str(child.pid))
    return total


class Watch:
    """A thread that reads the memory of a server until the block ends."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.readings: list[tuple[float, int]] = []  # moments of the monotonic clock, bytes

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def last(self) -> int:
        return self.readings[-1][1] if self.readings else 0

    def _look(self) -> None:
        while not self._over.wait(self._server.look_every):
            used = self._server.used()
            if used is not None:
                self.readings.append((time.monotonic(), used))
