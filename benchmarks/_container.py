"""Gunicorn under a real memory limit, watched: what was used at most, and who was killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized, SynchronizedArray
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
from _common import APPS, MB, Server
from _load import Caller

# Without a memory cgroup, tests/helpers/cgroup.py skips its test, and we leave with the same
# reason. Nothing else of pytest is used there, and the bench group has none.
if "pytest" not in sys.modules:  # which tests of a benchmark's own parts have
    _pytest = ModuleType("pytest")
    vars(_pytest).update(skip=sys.exit, fail=sys.exit)
    sys.modules["pytest"] = _pytest

from helpers.cgroup import Cgroup, memory_cgroup
from helpers.servers import serve, wait_for

LIMIT = 512 * MB
LOOK_EVERY = 0.005  # s, at the usage; at RSS, which takes longer to read, each tenth time
TRACE_EVERY = 0.1  # s, a line of the trace
REST = 2.0  # s, the usage no longer falling
PAGE = os.sysconf("SC_PAGE_SIZE")


class Container:
    """Its peaks are those since it was made."""

    def __init__(
        self, group: Cgroup, peaks: SynchronizedArray[Any], every: Synchronized[float]
    ) -> None:
        self._group = group
        self._peaks = peaks
        self._every = every
        self.path: Path = group.path
        self.group = group

    @property
    def kills(self) -> int:
        """Processes that the kernel killed because the container was full."""
        return self._group.kills()

    @property
    def used_mb(self) -> float:
        """Now: the usage less the file cache that the kernel drops first."""
        return self._group.working_set() / MB

    @property
    def own_mb(self) -> float:
        """Of that, what is no file's: the page cache is left out."""
        return self._group.stat("anon" if self._group.version == 2 else "total_rss") / MB

    @property
    def peak_mb(self) -> float:
        """Of the usage less the file cache that the kernel drops first."""
        return float(self._peaks[0]) / MB

    def look_every(self, seconds: float) -> None:
        """Where many containers are watched at once, those at rest need fewer looks."""
        self._every.value = seconds

    @property
    def peak_rss_mb(self) -> float:
        """Of the sum over all processes, which counts shared pages once for each."""
        return float(self._peaks[1]) / MB


@contextlib.contextmanager
def container(size: int = LIMIT, trace: Path | None = None) -> Iterator[Container]:
    """Gone afterwards, with all that runs in it.

    `trace`: a file for lines of two numbers, the moment (time.monotonic) and the most bytes in use
    since the line before.
    """
    # A process of its own: load and watching would delay each other.
    context = multiprocessing.get_context("fork")
    with memory_cgroup(size) as group:
        peaks, every = context.Array("q", 2), context.Value("d", LOOK_EVERY)
        args = (group, peaks, every, trace, os.getpid())
        watcher = context.Process(target=_watch, args=args, daemon=True)
        watcher.start()
        try:
            yield Container(group, peaks, every)
        finally:
            watcher.kill()
            watcher.join()


def _watch(
    group: Cgroup,
    peaks: SynchronizedArray[Any],
    every: Synchronized[float],
    trace: Path | None,
    parent: int,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    looks, most, written = 0, 0, time.monotonic()
    with contextlib.nullcontext() if trace is None else trace.open("w", buffering=1) as lines:
        while os.getppid() == parent:
            used = group.working_set()
            peaks[0], most = max(peaks[0], used), max(most, used)
            if looks % 10 == 0:
                peaks[1] = max(peaks[1], _rss(group))
            looks += 1
            if lines is not None and (now := time.monotonic()) - written >= TRACE_EVERY:
                lines.write(f"{now:.3f} {most}\n")
                most, written = 0, now
            time.sleep(every.value)


def _rss(group: Cgroup) -> int:
    total = 0
    for pid in (group.path / "cgroup.procs").read_text().split():
        with contextlib.suppress(OSError, IndexError):  # it has ended meanwhile
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return total


# --- Servers in it

OURS, PLAIN = "ours", "plain"
# What `lowmem-wsgi run` sets.
TUNED = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(8 * MB),
    "MALLOC_MMAP_THRESHOLD_": str(4 * MB),
    "OPENBLAS_NUM_THREADS": "1",
}
_DEATH = re.compile(r"Worker \(pid:\s*\d+\) (?:was sent SIG\w+|exited with code [1-9]\d*)")


@dataclass(frozen=True)
class Served:
    server: Server
    container: Container

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def master(self) -> int:
        return self.server.process.pid

    @property
    def deaths(self) -> int:
        """Processes that ended otherwise than in order: workers, and the master."""
        return len(_DEATH.findall(self.server.log)) + (self.server.process.poll() is not None)

    @property
    def boots(self) -> int:
        return self.server.log.count("Booting worker")

    def worker(self) -> int:
        """The youngest one."""
        while not (pids := self.server.workers()):
            time.sleep(0.01)
        return max(pids, key=_started)


def _started(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return 0.0


@contextlib.contextmanager
def served(
    side: str,
    app: str,
    directory: Path,
    *,
    workers: int = 1,
    kind: str = "gthread",
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    tuned: bool = True,
) -> Iterator[Served]:
    """Gunicorn in a new container, answering already: with our config and the environment of
    `lowmem-wsgi run` (where it is `tuned`), or as it comes. `env` is for both, `LOWMEM_*` does
    nothing to the latter."""
    environ: dict[str, Any] = {"XDG_RUNTIME_DIR": str(directory), **(env or {})}
    how: dict[str, Any] = {"workers": workers}
    if side == OURS:
        how = {"config": "python:lowmem_wsgi.gunicorn"}
        environ |= {**(TUNED if tuned else {}), "WEB_CONCURRENCY": str(workers)}
        if kind == "sync":  # which it stays only without threads
            options = [*options, "-k", "sync", "--threads", "1"]
    for name in TUNED:  # from the benchmark's own environment
        os.environ.pop(name, None)
    with in_container(app, kind, directory, options=options, **how, **environ) as found:
        yield found


@contextlib.contextmanager
def in_container(app: str, kind: str, directory: Path, **how: Any) -> Iterator[Served]:
    """An app in a new container, answering already. `how`: see `serve`."""
    with (
        container() as limited,
        serve(app, kind, tmp_path=directory, cwd=APPS, cgroup=limited.path, **how) as server,
    ):
        caller = Caller(server.port)
        wait_for(lambda: caller.ask("/").ok, lambda: f"an answer: {server.log}")
        yield Served(server, limited)


def at_rest(found: Served) -> float:
    """MB in use, once that no longer falls."""
    least, since = float("inf"), time.monotonic()

    def settled() -> bool:
        nonlocal least, since
        used = found.container.used_mb
        if used < least - 0.1:
            least, since = used, time.monotonic()
        return time.monotonic() - since > REST

    wait_for(settled, "the container to come to rest")
    return found.container.used_mb
