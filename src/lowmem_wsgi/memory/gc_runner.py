"""The garbage collector, and giving memory back.

Three full passes after every request cost 200 ms on a heap of 100,000 objects, and a few
microseconds on the same heap frozen (`gc.freeze` takes what is alive out of the collector's
sight). So:

* The heap is frozen before the first run, again as the app warms up, and whenever survivors make
  a run slow. Before, not after: a pass writes to every object it looks at, and so takes a copy of
  each page that a forked worker shares with its master.
* Frozen garbage is not garbage for ever: `full_collect` unfreezes, collects and freezes again, on a
  slow clock, and sooner where memory grows and giving back does not help. A forked worker that does
  not grow is left alone: it has little to look for, and keeps its shared pages shared.
* Collecting gives nothing back to the system: trimmer.py does, after growth, and now and then for
  what was freed and not grown into again.

One collector serves a process, however many apps it holds (runtime.py).
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from threading import get_ident

from ..settings import MB
from ..system.malloc import find_in_use, malloc_trim
from ..system.procfs import OwnRss
from .attribution import Attribution
from .trimmer import TRIM_BYTES, TRIM_SHARE, Trimmer

# A run this long (seconds) has survivors to look at that freezing, which takes none, would spare
# the next one.
SLOW_RUN = 0.00002
# With other requests in flight, freezing would keep their garbage until the next full collection.
# So it waits for an idle moment, but not longer than until slow runs have cost this much (seconds):
# then one request in a few hundred has its garbage kept.
SLOW_BUDGET = 0.01
# So many runs for others a thread makes after its own request, at most.
MOST_RUNS = 10
# Requests that overlap share passes: while others are in flight, no run begins so soon (seconds)
# after the last one. Every run also looks at what the others hold, and with three in flight that
# took longer than all else that LowMemory does for a request.
SHARED_WITHIN = 0.006
# New objects, so many that a pass is seen by their count.
FEW = 8
# The first requests fill caches and import modules: freeze after runs 1, 2, 4, 8 ... 64.
WARM_UP = frozenset(1 << power for power in range(7))

# How often to look at RSS while requests are in flight (seconds), and at least how long after the
# last time: in which nobody takes more than a megabyte or two.
LOOK_EVERY, LOOK_SELDOM = 0.02, 0.0005
# Requests that overlap without an end are weighed together after so long (seconds).
WEIGH_ANYWAY = 1.0

FULL_EVERY = 300.0  # seconds
# Growth that trimming did not give back may be frozen garbage ...
FULL_BYTES = 16 * MB
# ... but a full collection, which looks at the whole heap, takes at most this share of the time.
FULL_DUTY = 1 / 50


class GcRunner:
    """Runs the passes. Thread-safe; `now` is any monotonic clock in seconds."""

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
        owes: Callable[[], None] = lambda: None,
        in_flight: Callable[[], int] = lambda: 1,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.passes = passes
        self.freezing = freeze
        self._rss = OwnRss() if rss is None else rss
        self.trimmer = Trimmer(self._rss, give_back or malloc_trim, on=trim, now=now)
        self._now = now
        self._owner = 0  # the thread in a run, by its ident
        self._forget_threads()

        # Told of the RSS, whenever it is looked at; and when a run is owed.
        self._noticed, self._owes = noticed, owes
        # Whether a request has left its run to be shared, and `catch_up` is to be called.
        self.owing = False
        self._ran_at = float("-inf")
        # Books to routes what requests leave behind.
        self._measure = self._rss
        self.attribution = Attribution(self._size, now=now)
        self._measured = give_back is not None or rss is not None  # what is weighed is settled
        # How many requests there are, for what no request has asked for.
        self.in_flight = in_flight
        # Whether a full collection would take copies of pages shared with the parent process.
        self.shares_pages = False
        self.runs = 0
        self.collected = 0
        self.last_seconds = 0.0
        self.total_seconds = 0.0

        self._slow_seconds = 0.0
        self._maintained_run = 0  # the run that `maintain` came after last
        # RSS at the last look, after a trim; after the last full collection.
        self._full_rss = self._left = self._rss()
        self._looked_at = self._full_at = now()
        self._full_seconds = 0.0

    def demand(self, passes: int, *, freeze: bool, trim: bool) -> None:
        """Be at least as thorough as this from now on."""
        self.passes = max(self.passes, passes)
        self.freezing = self.freezing or freeze
        self.trimmer.demand(trim)

    def after_request(self, in_flight: Callable[[], int] = lambda: 0) -> None:
        """Run the passes now, or see to it that the thread running them runs them again.

        `in_flight` tells how many other requests there are, when it matters. Every call is
        followed by a run that began after it. Calls that come during a run, or within
        SHARED_WITHIN seconds of one while others are in flight, share the next one.
        """
        self._wanted = True
        if self._owner == get_ident():
            return  # in a finalizer that a pass has called
        if in_flight() and self._now() - self._ran_at < SHARED_WITHIN:
            self._owe()
        else:
            self._fulfil(in_flight)

    def catch_up(self) -> None:
        """Make the run that requests have left to be shared, where no later request has made it.

        Call it every SHARED_WITHIN seconds while `owing`.
        """
        if self._wanted:
            if self._now() - self._ran_at >= SHARED_WITHIN:
                self._fulfil(self.in_flight)
            return
        self.owing = False
        if self._wanted:  # by a request that has seen `owing` still
            self.owing = True

    def _owe(self) -> None:
        if not self.owing:
            self.owing = True
            self._owes()

    def _fulfil(self, in_flight: Callable[[], int]) -> None:
        # A request sets the wish, then tries the lock; the holder lets go, then looks for a wish.
        # So one of the two always sees it, and nobody waits. Nor is one thread kept for ever: what
        # it leaves after MOST_RUNS, or to be shared, the next request does, or `catch_up`.
        for _ in range(MOST_RUNS):
            if not self._wanted or not self._running.acquire(False):
                return
            try:
                self._owner = get_ident()
                self._wanted = False
                self._run(in_flight)
            finally:
                self._owner = 0
                self._running.release()
            if self._wanted and in_flight():
                break
        if self._wanted:
            self._owe()

    def full_collect(self) -> None:
        """Collect everything, what was frozen as garbage included, and freeze what is left."""
        self._alone(self._full_collect)

    def give_back(self) -> None:
        """Give free memory back now (where `trim` is on)."""
        if self.trimmer.on:
            self._alone(lambda: self.trimmer.trim(self._rss(), alone=False))

    def attribute(self) -> None:
        """Book to their routes those that have ended since the last time; not beside others, who
        may hold what has come."""
        if not self.in_flight():
            self._unless_busy(self._weigh)

    def before_request(self) -> None:
        """A request begins. While memory grows, what came up to now is not booked to that."""
        if self.attribution.closely and self.in_flight() < 2:
            self._unless_busy(self._weigh)

    def rebase(self) -> None:
        """What has changed since the last time is no request's doing; where there were none."""
        if not self.in_flight() and not self.attribution.pending:
            self._unless_busy(self._rebase)

    def _rebase(self) -> None:
        self._find_measure()
        self.attribution.rebase()

    def maintain(self) -> None:
        """What no request came to do: give back growth that had to wait, and what was freed without
        any; look at the slow clock."""
        self._alone(self._maintain)

    def _maintain(self) -> None:
        quiet, self._maintained_run = self.runs == self._maintained_run, self.runs
        # A cache that is dropped leaves RSS where it was, so no growth tells of it. 1 ms at most.
        if not quiet:
            self.trimmer.trim(self._rss(), alone=not self.in_flight())
        # What nobody has ended since the last time may be in frozen garbage itself, and in flight
        # for ever.
        if (quiet or not self.in_flight()) and self._may_hold_garbage(self._rss()):
            self._full_collect_and_trim(self.in_flight)
        self._look_around(self._now(), self.in_flight)

    def _may_hold_garbage(self, rss: int) -> bool:
        """Whether what giving back has left may be frozen garbage, and it is time to see."""
        rested = self._now() - self._full_at >= self._full_seconds / FULL_DUTY
        return self.freezing and rested and rss - self._full_rss >= FULL_BYTES

    def _alone(self, action: Callable[[], object]) -> None:
        """Do it while no run is under way. From within one (a finalizer, a signal handler) it is
        left undone: it would wait for itself."""
        if self._owner == get_ident():
            return
        running = self._running
        while not running.acquire(timeout=0.005):
            # Under gevent the lock may be a native one, made before the patches, and the thread of
            # who holds it this one: let it go on.
            time.sleep(0.001)
        try:
            self._owner = get_ident()
            action()
        finally:
            self._owner = 0
            running.release()
        self._fulfil(_somebody)

    def _unless_busy(self, action: Callable[[], object]) -> None:
        """Do it now or not at all: who asks has something else to do."""
        if self._running.acquire(blocking=False):
            try:
                self._owner = get_ident()
                action()
            finally:
                self._owner = 0
                self._running.release()
            self._fulfil(_somebody)

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
        # Reading RSS lets go of the GIL, and gets it back when the others in flight let go of it:
        # 0.1 to 0.3 ms. So not at each end, but at the last one.
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
        """Before anything is weighed, and not sooner: ctypes, which giving back needs as well."""
        if not self._measured:
            self._measured = True
            self._measure = (find_in_use() if self.trimmer.on else None) or self._rss

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
            self._full_rss = min(used, self._full_rss)
        if self.trimmer.is_due(now, used):
            self._left = self._trim(now, used, in_flight)
        if now - self._full_at >= FULL_EVERY:
            self._full_collect_if_grown(now, in_flight)

    def _collect(self) -> None:
        if not self.passes:
            return
        # A real pass sets the count of new objects to nothing. One that is asked for while another
        # thread's collection is in a finalizer does nothing, and the count stands. A pass's own
        # finalizers and callbacks make a few as well: so there must have been more than a few.
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
        """So many passes, each made sure of (the statistics cost more than the passes).

        Gives up after a tenth of a second: the other thread's finalizer may take for ever.
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
        """Give back, and collect fully where that was not it; RSS after it."""
        left = self.trimmer.trim_growth(now, used, alone=not in_flight())
        # What has grown may be the requests' in flight; pages once copied stay so.
        if self._may_hold_garbage(left) and not (self.shares_pages and in_flight()):
            self._full_collect_and_trim(in_flight)
            return self._rss()
        return left

    def _full_collect_if_grown(self, now: float, in_flight: Callable[[], int]) -> None:
        used = self._rss()
        grown = used - self._full_rss >= max(TRIM_BYTES, self._full_rss * TRIM_SHARE)
        if grown or not self.shares_pages:
            self._full_collect_and_trim(in_flight)
        else:
            self._full_at = now  # look again when as much time has passed

    def _full_collect_and_trim(self, in_flight: Callable[[], int]) -> None:
        before = self._rss()
        self._full_collect()
        if self.trimmer.on:
            self._full_rss = self.trimmer.trim(before, alone=not in_flight())

    def _full_collect(self) -> None:
        began = self._now()
        if self.freezing:
            gc.unfreeze()
        # More than once: what a first pass lets go of (by weak references) the next one finds; it
        # would else be frozen.
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
        self._full_rss = self._rss()

    def _forget_threads(self) -> None:
        self._running = threading.Lock()
        self._owner = 0
        self._wanted = self.owing = False

    def after_fork(self) -> None:
        """In a new child: forget the parent's threads, files and figures."""
        self._forget_threads()
        self.shares_pages = True
        if isinstance(self._rss, OwnRss):
            self._rss.reopen()
        self.attribution.forget()
        self.trimmer.forget()
        self.runs = self.collected = self._maintained_run = 0
        self.last_seconds = self.total_seconds = 0.0
        self._full_rss = self._left = self._rss()


def _somebody() -> int:
    """For callers who do not know what is in flight."""
    return 1


def _full_collections() -> int:
    return int(gc.get_stats()[-1]["collections"])
