"""Run the garbage collector after requests, and give free memory back to the system.

Three full passes after every request cost 200 ms on a heap of 100,000 objects, and a few
microseconds on the same heap frozen (`gc.freeze` makes the collector skip the objects that are
alive). So:

* LowMemory freezes the heap before the first run, again as the app warms up, and when surviving
  objects make a run slow. Before the run, because a pass writes to every object that the pass
  visits, and so copies each page that a forked worker shares with its master.
* `full_collect` also collects garbage among the frozen objects: unfreeze, collect, freeze again.
  LowMemory calls this on a slow clock, and sooner when memory grows and giving back does not help.
  A forked worker that does not grow is not fully collected: little is to be found, and its shared
  pages stay shared.
* The collector gives nothing back to the system: trimmer.py does, after notable growth. LowMemory
  also trims now and then without growth, for memory that was freed and not used again.

* A free-threaded Python has one generation: each pass stops all threads and visits the whole heap.
  So no passes run after requests there. Garbage goes when memory has grown, by `full_collect`.

One GC runner serves a process, however many apps the process holds (runtime.py).
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable

from ..settings import MB
from ..system.malloc import find_in_use, malloc_trim
from ..system.procfs import OwnRss, own_anonymous
from .attribution import Attribution
from .trimmer import Trimmer

# A run this long (seconds) has visited surviving objects. Freezing takes no time, and spares the
# next run these objects.
SLOW_RUN = 0.00002
# Freezing with other requests in flight would keep their garbage until the next full collection. So
# LowMemory waits for an idle moment, but only until slow runs have cost this much (seconds): then
# one request in a few hundred has its garbage kept.
SLOW_BUDGET = 0.01
# The most runs that one thread makes for others after its own request.
MOST_RUNS = 10
# Requests that overlap share passes: while others are in flight, no run begins within so many
# seconds of the last run. Every run also visits the objects of the other requests. With three in
# flight, this took longer than everything else that LowMemory does for a request.
SHARED_WITHIN = 0.006
# So many new objects make a pass visible in the count of new objects.
FEW = 8
# The first requests fill caches and import modules: freeze after runs 1, 2, 4, 8 ... 64.
WARM_UP = frozenset(1 << power for power in range(7))

# Least seconds between two readings of RSS: while requests are in flight, and when idle. In
# LOOK_SELDOM seconds a request takes a megabyte or two at most.
LOOK_EVERY, LOOK_SELDOM = 0.02, 0.0005
# LowMemory weighs requests that overlap without an end together after this many seconds.
WEIGH_ANYWAY = 1.0

FULL_EVERY = 300.0  # seconds
# Growth that trimming did not give back may be frozen garbage ...
FULL_BYTES = 16 * MB
# ... but a full collection, which visits the whole heap, takes at most this share of the time.
FULL_DUTY = 1 / 50


class GcRunner:
    """Run the GC passes and give memory back. Thread-safe.

    `passes`: full GC passes after a request. `rss`: return the process's RSS in bytes. `noticed`:
    called with the RSS at each reading. `owes`: called when requests have left a run to
    `catch_up`. `in_flight`: return how many requests are in flight, for work that no request has
    asked for. `now`: any monotonic clock in seconds.
    """

    shared_within = SHARED_WITHIN

    def __init__(
        self,
        *,
        passes: int = 3,
        freeze: bool = True,
        trim: bool = True,
        rss: Callable[[], int] | None = None,
        give_back: Callable[[], object] | None = None,
        noticed: Callable[[int], None] = lambda rss: None,
        owes: Callable[[], bool] = lambda: True,
        in_flight: Callable[[], int] = lambda: 1,
        now: Callable[[], float] = time.perf_counter,
        gil: bool = True,
    ) -> None:
        self._gil = gil
        self.passes: int = passes_after_requests(passes, gil)
        self.freezing: bool = freeze
        self._rss = OwnRss() if rss is None else rss
        # Without the pages of files: a forked worker touches those one by one, and does not grow.
        self._held = own_anonymous if rss is None else rss
        self.trimmer: Trimmer = Trimmer(
            self._rss, give_back or malloc_trim, in_use=self._size, on=trim, now=now
        )
        self._now = now
        self._owner = 0  # the ident of the thread in a run
        self._forget_threads()

        self._noticed, self._owes = noticed, owes
        # Whether a request has left its run to be shared, so that `catch_up` must be called.
        self.owing: bool = False
        self._ran_at = float("-inf")
        # Attributes to routes the memory that requests leave behind.
        self._measure = self._rss
        self.attribution: Attribution = Attribution(self._size, now=now)
        self._measured = give_back is not None or rss is not None  # whether `_measure` is final
        self._pymalloc = True  # whether Python's own allocator holds the new objects
        self.in_flight = in_flight
        # Whether a full collection would copy pages shared with the parent process.
        self.shares_pages: bool = False
        self.runs: int = 0
        self.collected: int = 0
        self.last_seconds: float = 0.0
        self.total_seconds: float = 0.0

        self._slow_seconds = 0.0
        self._maintained_run = 0  # the number of runs at the last `maintain`
        # Bytes: RSS at the last reading, after a trim; those held after the last full collection.
        self._left, self._full_held = self._rss(), self._held()
        self._looked_at = self._full_at = now()
        self._full_seconds = 0.0

    def demand(self, passes: int, *, freeze: bool, trim: bool) -> None:
        """Be at least as thorough as these settings from now on."""
        self.passes = max(self.passes, passes_after_requests(passes, self._gil))
        self.freezing = self.freezing or freeze
        self.trimmer.demand(trim)

    def leave_pymalloc(self) -> None:
        """Note that the C library holds the new objects: Python then counts its own wrongly.

        Call this before the first request.
        """
        self._pymalloc = False

    def after_request(self, in_flight: Callable[[], int] = lambda: 0) -> None:
        """Run the passes now, or make the thread that runs the passes run them again.

        `in_flight`: return how many other requests are in flight. After every call, a run follows
        that began after the call. Calls during a run, or within SHARED_WITHIN seconds of a run
        while others are in flight, share the next run.
        """
        self._wanted = True
        if self._owner == threading.get_ident():
            return  # a pass of this thread has called a finalizer that ended a request
        recent = in_flight() and self._now() - self._ran_at < SHARED_WITHIN
        if not (recent and self._owe()):
            self._fulfil(in_flight)

    def catch_up(self, *, at_once: bool = False) -> None:
        """Make the run that requests have left to be shared, if no later request has made that run.

        Call this every SHARED_WITHIN seconds while `owing`, and `at_once` where `owes` returns
        False from now on.
        """
        if self._wanted and not at_once:
            if self._now() - self._ran_at >= SHARED_WITHIN:
                self._fulfil(self.in_flight)
            return
        self.owing = False
        if not self._wanted:
            return
        if at_once:
            self._fulfil(self.in_flight)
        else:  # by a request that still saw `owing` set
            self.owing = True

    def _owe(self) -> bool:
        """Leave a run to be shared. Return whether it will be made."""
        if not self.owing:
            self.owing = True
            if not self._owes():
                self.owing = False
        return self.owing

    def _fulfil(self, in_flight: Callable[[], int]) -> None:
        # A request sets `_wanted`, then tries the lock. The holder releases the lock, then checks
        # `_wanted`. So one of the two always sees the wish, and no thread waits. No thread stays
        # here for ever either: the next request, or `catch_up`, makes the runs left after
        # MOST_RUNS or left to be shared.
        for _ in range(MOST_RUNS):
            running = self._running  # a finalizer of the app's may fork, and a child has another
            if not self._wanted or not running.acquire(False):
                return
            try:
                self._owner = threading.get_ident()
                self._wanted = False
                self._run(in_flight)
            finally:
                self._owner = 0
                running.release()
                if self._wanted and sys.exc_info()[0] is not None:
                    self._owe()  # a request that ended meanwhile has found the lock taken
            if self._wanted and in_flight() and self._owe():
                return
        if self._wanted:
            self._owe()

    def full_collect(self) -> None:
        """Collect all garbage, also among the frozen objects, and freeze the remaining heap."""
        self._alone(self._full_collect)

    def give_back(self) -> None:
        """Give free memory back to the system now, if `trim` is on."""
        if self.trimmer.on:
            self._alone(lambda: self.trimmer.trim(self._rss(), alone=False))

    def attribute(self) -> None:
        """Attribute growth to the routes of the requests that have ended since the last time.

        Does nothing while requests are in flight: they may hold the growth.
        """
        if not self.in_flight():
            self._unless_busy(self._weigh)

    def before_request(self) -> None:
        """Weigh before a request begins, while memory grows.

        The growth up to now is then not attributed to the new request.
        """
        if self.attribution.closely and self.in_flight() < 2:
            self._unless_busy(self._weigh)

    def rebase(self) -> None:
        """Attribute the growth since the last time to no request, if none has run since."""
        if not self.in_flight() and not self.attribution.pending:
            self._unless_busy(self._rebase)

    def _rebase(self) -> None:
        self._find_measure()
        self.attribution.rebase()

    def maintain(self) -> None:
        """Do what no request came to do.

        Give back growth that had to wait and memory that was freed without growth. Make the full
        collection if that is due. The monitor calls this.
        """
        self._alone(self._maintain)

    def _maintain(self) -> None:
        quiet, self._maintained_run = self.runs == self._maintained_run, self.runs
        # A dropped cache leaves RSS as it was, so no growth shows that memory is free. Takes 1 ms
        # at most.
        if not quiet:
            self.trimmer.trim(self._rss(), alone=not self.in_flight())
        # If no request has ended since the last time, a request in flight may itself be frozen
        # garbage, and would stay in flight for ever.
        if (quiet or not self.in_flight()) and self._may_hold_garbage():
            self._full_collect_and_trim(self.in_flight)
        self._look_around(self._now(), self.in_flight)

    def _may_hold_garbage(self) -> bool:
        """Return whether the growth left may be frozen garbage, and a full collection may run."""
        rested = self._now() - self._full_at >= self._full_seconds / FULL_DUTY
        return self.freezing and rested and self._held() - self._full_held >= FULL_BYTES

    def _alone(self, action: Callable[[], object]) -> None:
        """Call `action` while no run is under way.

        Does nothing when called from within a run (a finalizer, a signal handler): the call would
        wait for itself.
        """
        if self._owner == threading.get_ident():
            return
        running = self._running
        while not running.acquire(timeout=0.005):
            # Under gevent the lock may be a native lock, made before the patches, and a greenlet of
            # this thread may hold the lock: let that greenlet go on.
            time.sleep(0.001)
        try:
            self._owner = threading.get_ident()
            action()
        finally:
            self._owner = 0
            running.release()
            self._fulfil(_somebody)  # for requests that ended meanwhile

    def _unless_busy(self, action: Callable[[], object]) -> None:
        """Call `action` now, or not at all if a run is under way: the caller cannot wait."""
        running = self._running
        if running.acquire(blocking=False):
            try:
                self._owner = threading.get_ident()
                action()
            finally:
                self._owner = 0
                running.release()
                self._fulfil(_somebody)  # for requests that ended meanwhile

    def _run(self, in_flight: Callable[[], int]) -> None:
        if self.freezing and not self.runs:
            gc.freeze()
        began = self._now()
        self._collect()
        self._ran_at = ended = self._now()
        self.runs += 1
        self.last_seconds = seconds = ended - began
        self.total_seconds += seconds
        alone = not in_flight()
        if self.freezing and (seconds >= SLOW_RUN or self.runs in WARM_UP):
            self._freeze_if_due(seconds, alone)
        # Reading RSS releases the GIL, and waits 0.1 to 0.3 ms until the threads of other requests
        # release the GIL again. So LowMemory reads RSS when the last request ends, not at each end.
        if ended - self._looked_at >= (LOOK_SELDOM if alone else LOOK_EVERY):
            self._look_around(ended, in_flight, alone=alone)
        if self.attribution.due(ended if alone else ended - WEIGH_ANYWAY):
            self._weigh()

    def _size(self) -> int:
        return self._measure()

    def _weigh(self) -> None:
        if not self.attribution.loading:
            self._find_measure()
            self.attribution.weigh()

    def _find_measure(self) -> None:
        """Choose what to weigh, before the first weighing.

        Not sooner, because this loads ctypes, which giving back needs as well.
        """
        if not self._measured:
            self._measured = True
            found = find_in_use(objects=self._pymalloc) if self.trimmer.on else None
            self._measure = found or self._rss

    def _look_around(
        self, now: float, in_flight: Callable[[], int], *, alone: bool = False
    ) -> None:
        self._looked_at = now
        used = self._rss()
        self._noticed(used)
        if alone:
            self.attribution.peaked(used - self._left)
        self._left = used
        if used < self.trimmer.floor:
            self._full_held = min(self._held(), self._full_held)
        if self.trimmer.is_due(now, used):
            self._left = self._trim(now, used, in_flight)
        if now - self._full_at >= FULL_EVERY:
            self._full_collect_if_grown(now, in_flight)

    def _collect(self) -> None:
        if not self.passes:
            return
        # A real pass sets the count of new objects to 0. A pass does nothing while another thread's
        # collection runs a finalizer, and the count stays. A pass's own finalizers and callbacks
        # make a few new objects too, so there must be more than a few before the pass.
        before = gc.get_count()[0]
        if before < FEW:
            _new = set(), set(), set(), set(), set(), set(), set(), set()  # type: ignore[var-annotated]
            before += FEW
        found = gc.collect()
        if gc.get_count()[0] >= before:
            self._insist(self.passes)
        else:
            for _ in range(self.passes - 1):
                found += gc.collect()
        self.collected += found

    def _insist(self, passes: int) -> None:
        """Make `passes` passes and check each (reading the statistics costs more than a pass).

        Give up after a tenth of a second: the other thread's finalizer may take for ever.
        """
        done = _full_collections() + passes
        for _ in range(100):
            before = _full_collections()
            self.collected += gc.collect()
            now = _full_collections()
            if now >= done:
                return
            if now == before:
                time.sleep(0.001)

    def _freeze_if_due(self, seconds: float, alone: bool) -> None:
        self._slow_seconds += seconds
        if alone or self._slow_seconds >= SLOW_BUDGET or self.runs in WARM_UP:
            gc.freeze()
            self._slow_seconds = 0.0

    def _trim(self, now: float, used: int, in_flight: Callable[[], int]) -> int:
        """Give back, then collect fully if that freed too little. Return the RSS after (bytes)."""
        left = self.trimmer.trim_growth(now, used, alone=not in_flight())
        # Requests in flight may hold the growth. A copied page is never shared again.
        if self._may_hold_garbage() and not (self.shares_pages and in_flight()):
            self._full_collect_and_trim(in_flight)
            return self._rss()
        return left

    def _full_collect_if_grown(self, now: float, in_flight: Callable[[], int]) -> None:
        if self.shares_pages and self._held() - self._full_held < FULL_BYTES:
            self._full_at = now  # look again after FULL_EVERY
        else:
            self._full_collect_and_trim(in_flight)

    def _full_collect_and_trim(self, in_flight: Callable[[], int]) -> None:
        before = self._rss()
        self._full_collect()
        if self.trimmer.on:
            self.trimmer.trim(before, alone=not in_flight())
            self._full_held = self._held()

    def _full_collect(self) -> None:
        began = self._now()
        if self.freezing:
            gc.unfreeze()
        # More than one pass: the next pass finds what the first releases (by weak references).
        # Otherwise that garbage would be frozen.
        for _ in range(max(1, self.passes)):
            found = gc.collect()
            self.collected += found
            if not found:
                break
        if self.freezing:
            gc.freeze()
        self.shares_pages = False
        self._slow_seconds = 0.0
        self._full_at = ended = self._now()
        self._full_seconds = ended - began
        self._full_held = self._held()

    def _forget_threads(self) -> None:
        self._running = threading.Lock()
        self._owner = 0
        self._wanted = self.owing = False

    def after_fork(self) -> None:
        """Forget the parent's threads, files and figures in a new child process."""
        self._forget_threads()
        self.shares_pages = True
        if isinstance(self._rss, OwnRss):
            self._rss.reopen()
        self.attribution.forget()
        self.trimmer.forget()
        self.runs = self.collected = self._maintained_run = 0
        self.last_seconds = self.total_seconds = 0.0
        self._left, self._full_held = self._rss(), self._held()


def passes_after_requests(asked: int, gil: bool) -> int:
    """Return how many passes run after each request. `gil`: whether this build of Python has a GIL.

    Without a GIL a pass visits every object of the process, also the frozen ones.
    """
    return asked if gil else 0


def _somebody() -> int:
    """Return 1, for callers that do not know how many requests are in flight."""
    return 1


def _full_collections() -> int:
    return int(gc.get_stats()[-1]["collections"])
