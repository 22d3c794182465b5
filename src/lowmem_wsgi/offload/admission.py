"""Admission of child processes: whether there is room for one more.

Two things decide: a list of the children that run, which all workers of this machine share, and the
memory that the container has left. The list is a file in the private directory, locked while a
process looks at it. Each look takes the children off that have ended.
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

# The interpreter's own use before it does anything (measured: 3 to 5 MB of its own on Python 3.10
# to 3.13, beside pages of files that all share).
INTERPRETER = 6 * MB
# Without `memory`: this much, or half of the limit where that is less.
MEMORY = 256 * MB
# Without at_once: as many as fit into all the memory there is, and no more than this.
MOST = 4
# Seconds between two looks, growing from the first to the second.
SOON, LATER = 0.005, 0.05
# Seconds after a child's end until its memory is back.
SETTLED = 0.5
# Seconds to wait for the list at most. A process that starts a child holds it that long.
PATIENCE = 5.0


class Request(NamedTuple):
    """A wish for room: one more of `at_once` children that run `name`, each of which may grow by
    `memory` bytes. `wait`: seconds."""

    name: str
    memory: int
    at_once: int | None
    wait: float


class Child(NamedTuple):
    """A child that runs. `born` tells it from a later process of the same pid."""

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

    `top`: bytes that the site may use, None where nobody enforces a limit. `held(pid)`: bytes that
    a child uses already, and `usage` includes.
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
    """Return the bytes that a child may come to use in all."""
    return INTERPRETER + memory


class Full(NamedTuple):
    """There is no room now. `others`: whether another child holds some, or has just ended."""

    reason: str
    others: bool


class Gate:
    """Lets children of this process start when there is room. For all threads. See `gate`."""

    def __init__(self) -> None:
        self._started: weakref.WeakSet[Started] = weakref.WeakSet()
        # The request of each process that waits for room.
        self._waiting: dict[int, object] = {}
        # The list where there is no private directory: this process's own children.
        self._own: list[Child] = []
        self._without_app: tuple[Memory, Settings] | None = None

    def start(self, request: Request, begin: Callable[[], S]) -> S:
        """Call `begin` as soon as there is room for the child.

        Raises OffloadTooLarge where there never will be. Raises OffloadBusy after `wait` seconds;
        at once where no other child holds room, or another request waits already.
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
        """Call `begin` if there is room for the child now. Raises OffloadTooLarge."""
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
        """Wait within. Raises OffloadBusy where another request of this process waits: a server
        has few threads, and each that waits is one less for the rest of the site.

        A thread of the app's own (`submit`) may always wait, and so may any thread under gevent,
        where a wait holds no thread.
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
        """Return the bytes that a child may grow by where `memory` is not given."""
        return min(MEMORY, self.look()[0].limit // 2)

    def look(self) -> tuple[Usage, int | None]:
        """Return the site's usage, and the bytes at which it turns critical: None where nobody
        enforces a limit. The app's settings hold, else the environment's."""
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
        """Return how many processes of the container the OOM killer has taken; None where the
        system does not say."""
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
        """Yield the children that run, and whether one has ended since the last look. A child that
        is appended is on the list from then on."""
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
        """Let go of the child in forks of this process."""
        self._started.add(child)

    def after_fork(self) -> None:
        """In a fork that the app has made: the children stay the parent's. They end with the
        parent, even while the fork lives on."""
        for child in list(self._started):
            child.let_go()


@functools.cache
def gate() -> Gate:
    """Return the process's gate. Nothing else makes one."""
    found = Gate()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=found.after_fork)
    return found


# --- The list


def _locked() -> int | None:
    """Return the open file of the list, locked, or None where it cannot be had."""
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
            if time.monotonic() > until:  # a process hangs: rather a child too many than none
                return file
        time.sleep(SOON)


def _unlock(file: int) -> None:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_UN)  # also for a fork that has the file open
    finally:
        os.close(file)


def _text(file: int) -> str:
    return os.pread(file, 64 * 1024, 0).decode("utf-8", "replace")


def _line(child: Child) -> str:
    return f"{child.pid} {child.born} {child.memory} {child.name}\n"


def _parse(text: str) -> list[Child]:
    """Leave out lines that name no child."""
    found = []
    for line in text.splitlines():
        words = line.split(" ")
        if len(words) == 4 and words[0].isdigit() and words[2].isdigit():
            found.append(Child(int(words[0]), words[1], int(words[2]), words[3]))
    return found


# --- One child


def born(pid: int) -> str:
    """Return when the process was started, in the system's own unit; "" where it does not run."""
    if os.path.exists("/proc/self/stat"):
        stat = read_stat(pid)
        return "" if stat is None or stat.ended else str(stat.started)
    import psutil

    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return ""


def anonymous(pid: int) -> int:
    """Return the bytes of its own that the process uses; 0 where the system does not say."""
    statm = read_statm(pid)
    return 0 if statm is None else statm.anonymous
