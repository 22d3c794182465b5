"""Decide whether there is room for one more child process.

The decision depends on the list of running children, which all workers of this machine share, and
on the memory left in the container. The list is a file in the private directory. A process locks
the file while it reads the list, and removes the children that have ended.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
import weakref
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, TypeVar

from .. import log
from ..memory.reading import Memory
from ..settings import MB, Settings, format_size, threshold_bytes
from ..system.procfs import read_stat, read_statm
from ..system.usage import Usage
from .errors import OffloadBusy, OffloadTooLarge

# Memory of a bare interpreter (measured: 3 to 5 MB of its own on Python 3.10 to 3.13, besides pages
# of files that all processes share).
INTERPRETER = 6 * MB
# Without `memory`: so many bytes, or half of the limit if that is less.
MEMORY = 256 * MB
# Without `at_once`: as many children as fit into the whole memory, but at most so many.
MOST = 4
# Seconds between two attempts, growing from SOON to LATER.
SOON, LATER = 0.005, 0.05
# Seconds after a child's end until its memory is back.
SETTLED = 0.5
# The most seconds to wait for the list. A process holds the list while it starts a child.
PATIENCE = 5.0


class Request(NamedTuple):
    """A request for room for one child that runs function `name`.

    `memory`: bytes that the child may grow by. `at_once`: the most children that may run the
    function. `wait`: seconds.
    """

    name: str
    memory: int
    at_once: int | None
    wait: float


class Child(NamedTuple):
    """A running child. `born` distinguishes the child from a later process with the same pid."""

    pid: int
    born: str
    memory: int
    name: str


class Started(Protocol):
    """A child that this process has started."""

    pid: int

    def let_go(self) -> None:
        """Close this process's end of the child's lifeline."""
        ...


S = TypeVar("S", bound=Started)


def reason_to_wait(
    request: Request,
    running: list[Child],
    usage: Usage,
    top: int | None,
    held: Callable[[int], int],
) -> str | None:
    """Return why the child may not be started now, or None if it may.

    `top`: bytes that the site may use, None if no limit is enforced. `held(pid)`: bytes that a
    child already uses, which `usage` includes.
    """
    at_once = request.at_once or max(1, min(MOST, usage.limit // size(request.memory)))
    same = sum(child.name == request.name for child in running)
    if same >= at_once:
        return f"{same} of {at_once} at once are running"
    if top is None:
        return None
    promised = sum(max(0, size(child.memory) - held(child.pid)) for child in running)
    free, needed = top - usage.used - promised, size(request.memory)
    if free < needed:
        return (
            f"it may come to {format_size(needed)}, and {format_size(max(0, free))} are left below "
            f"{format_size(top)}"
        )
    return None


def size(memory: int) -> int:
    """Return the most bytes that a child may use in all."""
    return INTERPRETER + memory


class Full(NamedTuple):
    """No room now. `others`: whether another child holds room, or has just ended."""

    reason: str
    others: bool


class Gate:
    """Start children of this process when there is room. Thread-safe. See `gate`."""

    def __init__(self) -> None:
        self._started: weakref.WeakSet[Started] = weakref.WeakSet()
        # pid of a process -> its request that waits for room.
        self._waiting: dict[int, object] = {}
        # Without a private directory, the list of this process's own children.
        self._own: list[Child] = []
        self._without_app: tuple[Memory, Settings] | None = None

    def start(self, request: Request, begin: Callable[[], S]) -> S:
        """Call `begin` as soon as there is room for the child. Return its result.

        Raises OffloadTooLarge if the child can never fit. Raises OffloadBusy after `wait` seconds,
        or at once if no other child holds room or another request already waits.
        """
        until = time.monotonic() + request.wait
        found = self.attempt(request, begin)
        if isinstance(found, Full) and found.others and request.wait > 0:
            with self._wait(request, found.reason):
                seen, pause = time.monotonic(), SOON
                while isinstance(found, Full):
                    left = min(until, seen + SETTLED) - time.monotonic()
                    if left <= 0:
                        break
                    time.sleep(min(pause, left))
                    pause = min(2 * pause, LATER)
                    found = self.attempt(request, begin)
                    if isinstance(found, Full) and found.others:
                        seen = time.monotonic()
        if isinstance(found, Full):
            raise OffloadBusy(f"no room for {request.name}: {found.reason}")
        return found

    def attempt(self, request: Request, begin: Callable[[], S]) -> S | Full:
        """Call `begin` if there is room for the child now, else return Full.

        Raises OffloadTooLarge if the child can never fit.
        """
        with self.children() as (running, ended):
            usage, top = self.look()
            if top is not None and size(request.memory) > top:
                raise OffloadTooLarge(
                    f"{request.name} can never run here: its memory= is "
                    f"{format_size(request.memory)}, and the limit of {format_size(usage.limit)} "
                    f"leaves a child {format_size(max(0, top - INTERPRETER))} at most"
                )
            reason = reason_to_wait(request, running, usage, top, anonymous)
            if reason is None:
                started = begin()
                running.append(Child(started.pid, born(started.pid), request.memory, request.name))
                return started
            if not running:
                reason += ", and no other child holds room"
            return Full(reason, bool(running) or ended)

    @contextlib.contextmanager
    def _wait(self, request: Request, reason: str) -> Iterator[None]:
        """Let only one request of this process wait at a time. Raise OffloadBusy for another.

        A server has few threads, and a waiting thread serves no other request. A thread of the
        app's own (`submit`) may always wait. So may any thread under gevent, where a wait holds no
        thread.
        """
        from ..runtime import current

        engine = current()
        if engine is None or engine.where() is None or time.sleep.__module__ != "time":
            yield
            return
        me, pid = object(), os.getpid()
        if self._waiting.setdefault(pid, me) is not me:
            raise OffloadBusy(
                f"no room for {request.name}: {reason}, and another request waits for room already"
            )
        try:
            yield
        finally:
            del self._waiting[pid]

    def default_memory(self) -> int:
        """Return the bytes that a child may grow by if `memory` is not given."""
        return min(MEMORY, self.look()[0].limit // 2)

    def look(self) -> tuple[Usage, int | None]:
        """Return the site's usage, and the critical threshold in bytes (None without a limit).

        The limit and the threshold come from the app's settings, else from the environment.
        """
        from ..runtime import current

        engine = current()
        if engine is None:
            memory, settings = self._alone()
            usage = memory.read()
            top = threshold_bytes(settings.critical_at, usage.limit)
        else:
            usage, top = engine.memory.read(), engine.levels.critical
        return usage, None if usage.source == "process" else top

    def kills(self) -> int | None:
        """Return how many processes of the container the OOM killer has ended.

        None where the system reports no count.
        """
        from ..runtime import current

        engine = current()
        return (self._alone()[0] if engine is None else engine.memory).kills()

    def _alone(self) -> tuple[Memory, Settings]:
        """Return the reading and the settings of a process without LowMemory."""
        if self._without_app is None:
            settings = Settings.load()
            self._without_app = Memory(settings.memory_limit), settings
        return self._without_app

    @contextlib.contextmanager
    def children(self) -> Iterator[tuple[list[Child], bool]]:
        """Yield the running children, and whether one has ended since the last look.

        The list is locked meanwhile. A child that you append stays on the list.
        """
        file = _locked()
        try:
            before = self._own if file is None else _parse(_text(file))
            running = [child for child in before if child.born and child.born == born(child.pid)]
            yield running, len(running) < len(before)
            if file is None:
                self._own[:] = running
            elif running != before:
                os.ftruncate(file, 0)
                os.pwrite(file, "".join(_line(child) for child in running).encode(), 0)
        finally:
            if file is not None:
                _unlock(file)

    def add(self, child: Started) -> None:
        """Register a child, so that forks of this process close its lifeline."""
        self._started.add(child)

    def after_fork(self) -> None:
        """Close the children's lifelines in a fork that the app has made.

        The children belong to the parent, and end with the parent even if the fork lives on.
        """
        for child in list(self._started):
            child.let_go()


@functools.cache
def gate() -> Gate:
    """Return the process's only gate."""
    found = Gate()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=found.after_fork)
    return found


# --- The list


def _locked() -> int | None:
    """Return the open and locked file of the list, or None if it cannot be opened."""
    from ..system.private_dir import Refused, private_directory, runtime_directory

    try:
        import fcntl

        path = os.path.join(private_directory(runtime_directory()), "offloaded")
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        file = os.open(path, flags, 0o600)
    except (OSError, Refused, ImportError):
        log.failure("The list of child processes that all workers share")
        return None
    until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError:
            if time.monotonic() > until:  # a process hangs: better one child too many than none
                return file
        time.sleep(SOON)


def _unlock(file: int) -> None:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_UN)  # explicitly: a fork may have the file open too
    finally:
        os.close(file)


def _text(file: int) -> str:
    return os.pread(file, 64 * 1024, 0).decode("utf-8", "replace")


def _line(child: Child) -> str:
    return f"{child.pid} {child.born} {child.memory} {child.name}\n"


def _parse(text: str) -> list[Child]:
    """Return the children on the list. Skip malformed lines."""
    found = []
    for line in text.splitlines():
        words = line.split(" ")
        if len(words) == 4 and words[0].isdecimal() and words[2].isdecimal():
            found.append(Child(int(words[0]), words[1], int(words[2]), words[3]))
    return found


# --- One child


def born(pid: int) -> str:
    """Return the start of the process, in the system's own unit; "" if it does not run."""
    if os.path.exists("/proc/self/stat"):
        stat = read_stat(pid)
        return "" if stat is None or stat.ended else str(stat.started)
    import psutil

    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return ""


def anonymous(pid: int) -> int:
    """Return the process's own (anonymous) memory in bytes; 0 where the system reports none."""
    statm = read_statm(pid)
    return 0 if statm is None else statm.anonymous
