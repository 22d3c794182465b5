"""This process as one worker of a site: its place on the shared page, and when it gives it up."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import log
from ..memory.attribution import top
from ..memory.levels import OK
from ..settings import Settings, format_size
from ..system.procfs import OwnRss, own_uss, process_seconds
from ..system.usage import Usage
from . import postmortem
from .record import GONE, READY, REPLACED, RETIRING, Seen, WorkerRecord
from .recycling import (
    IN_VAIN_SO_FAR,
    MOST_LEAD,
    PATIENCE,
    SLOW,
    SLOWLY,
    TOO_LARGE,
    Situation,
    fits,
    lead,
    reason_to_wait,
)
from .servers import Server, find_server
from .shared_page import SharedPage, is_alive

if TYPE_CHECKING:
    from ..memory.ceiling import Ceiling
    from ..memory.gc_runner import GcRunner
    from ..memory.in_flight import InFlight
    from ..memory.interrupt import Interrupt
    from ..memory.levels import Levels
    from .figures import RouteFigures
    from .history import History
    from .pages import Pages

# Growth is measured over so many seconds, or over the time that a replacement is to come before;
# and in so many parts.
WINDOW, QUARTERS = 1.0, 4
# ... and over so many readings at least, where they are not too old.
READINGS = 2 * QUARTERS
# A worker that ends takes room while it has grown in so long (seconds).
JUST_NOW = 0.3
# What was counted is written on the page so often (seconds), and at the end.
FLUSH_EVERY = 1.0
# Readings are kept for as long as a lead may be, at the shortest pauses.
MOST_READINGS = 256
# A worker's start is taken to need so long (seconds) at most, where it is not measured.
LONGEST_START = 1.0


class Reading(NamedTuple):
    """When (seconds), what the site used, the worker's RSS (bytes), its requests so far."""

    at: float
    used: int
    rss: int
    requests: int


class Rates(NamedTuple):
    """Of the same, a second."""

    used: float
    rss: float
    requests: float


def _stuck(situation: Situation) -> str:
    """Why a worker is replaced that holds much while the site does not, for the log."""
    if not situation.stuck:
        return ""
    holes = f", {format_size(situation.holes)} of it free and in pieces" if situation.holes else ""
    return f"; requests met its ceiling{holes}"


class Worker:
    """Call `start` in the worker; from then on, and until it gives up, it has a `record`."""

    def __init__(
        self,
        settings: Settings,
        pages: Pages,
        *,
        levels: Levels,
        ceiling: Ceiling,
        interrupt: Interrupt,
        in_flight: InFlight,
        gc_runner: GcRunner,
        counts: Callable[[], Mapping[str, float]],
        kills: Callable[[], int | None],
        heavy: Callable[[], str] = str,
        rss: Callable[[], int] | None = None,
        uss: Callable[[], int] = own_uss,
        now: Callable[[], float] = time.monotonic,
        find: Callable[[], Server | None] = find_server,
    ) -> None:
        self._recycling = settings.recycle
        self._levels = levels
        self._ceiling = ceiling
        self._interrupt = interrupt
        self._in_flight = in_flight
        self._gc_runner = gc_runner
        self._counts = counts  # what this process has counted
        self._kills = kills  # how many processes of the container the OOM killer has taken
        self._now = now
        self._find = find
        self._pages = pages
        self._heavy = heavy  # the heavy modules it has loaded, for the log
        self._rss = OwnRss() if rss is None else rss
        self._uss = uss
        self._forget()

    def _forget(self) -> None:
        self.record: WorkerRecord | None = None
        self.server: Server | None = None
        self._started = False
        self._initial_uss = 0
        self._started_in, self._fresh = 0.0, False
        self._retired_at = 0.0
        self._ok_at = self._eased_at = self._now()  # when it was so last: ok, not pressed
        self._readings: deque[Reading] = deque(maxlen=MOST_READINGS)
        self._flushed_at = float("-inf")
        self._flushing = threading.Lock()

    # --- A worker's life

    def start(self, *, fresh: bool = False) -> None:
        """Take a place on the shared page. Harmless when repeated.

        `fresh`: the process has done nothing else yet, so its age is what its start has taken.
        """
        if self._started:
            return
        self._started = True
        self.server = self._find()
        page = self._pages.join(self.server)
        # What came before the fork is not counted a second time.
        self.record = page.claim(self._rss(), self._counts(), now=self._now)
        self._initial_uss = self._uss()
        # Later, the age is what the start has taken at the most.
        age = process_seconds() or LONGEST_START  # where the system does not tell
        self._started_in = age if fresh else min(age, LONGEST_START)
        self._fresh = fresh
        if not page.master:
            self._fold_in_the_dead(page)
        if self.server is not None and self.server.submit is not None:
            # Not this one, if it is of the pool.
            own = threading.current_thread() is not threading.main_thread()
            start_threads(self.server.submit, self.server.threads - own)

    @property
    def retiring(self) -> bool:
        """Whether this worker is about to end, replaced by another."""
        return self.record is not None and self.record.state in (RETIRING, REPLACED)

    def idle(self) -> bool:
        return not self._in_flight.count()

    def leave(self) -> None:
        """The process ends as it should."""
        if self.record is not None and self.record.pid == os.getpid():
            self.flush()
            self.record.enter(self.record.state | GONE)
            if self.record.index < 0:  # nobody else can see it
                self._pages.page.give_up(self.record)

    def give_up(self) -> None:
        """The process goes on without this worker: its place is free."""
        with self._flushing:
            record, self.record, self._started = self.record, None, False
            if record is not None and record.pid == os.getpid():
                self._pages.page.give_up(record)

    def abort(self) -> None:
        """The process ends in the middle of what it is doing."""
        if self.record is not None:
            self.record.freeze()

    def after_fork(self) -> None:
        """In a new child: the place is the parent's."""
        self._pages.after_fork()
        if isinstance(self._rss, OwnRss):
            self._rss.reopen()
        self._forget()

    def count(self) -> int:
        """How many workers share what room there is. Of those that are ending, who still grow."""
        if not self._started:
            return 1
        page, since = self._pages.page, self._now() - JUST_NOW
        if page.taken() == [self.record.index if self.record is not None else -1]:
            found = 1  # most sites, most of the time
        else:
            found = sum(seen.takes_room(since) and is_alive(seen.pid) for seen in page.workers())
        return max(1, found, self.server.size if self.server is not None else 1)

    def ending(self) -> bool:
        """Whether a worker of this site was told to end, and is still there."""
        return self._started and any(
            seen.state in (RETIRING, REPLACED) and is_alive(seen.pid)
            for seen in self._pages.page.workers()
        )

    def look(self, usage: Usage, level: str) -> None:
        """Take a reading, and the level after it: write it down, and act on it."""
        record = self.record
        if record is None:
            return
        now, rss = self._now(), self._rss()
        record.note(rss, usage.used)
        self._readings.append(Reading(now, usage.used, rss, record.requests))
        if level == OK:
            self._ok_at = now
        page = self._pages.page
        page.history.point(usage.used)
        if now - self._flushed_at >= FLUSH_EVERY:
            self._flushed_at = now
            self.flush()
        if level == OK and page.in_vain and usage.used < self._levels.warn:
            page.change(in_vain=0)
        if record.state & GONE or self.record is not record:
            pass  # as good as over, and not to be replaced a second time; or another's meanwhile
        elif record.state in (RETIRING, REPLACED):
            self._see_off(page)
        elif self._recycling and self._may_be_time(usage, level):
            self._consider(page, usage, level, rss)

    def flush(self, patience: float = 0.0) -> None:
        """Write on the page what was counted here. Wait `patience` seconds for a thread that does
        so already."""
        if self.record is None or not self._flushing.acquire(timeout=patience):
            return
        try:
            self._gc_runner.attribute()
            growth, record = self._gc_runner.attribution, self.record
            if record is not None:
                routes = list(growth.routes.values())
                held = growth.held(self._rss() - record.born_rss)
                record.flush(self._counts(), routes, held)
        finally:
            self._flushing.release()

    def counts(self) -> dict[str, float]:
        """What the site has counted, all its workers."""
        if not self._started:
            return dict(self._counts())
        self.flush(patience=0.5)
        return self._pages.page.figures().counters

    def growth(self) -> dict[str, RouteFigures]:
        """By route, what the workers of this site have counted and grown by: those there are, and
        those there were."""
        return self._pages.page.figures().routes

    def held(self, place: int) -> int:
        """Bytes that the routes of the worker at this place have left in it."""
        return self._pages.page.held(place)

    @property
    def history(self) -> History:
        """The site's last hour."""
        return self._pages.page.history

    def alive(self) -> list[Seen]:
        """The workers of the site, as they are on the page."""
        return [seen for seen in self._pages.page.workers() if is_alive(seen.pid)]

    def last_death(self) -> dict[str, Any] | None:
        """Of a worker of this site: what, of what, in the middle of what (postmortem.describe)."""
        return self._pages.page.last_death

    # --- In between

    def note_cleanup(self, result: dict[str, Any], why: str) -> None:
        """Mark a cleanup in the site's last hour."""
        if self._started:
            self._pages.page.history.event("cleanup", result["freed_bytes"], why)

    def _may_be_time(self, usage: Usage, level: str) -> bool:
        """Whether it is worth a closer look: away from ok, or soon to be."""
        early = level == OK and usage.used < self._levels.critical / 2
        if early and self._ceiling.hit_since() is None:  # then nothing of Situation.pressed holds
            self._eased_at = self._now()
            return False
        rates = self._lately(self._now())
        soon = (
            usage.used + rates.used * SLOWLY >= self._levels.critical or self._left(rates) <= SLOWLY
        )
        wanted = level != OK or soon or self._ceiling.hit_since() is not None
        if not wanted:
            self._eased_at = self._now()
        return wanted

    def _consider(self, page: SharedPage, usage: Usage, level: str, rss: int) -> None:
        others = [seen for seen in page.workers() if seen.pid != os.getpid() and is_alive(seen.pid)]
        situation = self._situation(page, usage, level, rss, others)
        if situation.pressed:
            situation = situation._replace(lasted=self._now() - self._eased_at)
        else:
            self._eased_at = self._now()
        reason = reason_to_wait(situation)
        still = usage.used >= situation.critical and situation.lasted >= PATIENCE
        if reason in (TOO_LARGE, IN_VAIN_SO_FAR) and still:
            log.once(
                logging.ERROR,
                ("not recycled", reason),
                "🚨 Not recycling: %s (%s at start, %s now; container %s of %s). Load less, run "
                "fewer workers, or take a larger plan.",
                reason,
                *map(format_size, (situation.born_rss, rss, usage.used, usage.limit)),
            )
        if reason is None:
            self._retire(page, situation, others)

    def _situation(
        self, page: SharedPage, usage: Usage, level: str, rss: int, others: list[Seen]
    ) -> Situation:
        assert self.record is not None
        now, own = self._now(), page.read(self.record.index)
        rates = self._lately(now)
        ceiling = self._ceiling
        return Situation(
            level=level,
            used=usage.used,
            limit=usage.limit,
            warn=self._levels.warn,
            critical=self._levels.critical,
            growth=rates.used,
            rate=rates.requests,
            left=self._left(rates),
            lasted=now - self._ok_at,
            age=now - self.record.born,
            started_in=self._started_in,
            lead=self._lead(),
            rss=rss,
            born_rss=self.record.born_rss,
            idle=self.idle(),
            held=self._interrupt.grown,
            others=[seen.rss - seen.born_rss for seen in others if seen.state == READY],
            hit=ceiling.met_by_one(),
            hit_since=ceiling.hit_since(),
            full=ceiling.met_by_all(),
            holes=ceiling.holes,
            slow=any(now - flight.begun > SLOW for flight in own.flights) if own else False,
            in_vain=page.in_vain,
        )

    def _lately(self, now: float) -> Rates:
        """What happened in WINDOW, or the lead where that is longer, a second.

        What one request takes at once is a step, and no growth. So the time is cut into quarters of
        as many requests each, and the second smallest of their rates is taken. What another
        worker gives back as it ends hides how the site grows. So the others are taken to grow as
        fast as this worker.
        """
        window = max(WINDOW, self._lead())
        recent = [reading for reading in self._readings if now - reading.at <= window]
        if len(recent) < READINGS:  # on a slow processor they are few
            latest = list(self._readings)[-READINGS:]
            recent = [reading for reading in latest if now - reading.at <= MOST_LEAD]
        requests = recent[-1].requests - recent[0].requests if recent else 0
        if requests < QUARTERS:
            return Rates(0.0, 0.0, 0.0)
        bounds = [
            next(r for r in recent if r.requests >= recent[0].requests + part * requests / QUARTERS)
            for part in range(QUARTERS)
        ]
        pairs = list(zip(bounds, [*bounds[1:], recent[-1]], strict=True))
        spans = [(a, b, b.at - a.at) for a, b in pairs if b.at > a.at]
        few = requests < 2 * QUARTERS  # they may be large all by themselves
        if len(spans) < (QUARTERS if few else 2):
            return Rates(0.0, 0.0, 0.0)
        used = sorted((b.used - a.used) / seconds for a, b, seconds in spans)[1]
        rss = sorted((b.rss - a.rss) / seconds for a, b, seconds in spans)[1]
        return Rates(max(used, rss * self.count()), rss, requests / (recent[-1].at - recent[0].at))

    def _lead(self) -> float:
        """Seconds before memory is short to ask for a replacement. Until one was measured, a worker
        is taken to end as fast as it starts."""
        return lead(self._pages.page.release or (self._started_in if self._fresh else 0.0))

    def _left(self, rates: Rates) -> float:
        """Seconds until this worker meets its own ceiling."""
        left = self._ceiling.room
        return left / rates.rss if left is not None and rates.rss > 0 else float("inf")

    def _retire(self, page: SharedPage, situation: Situation, others: list[Seen]) -> None:
        assert self.record is not None
        if self.server is None:
            log.once(
                logging.WARNING,
                "no server to recycle",
                "♻️ This worker has grown from %s to %s, and its server cannot replace it: restart "
                "it, or use Gunicorn, uWSGI or mod_wsgi.",
                format_size(situation.born_rss),
                format_size(situation.rss),
            )
            return
        if not page.take_turn():
            return
        at_once = page.master == self.server.master and fits(
            situation.used, self._initial_uss, situation.limit
        )
        ready = sum(seen.state == READY for seen in others)
        if not at_once and ready < self.server.size - 1 and situation.lasted < 30:
            page.end_turn()  # another is not back yet
            return
        if not any(seen.state != READY for seen in others):
            page.change(in_vain=page.in_vain + 1)
        self._retired_at = self._now()
        page.retires(self._retired_at)
        self.record.enter(REPLACED if at_once else RETIRING)
        self.record.count("recycles")
        self.flush()
        page.history.event("recycle", situation.grown, situation.level)
        log.logger.warning(
            "♻️ recycled at %s of %s: this worker has grown from %s to %s in %d requests%s "
            "(setting: LOWMEM_RECYCLE)",
            format_size(situation.used),
            format_size(situation.limit),
            format_size(situation.born_rss),
            format_size(situation.rss),
            self.record.requests,
            self._carried() + _stuck(situation),
        )
        try:
            self.server.replace(at_once)
        except Exception:
            log.failure("Asking for a fresh worker")
            self.record.enter(READY)
            page.end_turn()

    def _carried(self) -> str:
        """What it has grown by, as far as that is known."""
        try:
            route, heavy = top(self._gc_runner.attribution.routes), self._heavy()
        except Exception:
            log.failure("Telling what has grown")
            return ""
        told = f", most of it by {route.name} ({format_size(route.grown)})" if route else ""
        return told + (f", and loaded {heavy}" if heavy else "")

    def _see_off(self, page: SharedPage) -> None:
        """While this worker ends: the next may be replaced once another is ready in this one's
        place, and this one is kept by a slow request. (Who ends gives up the turn anyway.)"""
        assert self.server is not None
        if self._now() - self._retired_at < self._lead():
            return
        ready = sum(seen.state == READY and is_alive(seen.pid) for seen in page.workers())
        if ready >= self.server.size:
            page.end_turn()

    def _fold_in_the_dead(self, page: SharedPage) -> None:
        """Without a master that does it: log of what the workers before have died."""
        kills = self._kills()
        for seen in page.workers():
            if is_alive(seen.pid):
                continue
            if self.server is None:  # some child of some process, that went as it pleased
                page.fold_in(seen)
                continue
            why = postmortem.cause(
                timed_out=False,
                killed=kills is not None and kills > page.kills,
                orderly=postmortem.left_in_order(seen),
            )
            with page.locked():
                again = page.read(seen.place)
                if again is None or again.pid != seen.pid:
                    continue  # another was faster
                if why is None:
                    page.fold_in(seen)
                else:
                    postmortem.report(page, seen, why)
        if kills is not None:
            page.change(kills=kills)


def start_threads(submit: Callable[..., object], count: int) -> None:
    """Have a pool start all its threads now: one that cannot start later, at the ceiling, would
    end the worker."""
    if count < 1:
        return
    together = threading.Barrier(count)

    def wait() -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(0.1)

    for _ in range(count):
        submit(wait)
