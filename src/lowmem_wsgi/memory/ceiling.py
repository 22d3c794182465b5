"""The ceiling: a request that asks for too much fails, and not the container.

RLIMIT_DATA (setrlimit(2), Linux 4.7) bounds what a process may map for data. Kept where the
container would be full, it turns an allocation that would bring the kernel's OOM killer into a
MemoryError in the request that asks for it.

It counts what is mapped, not what is used. So three things are set apart:

* anonymous memory in use (`resident - shared` of /proc/self/statm): counts fully;
* thread stacks: mapped at 8 MB each and hardly used; let be, or a server could start no thread;
* holes that `malloc_trim` gave back: mapped, not in use, and filled again without asking. They
  count as used: what is asked for next goes into them, large blocks too.

The soft limit alone is moved. Child processes inherit it, and may lift it up to the hard one.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

from ..settings import MB
from .reading import Kept, Usage, read_text

# What stays free under the container's limit: for the kernel's own (page tables, sockets), for
# other processes' growth between two looks, for pages shared with the master that get copied.
RESERVE_SHARE = 1 / 12
# However full the container is: so much (bytes) more than at first a process may map. A new worker
# beside an old one that is large could not even read a request else.
START = 12 * MB
# Met so often in so long (seconds), it is not by single requests.
MANY, JUST_NOW = 10, 1.0
# A change smaller than this (bytes) is left for later.
STEP = 256 * 1024
# What a thread's stack maps where RLIMIT_STACK does not say (pthread_create(3), x86 and ARM).
USUAL_STACK = 8 * MB

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def data_limit(usage: Usage, data: int, anonymous: int, stacks: int, workers: int) -> int:
    """RLIMIT_DATA in bytes, for a process that has mapped `data`, uses `anonymous` of it, and has
    `stacks` of threads mapped; one of `workers` alike that share what room there is."""
    room = max(0, int(usage.limit * (1 - RESERVE_SHARE)) - usage.used) // max(1, workers)
    return max(anonymous + stacks + room, data)


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
        self.workers = workers
        self._now = now
        self._wanted = wanted is not False and sys.platform == "linux"
        self._anywhere = wanted is True
        self._proc = proc
        self._before: tuple[int, int] | None = None
        self.limit: int | None = None  # in force, bytes
        self.left: int | None = None  # until it is met, at the last look
        self._least: int | None = None
        self._stacks = 0
        self._statm: Kept | None = None
        # Mapped by libraries for themselves and not used when it was looked first: no room.
        self._unused: int | None = None
        self._lock, self._lifted = threading.Lock(), False
        self._hits: deque[float] = deque(maxlen=MANY)

    def arm(self, coming: int = 0) -> None:
        """Keep the ceiling where the container would be full. `coming`: threads about to start."""
        if not self._wanted:
            return
        try:
            # Field 20 of proc(5)'s stat; the second, in brackets, may hold anything.
            threads = int(read_text(f"{self._proc}/self/stat").rpartition(")")[2].split()[17])
        except (ValueError, IndexError):  # no /proc here
            return
        self._stacks = (threads - 1) * _stack_size()
        self._keep(coming * _stack_size())

    def keep(self) -> None:
        """The same at a glance: with as many threads as there were."""
        if self._wanted:
            self._keep(0)

    def _keep(self, coming: int) -> None:
        # First: what this process has grown by in between then counts twice, and not not at all.
        try:
            data, anonymous = self._mapped()
        except (ValueError, IndexError):  # no /proc here, or somebody has closed our file
            if self._statm is not None:
                self._statm.forget()
            return
        usage = self._read()
        if not self.holds_for(usage):
            self._release()  # the container's limit was lifted
            return
        stacks = min(self._stacks, max(0, data - anonymous))
        if self._least is None or self._unused is None:
            self._least = data + START
            self._unused = max(0, data - anonymous - stacks)
        limit = data_limit(usage, data, anonymous, stacks, self.workers())
        limit = max(limit, self._least, data + coming)
        limit = min(limit, *self._given())
        self.left = limit - anonymous - stacks - self._unused
        if self.limit is None or abs(limit - self.limit) >= STEP:
            self._set(limit)

    def possible(self) -> bool:
        """Whether there is one here."""
        return self.holds_for(self._read())

    def holds_for(self, usage: Usage) -> bool:
        return self._wanted and (self._anywhere or usage.source != "process")

    def hit(self) -> None:
        """A request has met it."""
        self._hits.append(self._now())

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
        self.limit = self.left = None
        self._least = self._unused = self._statm = None
        self._lock = threading.Lock()
        self._hits.clear()

    def lift(self) -> None:
        """Take it away for good: the limit is what it was."""
        self._lifted = True
        self._release()

    def _release(self) -> None:
        with self._lock:
            if self._before is not None:
                import resource

                resource.setrlimit(resource.RLIMIT_DATA, self._before)
            self._before = self.limit = self.left = None

    def _set(self, limit: int) -> None:
        import resource

        with self._lock:
            if self._before is None:
                self._before = resource.getrlimit(resource.RLIMIT_DATA)
            if not self._lifted:
                resource.setrlimit(resource.RLIMIT_DATA, (limit, self._before[1]))
                self.limit = limit

    def _given(self) -> list[int]:
        """The limits that were there before, which hold as well."""
        import resource

        before = self._before or resource.getrlimit(resource.RLIMIT_DATA)
        return [bound if bound != resource.RLIM_INFINITY else sys.maxsize for bound in before]

    def _mapped(self) -> tuple[int, int]:
        """Bytes of data mapped, and of anonymous memory in use."""
        if self._statm is None:
            self._statm = Kept(f"{self._proc}/self/statm")
        pages = [int(field) for field in self._statm.read().split()]
        return pages[5] * _PAGE, (pages[1] - pages[2]) * _PAGE


def _stack_size() -> int:
    import resource

    size = threading.stack_size() or resource.getrlimit(resource.RLIMIT_STACK)[0]
    return size if 0 < size < 64 * MB else USUAL_STACK
