"""One process as a worker of a site: its record, start, replacement and end."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .. import log
from ..memory.attribution import top
from ..memory.levels import OK
from ..settings import Settings, format_size
from ..system.procfs import OwnRss, own_uss, process_seconds
from ..system.usage import Usage
from . import postmortem
from .growth import Rates, Reading, rates
from .record import GONE, READY, REPLACED, RETIRING, Seen, WorkerRecord
from .recycling import (
    IN_VAIN_SO_FAR,
    LEAST_LEAD,
    LONGER,
    PATIENCE,
    SLOW,
    SLOWLY,
    TOO_LARGE,
    Situation,
    fits,
    lead,
    reason_to_wait,
)
from .servers import Server, find_server, start_threads
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
    from .trace_note import TraceNote

# An ending worker takes room only if its RSS has grown in the last JUST_NOW seconds.
JUST_NOW = 0.3
# Seconds between two writes of the counters to the shared page. The worker also writes at its end.
FLUSH_EVERY = 1.0
# Enough readings for the longest lead, at the shortest pauses.
MOST_READINGS = 256
# Seconds to wait for another worker's replacement to be ready. Some servers run fewer workers than
# they may, and a worker may be ready only after its first request.
UNREADY = 30.0
# The most seconds that the start of a worker is assumed to take when not measured.
LONGEST_START = 1.0


def _stuck(situation: Situation) -> str:
    """Return for the log why a worker that met its ceiling is replaced; "" for any other."""
    if not situation.stuck:
        return ""
    holes = f", {format_size(situation.holes)} of it free and in pieces" if situation.holes else ""
    return f"; requests met its ceiling{holes}"


class Worker:
    """One worker. Call `start` in the worker's process.

    From `start` to `give_up` the worker has a `record`. `counts`: return the process's counters.
    `kills`: return how many processes of the container the OOM killer has ended. `heavy`: return
    the heavy modules that the process has loaded, for the log. `now`: a monotonic clock in seconds.
    `find`: return the server that can replace the worker.
    """

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
        self._counts = counts
        self._kills = kills
        self._now = now
        self._find = find
        self._pages = pages
        self._heavy = heavy
        self._rss = OwnRss() if rss is None else rss
        self._uss = uss
        self._forget()

    def _forget(self) -> None:
        self.record: WorkerRecord | None = None
        self.server: Server | None = None
        self._started = False
        self._initial_uss = 0
        self._started_in, self._fresh = 0.0, False
        self._ok_at = self._eased_at = self._now()  # when the level was last ok, and not pressed
        self._readings: deque[Reading] = deque(maxlen=MOST_READINGS)
        self._asked: float | None = None  # when this worker was asked to be replaced
        self._flushed_at = float("-inf")
        self._starting, self._flushing = threading.Lock(), threading.Lock()

    # --- A worker's life

    def start(self, *, fresh: bool = False) -> None:
        """Take a place on the shared page. Idempotent and thread-safe.

        `fresh`: the process has only started so far, so its age is the duration of its start.
        """
        with self._starting:  # the first requests come together, and all need the same page
            if self._started:
                return
            try:
                self.server = self._find()
                page = self._pages.join(self.server)
                # Do not count again what the process had counted before the fork.
                self.record = page.claim(self._rss(), self._counts(), now=self._now)
            finally:
                self._started = True  # if this failed, the app is served without
        self._initial_uss = self._uss()
        # If the process is not fresh, its start took at most its age.
        age = process_seconds() or LONGEST_START  # the system may not report the age
        self._started_in = age if fresh else min(age, LONGEST_START)
        self._fresh = fresh
        if not page.master:
            self._fold_in_the_dead(page)
        if self.server is not None and self.server.submit is not None:
            # Do not count this thread if it belongs to the pool.
            own = threading.current_thread() is not threading.main_thread()
            start_threads(self.server.submit, self.server.threads - own)

    @property
    def retiring(self) -> bool:
        """Whether this worker is about to end, replaced by another."""
        return self.record is not None and self.record.state in (RETIRING, REPLACED)

    def idle(self) -> bool:
        return not self._in_flight.count()

    def leave(self) -> None:
        """Mark the worker as ended in order. Call this at the end of the process."""
        if self.record is not None and self.record.pid == os.getpid():
            self.flush()
            self.record.enter(self.record.state | GONE)
            if self.record.index < 0:  # not on the page, so no other process can read it
                self._pages.page.give_up(self.record)

    def give_up(self) -> None:
        """Free the worker's place, while the process goes on without it."""
        with self._flushing:
            record, self.record, self._started = self.record, None, False
            if record is not None and record.pid == os.getpid():
                self._pages.page.give_up(record)

    def abort(self) -> None:
        """Keep the requests in flight on the record: the process is about to be killed."""
        if self.record is not None:
            self.record.freeze()

    def after_fork(self) -> None:
        """Forget the place in a new child process: the place is the parent's."""
        self._pages.after_fork()
        if isinstance(self._rss, OwnRss):
            self._rss.reopen()
        self._forget()

    def count(self) -> int:
        """Return how many workers share the memory left. An ending worker counts while it grows."""
        if not self._started:
            return 1
        page, since = self._pages.page, self._now() - JUST_NOW
        if page.taken() == [self.record.index if self.record is not None else -1]:
            found = 1  # most sites, most of the time
        else:
            found = sum(seen.takes_room(since) and is_alive(seen.pid) for seen in page.workers())
        return max(1, found, self.server.size if self.server is not None else 1)

    def ending(self) -> bool:
        """Return whether a worker of this site is ending: asked to end, and still alive."""
        return self._started and any(
            seen.state in (RETIRING, REPLACED) and is_alive(seen.pid)
            for seen in self._pages.page.workers()
        )

    def look(self, usage: Usage, level: str) -> None:
        """Record a reading and the level after it, and replace this worker if needed.

        The monitor's thread calls this after each reading.
        """
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
            pass  # this worker has ended, or `give_up` has freed its record: do not replace it
        elif record.state in (RETIRING, REPLACED):
            self._see_off(page)
        elif self._asked is not None and self._retire_as_asked(page, usage, rss):
            pass
        elif self._recycling and self._may_be_time(usage, level):
            self._consider(page, usage, level, rss)

    def flush(self, patience: float = 0.0) -> None:
        """Write this process's counters on the shared page. Thread-safe.

        Wait at most `patience` seconds for another thread that does the same.
        """
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
        """Return the counters of the site: the sum of all its workers."""
        if not self._started:
            return dict(self._counts())
        self.flush(patience=0.5)
        return self._pages.page.figures().counters

    def growth(self) -> dict[str, RouteFigures]:
        """Return the figures of each route, summed over the site's workers, alive and dead."""
        return self._pages.page.figures().routes

    def held(self, place: int) -> int:
        """Return the bytes that routes have left in the worker at this place."""
        return self._pages.page.held(place)

    @property
    def history(self) -> History:
        """The history of the site's last hour."""
        return self._pages.page.history

    @property
    def trace_note(self) -> TraceNote:
        """The site's last trace of a route."""
        return self._pages.page.trace

    def alive(self) -> list[Seen]:
        """Return the records of the site's workers that are alive."""
        return [seen for seen in self._pages.page.workers() if is_alive(seen.pid)]

    def last_death(self) -> dict[str, Any] | None:
        """Return the last death of a worker of this site (see postmortem.describe), or None."""
        return self._pages.page.last_death

    # --- Helpers

    def note_cleanup(self, result: dict[str, Any], why: str) -> None:
        """Mark a cleanup in the site's history of the last hour."""
        if self._started:
            self._pages.page.history.event("cleanup", result["freed_bytes"], why)

    def _may_be_time(self, usage: Usage, level: str) -> bool:
        """Return whether to consider a replacement: the level is not ok, or soon will not be."""
        early = level == OK and usage.used < self._levels.critical / 2
        if early and self._ceiling.hit_since() is None:  # then Situation.pressed is false
            self._eased_at = self._now()
            return False
        lead, workers = self._lead(), self.count()
        growth = rates(self._readings, self._now(), lead, workers)
        # Workers that have grown alike are replaced one after the other: see `Situation`.
        ahead = max(SLOWLY, lead * workers)
        soon = (
            usage.used + growth.used * ahead >= self._levels.critical or self._left(growth) <= ahead
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
        lead = self._lead()
        growth = rates(self._readings, now, lead, self.count())
        ceiling = self._ceiling
        return Situation(
            level=level,
            used=usage.used,
            limit=usage.limit,
            warn=self._levels.warn,
            critical=self._levels.critical,
            growth=growth.used,
            rate=growth.requests,
            left=self._left(growth),
            lasted=now - self._ok_at,
            age=now - self.record.born,
            started_in=self._started_in,
            lead=lead,
            rss=rss,
            born_rss=self.record.born_rss,
            idle=self.idle(),
            held=self._interrupt.grown,
            others=[seen.rss - seen.born_rss for seen in others if seen.state == READY],
            hit=ceiling.met_by_one(),
            hit_since=ceiling.hit_since(),
            full=ceiling.met_by_all(),
            holes=ceiling.holes,
            slow=any(now - request.begun > SLOW for request in own.in_flight) if own else False,
            in_vain=page.in_vain,
        )

    def _lead(self) -> float:
        """Return how many seconds before memory is short to ask for a replacement.

        Until the end of a worker was measured, the end is assumed to take LONGER times as long as
        the start. Connections that clients keep open now may take longer than any end before.
        """
        release = self._pages.page.release or (self._started_in * LONGER if self._fresh else 0.0)
        return lead(max(release, self.server.kept() if self.server is not None else 0.0))

    def _left(self, growth: Rates) -> float:
        """Return the seconds until this worker meets its own ceiling."""
        left = self._ceiling.room
        return left / growth.rss if left is not None and growth.rss > 0 else float("inf")

    def ask_to_replace(self) -> str | None:
        """Let this worker be replaced at the next reading, in its turn. Return why not, or None.

        Not at once: some servers wait for the end of the request that asks for this.
        """
        why = self.irreplaceable()
        if why is None and self.retiring:
            why = "This worker is being replaced already."
        if why is None:
            self._asked = self._now()
        return why

    def irreplaceable(self) -> str | None:
        """Return why nobody may replace this worker; None if somebody may."""
        if not self._recycling:
            return "LOWMEM_RECYCLE is off, so LowMemory replaces no worker."
        if self.server is None:
            return (
                "This server cannot replace a worker: restart it, or use Gunicorn with threads, "
                "uWSGI or mod_wsgi."
            )
        return None

    def _retire_as_asked(self, page: SharedPage, usage: Usage, rss: int) -> bool:
        """Return False if another worker comes first: try again at the next reading."""
        assert self.record is not None
        assert self.server is not None
        assert self._asked is not None
        if not page.take_turn():
            return False
        at_once = self._fits_beside(page, self.server, usage)
        others = [seen for seen in page.workers() if seen.pid != os.getpid() and is_alive(seen.pid)]
        ready = sum(seen.state == READY for seen in others)
        if not at_once and ready < self.server.size - 1 and self._now() - self._asked < UNREADY:
            page.end_turn()  # the replacement of another worker is not ready yet
            return False
        self._asked = None
        told = (
            "♻️ recycled, as asked for: this worker has grown from %s to %s in %d requests",
            *(format_size(self.record.born_rss), format_size(rss), self.record.requests),
        )
        self._replace(page, at_once, max(0, rss - self.record.born_rss), "asked", told)
        return True

    def _retire(self, page: SharedPage, situation: Situation, others: list[Seen]) -> None:
        assert self.record is not None
        if self.server is None:
            log.once(
                logging.WARNING,
                "no server to recycle",
                "♻️ This worker has grown from %s to %s, and its server cannot replace it. Restart "
                "the server, or use Gunicorn, uWSGI or mod_wsgi.",
                format_size(situation.born_rss),
                format_size(situation.rss),
            )
            return
        if not page.take_turn():
            return
        at_once = self._fits_beside(page, self.server, situation)
        ready = sum(seen.state == READY for seen in others)
        if not at_once and ready < self.server.size - 1 and situation.lasted < UNREADY:
            page.end_turn()  # the replacement of another worker is not ready yet
            return
        if not any(seen.state != READY for seen in others):
            page.change(in_vain=page.in_vain + 1)
        told = (
            "♻️ recycled at %s of %s: this worker has grown from %s to %s in %d requests%s "
            "(setting: LOWMEM_RECYCLE)",
            format_size(situation.used),
            format_size(situation.limit),
            format_size(situation.born_rss),
            format_size(situation.rss),
            self.record.requests,
            self._carried() + _stuck(situation),
        )
        patience = max(situation.spare / 2, LEAST_LEAD)
        self._replace(page, at_once, situation.grown, situation.level, told, patience)

    def _fits_beside(self, page: SharedPage, server: Server, now: Usage | Situation) -> bool:
        """Return whether a fresh worker can start before this one ends."""
        asked = server.listens and page.master == server.master
        return asked and fits(now.used, self._initial_uss, now.limit)

    def _replace(
        self,
        page: SharedPage,
        at_once: bool,
        grown: int,
        why: str,
        told: tuple[object, ...],
        patience: float = float("inf"),
    ) -> None:
        """Ask the server for a fresh worker, with the turn taken.

        `grown`: bytes, for the history. `told`: the log line and its arguments. `patience`: seconds
        that this worker may keep connections without a request.
        """
        assert self.record is not None
        assert self.server is not None
        self.record.enter(REPLACED if at_once else RETIRING)
        self.record.count("recycles")
        self.flush()
        page.history.event("recycle", grown, why)
        log.logger.warning(*told)
        try:
            self.server.replace(at_once, patience)
        except Exception:
            log.failure("Asking for a fresh worker")
            self.record.enter(READY)
            page.end_turn()

    def _carried(self) -> str:
        """Return for the log what has grown in this worker, as far as known."""
        try:
            route, heavy = top(self._gc_runner.attribution.routes), self._heavy()
        except Exception:
            log.failure("Finding what has grown")
            return ""
        growth = f", most of it by {route.name} ({format_size(route.grown)})" if route else ""
        return growth + (f", and loaded {heavy}" if heavy else "")

    def _see_off(self, page: SharedPage) -> None:
        """Let the next worker be replaced while a slow request keeps this ending worker alive.

        Gives up the turn once a replacement is ready, and this worker still serves requests, or
        should have ended. (The end of this process also gives up the turn.)
        """
        assert self.server is not None
        assert self.record is not None
        wait = self._lead() if self.idle() else LEAST_LEAD
        if self._now() - self.record.retired < wait:
            return
        ready = sum(seen.state == READY and is_alive(seen.pid) for seen in page.workers())
        if ready >= self.server.size:
            page.end_turn()

    def _fold_in_the_dead(self, page: SharedPage) -> None:
        """Log the causes of earlier workers' deaths, where no master does so."""
        kills = self._kills()
        for seen in page.workers():
            if is_alive(seen.pid):
                continue
            if self.server is None:  # a process of an unknown server: no cause can be known
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
                    continue  # another process has folded in this record
                if why is None:
                    page.fold_in(seen)
                else:
                    postmortem.report(page, seen, why)
        if kills is not None:
            page.change(kills=kills)
