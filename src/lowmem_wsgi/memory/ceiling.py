"""Keep the ceiling: a request that asks for too much memory fails, instead of the container.

RLIMIT_DATA (setrlimit(2), Linux 4.7) bounds the data that a process may map. LowMemory keeps this
limit at the point where the container would be full. An allocation that would bring the kernel's
OOM killer then raises a MemoryError in the request that allocates.

The limit counts mapped memory, the container counts used memory. So LowMemory treats apart:

* anonymous memory in use (`resident - shared` of /proc/self/statm): counts fully;
* thread stacks, mostly mapped at 8 MB each and hardly used: do not count;
* memory that libraries map and do not touch (OpenBLAS, 40 MB a thread): does not count;
* holes that `malloc_trim` gave back: mapped, not in use, and filled again without a new mapping.
  Holes count as used, but new mappings get some room beside them: another allocator's arenas cannot
  use the holes, and the watchdog looks often enough to see holes filled.

The limit has two steps. The working limit leaves a reserve below the true limit: with a heap full
to the last byte, Python cannot even run `except MemoryError`. The first code that notices the
shortage opens the reserve.

LowMemory moves only the soft limit. Child processes inherit the soft limit, and may raise it up to
the hard limit.
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

# The share of the container's limit that stays free for the kernel (page tables, sockets), for the
# growth of other processes between two looks, and for copies of pages shared with the master.
RESERVE_SHARE = 1 / 12
# The share that stays free under the second step of the limit, to handle a MemoryError.
LAST_SHARE = 1 / 24
# Seconds for which the reserve stays open.
OPEN = 1.0
# Bytes that new mappings may take of the room between two looks, however many holes there are.
SLACK = 64 * MB
# Bytes that a process may map above its first size, however full the container is. Without them, a
# new worker beside a large old worker could not even read a request.
START = 12 * MB
# Anonymous memory (bytes) that loading a heavy package takes: pandas 40 MB, matplotlib 40,
# scipy.stats 56 (x86-64, CPython 3.11). With less memory left, LowMemory refuses the load before
# the load begins.
PACKAGE = 56 * MB
# Seconds for which a hit counts.
LATELY = 30.0
# MANY hits within JUST_NOW seconds are not the fault of single requests.
MANY, JUST_NOW = 10, 1.0
# Do not set the limit again for a change smaller than this (bytes).
STEP = 256 * 1024
# The size of a thread's stack when RLIMIT_STACK is unlimited (pthread_create(3), x86-64 and ARM).
USUAL_STACK = 2 * MB


def room_for(usage: Usage, workers: int, reserve: float = RESERVE_SHARE) -> int:
    """Return the bytes that each of `workers` equal processes may still use.

    `reserve`: the share of the limit to leave free.
    """
    return max(0, int(usage.limit * (1 - reserve)) - usage.used) // max(1, workers)


def new_mappings(room: int, holes: int) -> int:
    """Return the bytes that new mappings of a process may take.

    `room`: bytes free in the container. `holes`: bytes of holes in the process's heap.
    """
    return max(room - holes, min(room, SLACK))


class Ceiling:
    """The ceiling of one process. Call `arm` regularly. Does nothing without RLIMIT_DATA.

    `wanted`: True, False, or None for "if the system enforces the limit". `read`: return the site's
    memory use. `workers`: return how many processes like this one share the container. `proc`: a
    directory in place of /proc, for tests. `now`: a monotonic clock in seconds.
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
        self.left: int | None = None  # bytes until the limit is met, at the last look
        self.room: int | None = None  # this process's share of `whole`, bytes
        self.whole: int = 0  # bytes free in the container, at the last look
        self._sharers = 1
        self.anonymous: int = 0  # bytes in use, at the last look
        self.holes: int = 0  # bytes mapped, given back and not in use, at the last look
        self._first_hit = self._last_hit = float("-inf")
        self._in_force: int | None = None
        self._least: int | None = None
        self._stacks = 0
        self._statm: Kept | None = None
        # Bytes that libraries have mapped and do not use: neither room nor holes.
        self._unused: int | None = None
        self._raised: tuple[int, int] | None = None  # the second step; made before it is needed
        self._open_until = float("-inf")
        self._loading: set[int] = set()  # threads that load packages
        self._before_loads = (0, 0)  # bytes mapped, and mapped and not in use
        self._lock = original("_thread", "allocate_lock")()
        self._hits.clear()

    def arm(self, coming: int = 0) -> None:
        """Set the limit to the point where the container would be full.

        `coming`: threads about to start.
        """
        if self._wanted and self._count_stacks():
            self._sharers = max(1, self._workers())
            self._keep(coming * _stack_size())

    def keep(self) -> None:
        """Do the same as `arm`, but cheaper: with the earlier counts of threads and workers."""
        if self._wanted:
            self._keep(0)

    def _count_stacks(self) -> bool:
        """Return whether the system reports the number of threads."""
        stat = read_stat(proc=self._proc)
        if stat is None:
            return False
        self._stacks = (stat.threads - 1) * _stack_size()
        return True

    def _keep(self, coming: int) -> None:
        # Read this process first: growth between the two reads is then counted twice rather than
        # missed. (A usage that the monitor read 40 ms ago missed 26 MB.)
        mapped = self._mapped()
        if mapped is None:  # no /proc here, or other code has closed our file
            return
        data, anonymous = mapped.data, mapped.anonymous
        usage = self._read()
        if not self.holds_for(usage):
            self._release()  # the container has no limit any more
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
        """Let this process use the reserve for OPEN seconds, to handle a MemoryError.

        Call this first when you catch a MemoryError. Allocates nothing before the limit is raised.
        """
        raised = self._raised
        if raised is not None and self._wanted:
            import resource  # loaded already by the code that made `_raised`

            resource.setrlimit(resource.RLIMIT_DATA, raised)
            self._in_force = raised[0]
            self._open_until = self._now() + OPEN

    def load_begins(self) -> None:
        """Let this thread load a heavy package: raise the limit until `load_ends`.

        Raises MemoryError if the container has less than PACKAGE bytes left. A library that cannot
        map its buffers may end the process (OpenBLAS calls exit(1)), and a half-loaded library
        cannot be loaded again.
        """
        if self.limit is None:
            return
        usage = self._read()
        if usage.limit - usage.used < PACKAGE:
            raise MemoryError("too little memory left to load a heavy package")
        if not self._loading:
            self._before_loads = self._idle()
        self._loading.add(threading.get_ident())
        self._raised = (min(self._given()), self._hard())  # also for open_reserve
        self._put(self.limit, self._raised[0])

    def load_ends(self) -> None:
        """Lower the limit again. Do not count what the package has mapped and not touched."""
        if threading.get_ident() not in self._loading:
            return
        self._loading.discard(threading.get_ident())
        if not self._loading and self._unused is not None:
            # Memory given back meanwhile is idle too, but was mapped before: it leaves holes.
            pairs = zip(self._idle(), self._before_loads, strict=True)
            self._unused += max(0, min(now - then for now, then in pairs))
        self.arm()

    def _idle(self) -> tuple[int, int]:
        """Return the bytes mapped, and those mapped and not in use.

        Both without the stacks of the running threads.
        """
        self._count_stacks()
        mapped = self._mapped()
        if mapped is None:
            return 0, 0
        data = max(0, mapped.data - self._stacks)
        return data, max(0, data - mapped.anonymous)

    def possible(self) -> bool:
        """Return whether a ceiling is possible here."""
        return self.holds_for(self._read())

    def holds_for(self, usage: Usage) -> bool:
        return self._wanted and (self._anywhere or usage.source != "process")

    def hit(self) -> None:
        """Note that a request has met the ceiling."""
        now = self._now()
        if now - self._last_hit > LATELY:
            self._first_hit = now
        self._last_hit = now
        self._hits.append(now)

    def hit_since(self) -> float | None:
        """Return the seconds since requests began to meet the ceiling.

        None if no request has met the ceiling in the last LATELY seconds.
        """
        now = self._now()
        return now - self._first_hit if now - self._last_hit <= LATELY else None

    def met_by_one(self) -> bool:
        """Return whether a few requests have just met the ceiling, fewer than MANY.

        Such requests asked for too much and give the memory back.
        """
        return 0 < self._lately() < MANY

    def met_by_all(self) -> bool:
        """Return whether MANY requests have just met the ceiling: this worker is full."""
        return self._lately() >= MANY

    def _lately(self) -> int:
        since = self._now() - JUST_NOW
        return sum(at > since for at in list(self._hits))

    def after_fork(self) -> None:
        """Forget the parent's figures in a new child process. The parent's limit stays in force."""
        self._forget()

    def lift(self) -> None:
        """Remove the ceiling for good: restore the limit that was there before."""
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
        """Return the soft and hard limit from before LowMemory, which hold as well (bytes)."""
        import resource

        before = self._before or resource.getrlimit(resource.RLIMIT_DATA)
        return [bound if bound != resource.RLIM_INFINITY else sys.maxsize for bound in before]

    def _hard(self) -> int:
        import resource

        return (self._before or resource.getrlimit(resource.RLIMIT_DATA))[1]

    def _mapped(self) -> Statm | None:
        """Return what this process has mapped; None if the system does not report that."""
        if self._statm is None:
            self._statm = Kept(f"{self._proc}/self/statm")
        found = parse_statm(self._statm.read())
        if found is None:
            self._statm.forget()
        return found


def _stack_size() -> int:
    import resource

    size = threading.stack_size() or resource.getrlimit(resource.RLIMIT_STACK)[0]
    return size if size != resource.RLIM_INFINITY else USUAL_STACK
