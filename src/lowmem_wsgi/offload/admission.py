"""Whether there is room for one more child: a list of those that run, which all workers of this
machine share, and what the container has left.

The list is a file in the private directory, locked while it is looked at. Whoever looks takes those
off that do not run any more.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, TypeVar

from .. import log
from ..imports.tracker import WATCH
from ..memory.reading import Memory
from ..settings import MB, Settings, format_size, threshold_bytes
from ..system.procfs import read_stat, read_statm
from ..system.usage import Usage
from .errors import OffloadBusy, OffloadTooLarge

# What the interpreter itself uses before it does anything (measured: 3 to 5 MB of its own on
# Python 3.10 to 3.13, beside pages of files that all share).
INTERPRETER = 6 * MB
# Without `memory`: so much, or half of the limit where that is less.
MEMORY = 256 * MB
# Without at_once: as many as fit into all the memory there is, and no more than this.
MOST = 4
# Seconds between two looks, growing from the first to the second.
SOON, LATER = 0.005, 0.05
# Seconds for what a child has used to be back after its end.
SETTLED = 0.5
# The list is in use for as long as a process takes to start: seconds to wait for it at most.
PATIENCE = 5.0


class Request(NamedTuple):
    """For what there is to be room: one more of `at_once` children that run `name`, of which each
    may grow by `memory` bytes. `wait`: seconds."""

    name: str
    memory: int
    at_once: int | None
    wait: float


class Child(NamedTuple):
    """One that runs. `born`: tells it from a later process of the same pid."""

    pid: int
    born: str
    memory: int
    name: str


class Started(Protocol):
    pid: int


S = TypeVar("S", bound=Started)


def reason_to_wait(
    request: Request,
    running: list[Child],
    usage: Usage,
    top: int | None,
    held: Callable[[int], int],
) -> str | None:
    """Why the child may not be started now; None: it may.

    `top`: bytes that the site may use, None where nobody enforces a limit. `held(pid)`: bytes that
    a child uses already, which `usage` has in it.
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
    """What a child may come to use in all, bytes."""
    return INTERPRETER + memory


class Full(NamedTuple):
    """There is no room now. `others`: whether some child holds some, or has just ended."""

    reason: str
    others: bool


def start_in(request: Request, begin: Callable[[], S]) -> S:
    """`begin` the child as soon as there is room for it.

    Raises OffloadTooLarge where there never will be. Raises OffloadBusy after `wait` seconds; at
    once where no other child holds room, or another request waits already.
    """
    until = time.monotonic() + request.wait
    found = attempt(request, begin)
    if isinstance(found, Full) and found.others and request.wait > 0:
        with _place(request, found.reason):
            seen, pause = time.monotonic(), SOON
            while isinstance(found, Full):
                left = min(until, seen + SETTLED) - time.monotonic()
                if left <= 0:
                    break
                time.sleep(min(pause, left))
                pause = min(2 * pause, LATER)
                found = attempt(request, begin)
                if isinstance(found, Full) and found.others:
                    seen = time.monotonic()
    if isinstance(found, Full):
        raise OffloadBusy(f"no room for {request.name}: {found.reason}")
    return found


def attempt(request: Request, begin: Callable[[], S]) -> S | Full:
    """`begin` the child if there is room for it now. Raises OffloadTooLarge."""
    with children() as (running, ended):
        usage, top = look()
        if top is not None and size(request.memory) > top:
            raise OffloadTooLarge(
                f"{request.name} can never run here: its memory= is {format_size(request.memory)}, "
                f"and the limit of {format_size(usage.limit)} leaves a child "
                f"{format_size(max(0, top - INTERPRETER))} at most"
            )
        reason = reason_to_wait(request, running, usage, top, anonymous)
        if reason is None:
            started = begin()
            running.append(Child(started.pid, born(started.pid), request.memory, request.name))
            return started
        if not running:
            reason += ", and no other child holds room"
        return Full(reason, bool(running) or ended)


# The request of each process that waits for room.
_waiting: dict[int, object] = {}


@contextlib.contextmanager
def _place(request: Request, reason: str) -> Iterator[None]:
    """Wait in here. Raises OffloadBusy where another request of this process does: a server has few
    threads, and each that waits is one less for the rest of the site.

    Not for who waits in a thread of the app's own (`submit`), nor under gevent, where a wait holds
    no thread.
    """
    if WATCH.route() is None or time.sleep.__module__ != "time":
        yield
        return
    me, pid = object(), os.getpid()
    if _waiting.setdefault(pid, me) is not me:
        raise OffloadBusy(
            f"no room for {request.name}: {reason}, and another request waits for room already"
        )
    try:
        yield
    finally:
        del _waiting[pid]


def default_memory() -> int:
    """What a child may grow by where nobody says: bytes."""
    return min(MEMORY, look()[0].limit // 2)


def look() -> tuple[Usage, int | None]:
    """What the site uses, and how far it may: where it turns critical."""
    memory, top = _memory()
    usage = memory.read()
    return usage, top(usage.limit) if usage.source != "process" else None


def out_of_memory_kills() -> int | None:
    """How many processes of the container the OOM killer has taken; None where none is told."""
    return _memory()[0].kills()


def _memory() -> tuple[Memory, Callable[[int], int]]:
    """The reading, and from the limit the bytes where it turns critical: by the app's settings,
    else by the environment's."""
    from ..runtime import current

    engine = current()
    if engine is not None:
        return engine.memory, lambda limit: engine.monitor.thresholds[1]
    return _without_app()


@functools.cache
def _without_app() -> tuple[Memory, Callable[[int], int]]:
    rules = Settings.load()
    memory = Memory(rules.memory_limit)
    return memory, lambda limit: threshold_bytes(rules.critical_at, limit)


# --- The list


@contextlib.contextmanager
def children() -> Iterator[tuple[list[Child], bool]]:
    """Those that run, and whether one has ended since anybody looked last. Whoever is appended is
    on the list from then on."""
    file = _locked()
    try:
        before = _here if file is None else _parse(_text(file))
        running = [child for child in before if child.born and child.born == born(child.pid)]
        yield running, len(running) < len(before)
        if file is None:
            _here[:] = running
        elif running != before:
            os.ftruncate(file, 0)
            os.pwrite(file, "".join(_line(child) for child in running).encode(), 0)
    finally:
        if file is not None:
            _unlock(file)


# Where there is no private directory: those of this process alone.
_here: list[Child] = []


def _locked() -> int | None:
    """The open file of the list, locked; None where it cannot be had."""
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
            if time.monotonic() > until:  # somebody hangs: rather one child too many than none
                return file
        time.sleep(SOON)


def _unlock(file: int) -> None:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_UN)  # also for who was forked meanwhile and has it open
    finally:
        os.close(file)


def _text(file: int) -> str:
    return os.pread(file, 64 * 1024, 0).decode("utf-8", "replace")


def _line(child: Child) -> str:
    return f"{child.pid} {child.born} {child.memory} {child.name}\n"


def _parse(text: str) -> list[Child]:
    """Lines that are no such are left out."""
    found = []
    for line in text.splitlines():
        words = line.split(" ")
        if len(words) == 4 and words[0].isdigit() and words[2].isdigit():
            found.append(Child(int(words[0]), words[1], int(words[2]), words[3]))
    return found


# --- One child


def born(pid: int) -> str:
    """When the process was started, in what the system counts; nothing where it does not run."""
    if os.path.exists("/proc/self/stat"):
        stat = read_stat(pid)
        return "" if stat is None or stat.ended else str(stat.started)
    import psutil

    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return ""


def anonymous(pid: int) -> int:
    """Bytes of its own that the process uses; 0 where that cannot be told."""
    statm = read_statm(pid)
    return 0 if statm is None else statm.anonymous
