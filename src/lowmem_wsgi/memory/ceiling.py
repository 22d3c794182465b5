"""The ceiling: a request that asks for too much fails, and not the container.

RLIMIT_DATA (setrlimit(2), Linux 4.7) bounds what a process may map for data. Kept where the
container would be full, it turns an allocation that would bring the kernel's OOM killer into a
MemoryError in the request that asks for it.

The kernel counts what is mapped, the container what is used. So these are set apart:

* anonymous memory in use (`resident - shared` of /proc/self/statm): counts fully;
* thread stacks: mapped at 8 MB each and hardly used; they do not count;
* what libraries map for themselves and do not touch (OpenBLAS, 40 MB a thread): does not count;
* holes that `malloc_trim` gave back: mapped, not in use, and filled again without asking. They
  count as used, but new mappings have some room beside them: one allocator's holes are no use to
  another's arenas, and the watchdog looks often enough to see holes filled.

The limit has two steps. The working limit is a reserve below the true one: a heap that is full to
the last byte cannot even run `except MemoryError`. Whoever notices first opens the reserve.

The soft limit alone is moved. Child processes inherit it, and may lift it up to the hard one.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable

from ..settings import MB
from ..system.native import original
from ..system.procfs import Kept, Statm, parse_statm, read_stat
from ..system.usage import Usage

# What stays free under the container's limit: for the kernel's own (page tables, sockets), for
# other processes' growth between two looks, for pages shared with the master that get copied.
RESERVE_SHARE = 1 / 12
# What stays free under the second step of the limit, for whoever handles a MemoryError.
LAST_SHARE = 1 / 24
# The reserve stays open for so long (seconds) after it was asked for.
OPEN = 1.0
# However many holes there are, so much (bytes) of the room may be mapped anew between two looks.
SLACK = 64 * MB
# However full the container is: so much (bytes) more than at first a process may map. A new worker
# beside an old one that is large could not even read a request else.
START = 12 * MB
# Loading a heavy package takes so much (bytes) of anonymous memory: pandas 40 MB, matplotlib 40,
# scipy.stats 56 (x86-64, CPython 3.11). Where there is less, loading is refused before it begins.
PACKAGE = 56 * MB
# Seconds for which a hit is remembered.
LATELY = 30.0
# Met so often in so long (seconds), it is not by single requests.
MANY, JUST_NOW = 10, 1.0
# A change smaller than this (bytes) is left for later.
STEP = 256 * 1024
# What a thread's stack maps where RLIMIT_STACK does not say (pthread_create(3), x86 and ARM).
USUAL_STACK = 8 * MB


def room_for(usage: Usage, workers: int, reserve: float = RESERVE_SHARE) -> int:
    """Bytes that each of `workers` processes alike may use more before the reserve (a share of the
    limit) is touched."""
    return max(0, int(usage.limit * (1 - reserve)) - usage.used) // max(1, workers)


def new_mappings(room: int, holes: int) -> int:
    """Bytes that a process may map anew, with `room` in the container and `holes` in its heap."""
    return max(room - holes, min(room, SLACK))


class Ceiling:
    """Call `arm` again and again. Does nothing on a system without it.

    `wanted`: True, False, or None for "where the limit is one that something enforces". `read`
    gives what the site uses; `workers` tells how many processes like this one share the container.
    """

    def __init__(
        self,
        wanted: bool | None,
        read: Callable[[], Usage],
        *,
        workers: Callable[[], int] = lambda: 1,
        proc: str = "/proc",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._workers = workers
        self._now = now
        self._wanted = wanted is not False and sys.platform == "linux"
        self._anywhere = wanted is True
        self._proc = proc
        self._before: tuple[int, int] | None = None
        self._hits: deque[float] = deque(maxlen=MANY)
        self._forget()

    def _forget(self) -> None:
        self.limit: int | None = None  # the working limit, bytes
        self.usage: Usage | None = None  # of the container, at the last look
        self.left: int | None = None  # until it is met, at the last look
        self.room: int | None = None  # of that container, this process's share
        self.whole = 0  # of that container, all the room there is
        self._sharers = 1
        self.anonymous = 0  # in use, at the last look
        self.holes = 0  # mapped, given back and not in use, at the last look
        self._first_hit = self._last_hit = float("-inf")
        self._in_force: int | None = None
        self._least: int | None = None
        self._stacks = 0
        self._statm: Kept | None = None
        # Mapped by libraries for themselves and not used: no room, and no holes.
        self._unused: int | None = None
        self._raised: tuple[int, int] | None = None  # the second step, made beforehand
        self._open_until = float("-inf")
        self._loading: dict[int, int] = {}  # thread that loads a package -> unused before
        self._lock = original("_thread", "allocate_lock")()
        self._hits.clear()

    def arm(self, coming: int = 0, usage: Usage | None = None) -> None:
        """Keep the ceiling where the container would be full. `coming`: threads about to start;
        `usage`: the container's, where it was read just now."""
        if self._wanted and self._count_stacks():
            self._sharers = max(1, self._workers())
            self._keep(coming * _stack_size(), usage)

    def keep(self) -> None:
        """The same at a glance: with as many threads and workers as there were."""
        if self._wanted:
            self._keep(0)

    def _count_stacks(self) -> bool:
        """Return whether the system tells how many threads there are."""
        stat = read_stat(proc=self._proc)
        if stat is None:
            return False
        self._stacks = (stat.threads - 1) * _stack_size()
        return True

    def _keep(self, coming: int, usage: Usage | None = None) -> None:
        # Read this process first: growth between the two reads is then counted twice rather than
        # missed. (What the monitor has read a moment ago misses little.)
        mapped = self._mapped()
        if mapped is None:  # no /proc here, or somebody has closed our file
            return
        data, anonymous = mapped.data, mapped.anonymous
        usage = usage or self._read()
        if not self.holds_for(usage):
            self._release()  # the container's limit was lifted
            return
        idle = max(0, data - anonymous - self._stacks)
        if self._least is None or self._unused is None:
            self._least = data + START
            self._unused = idle
        self.anonymous, self.usage = anonymous, usage
        self.holes = max(0, idle - self._unused)
        self.whole = room_for(usage, 1)
        self.room = room = self.whole // self._sharers
        limit = data + new_mappings(room, self.holes)
        limit = max(limit, self._least, data + coming)
        given = self._given()
        limit = min(limit, *given)
        self.left = min(room, limit - data)
        last = data + new_mappings(room_for(usage, 1, LAST_SHARE), self.holes)
        step = min(given) if self._loading else min(max(limit, last), *given)
        self._raised = (step, self._hard())
        is_open = self._loading or self._now() < self._open_until
        self._put(limit, step if is_open else limit)

    def _put(self, limit: int, in_force: int) -> None:
        self.limit = limit
        if self._in_force is None or abs(in_force - self._in_force) >= STEP:
            self._set(in_force)

    def open_reserve(self) -> None:
        """Let this process have the reserve for OPEN seconds: to handle a MemoryError.

        The first thing to do about one. Allocates nothing before there is something to be had.
        """
        raised = self._raised
        if raised is not None and self._wanted:
            import resource  # loaded already, by whoever made `raised`

            resource.setrlimit(resource.RLIMIT_DATA, raised)
            self._in_force = raised[0]
            self._open_until = self._now() + OPEN

    def load_begins(self) -> None:
        """This thread is about to load a heavy package: map freely until `load_ends`.

        Raises MemoryError where the container has too little for one. A library that cannot map
        its buffers may end the process (OpenBLAS calls exit(1)), and one that is half loaded
        cannot be loaded again.
        """
        if self.limit is None:
            return
        usage = self._read()
        if usage.limit - usage.used < PACKAGE:
            raise MemoryError("too little memory left to load a heavy package")
        self._loading[threading.get_ident()] = self._idle()
        self._raised = (min(self._given()), self._hard())  # also for who opens the reserve
        self._put(self.limit, self._raised[0])

    def load_ends(self) -> None:
        """What the package has mapped and not touched does not count from now on."""
        before = self._loading.pop(threading.get_ident(), None)
        if before is not None and self._unused is not None:
            self._unused += max(0, self._idle() - before)
            self.arm()

    def _idle(self) -> int:
        """Return the bytes mapped and not in use, without the stacks of the threads there are."""
        self._count_stacks()
        mapped = self._mapped()
        return 0 if mapped is None else max(0, mapped.data - mapped.anonymous - self._stacks)

    def possible(self) -> bool:
        """Whether there is one here."""
        return self.holds_for(self._read())

    def holds_for(self, usage: Usage) -> bool:
        return self._wanted and (self._anywhere or usage.source != "process")

    def hit(self) -> None:
        """A request has met it."""
        now = self._now()
        if now - self._last_hit > LATELY:
            self._first_hit = now
        self._last_hit = now
        self._hits.append(now)

    def hit_since(self) -> float | None:
        """Seconds since requests began to meet it; None where none has lately."""
        now = self._now()
        return now - self._first_hit if now - self._last_hit <= LATELY else None

    def met_by_one(self) -> bool:
        """Whether it was met just now, by a request or a few that asked for too much and give it
        back; not by all that come."""
        return 0 < self._lately() < MANY

    def met_by_all(self) -> bool:
        """Whether it is met time and again: this worker is full."""
        return self._lately() >= MANY

    def _lately(self) -> int:
        since = self._now() - JUST_NOW
        return sum(at > since for at in list(self._hits))

    def after_fork(self) -> None:
        """In a new child: it is the parent's that is in force."""
        self._forget()

    def lift(self) -> None:
        """Take it away for good: the limit is what it was."""
        self._wanted = False
        self._release()

    def _release(self) -> None:
        with self._lock:
            if self._before is not None:
                import resource

                resource.setrlimit(resource.RLIMIT_DATA, self._before)
            self._before = self.limit = self.left = self.room = None
            self.usage = None
            self._in_force = self._raised = None

    def _set(self, limit: int) -> None:
        import resource

        with self._lock:
            if self._before is None:
                self._before = resource.getrlimit(resource.RLIMIT_DATA)
            if self._wanted:
                resource.setrlimit(resource.RLIMIT_DATA, (limit, self._before[1]))
                self._in_force = limit

    def _given(self) -> list[int]:
        """The limits that were there before, which hold as well."""
        import resource

        before = self._before or resource.getrlimit(resource.RLIMIT_DATA)
        return [bound if bound != resource.RLIM_INFINITY else sys.maxsize for bound in before]

    def _hard(self) -> int:
        import resource

        return (self._before or resource.getrlimit(resource.RLIMIT_DATA))[1]

    def _mapped(self) -> Statm | None:
        """Return what this process has mapped; None where nobody tells."""
        if self._statm is None:
            self._statm = Kept(f"{self._proc}/self/statm")
        found = parse_statm(self._statm.read())
        if found is None:
            self._statm.forget()
        return found


def _stack_size() -> int:
    import resource

    size = threading.stack_size() or resource.getrlimit(resource.RLIMIT_STACK)[0]
    return size if 0 < size < 64 * MB else USUAL_STACK
