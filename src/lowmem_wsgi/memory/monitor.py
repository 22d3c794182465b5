"""The background thread: reads memory, keeps the level, and acts when it rises.

One daemon thread a process, started by that process's first request. It sleeps the longer the
further memory is from the next threshold, at the steepest growth seen.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from .. import log
from ..settings import MB, Settings, format_size, threshold_bytes
from ..system.procfs import shared_bytes
from ..system.usage import Usage
from .cleanup import Cleanup
from .gc_runner import GcRunner
from .levels import CALM, CRITICAL, LEVELS, OK, WARN, Levels
from .reading import Memory

# Seconds between two looks: at most, at least, and when the last one asks for another level.
REST, SHORTEST, CONFIRM = 1.0, 0.02, 0.005
# The limit, and whose it is, is looked for anew after so many seconds.
FIND = 10.0
# It looks this often on the way to a threshold.
LOOKS = 4
# Bytes a second that growth is taken for before any was seen: a fast import, a large query.
USUAL_GROWTH = 100 * MB
# Memory that has not grown by more than the noise (bytes) for so long (seconds) is looked at no
# more often than this (seconds), however near it is.
NOISE, STILL_AFTER, STILL = MB, 5.0, 0.1
# Growth (bytes) of the process, seen at the end of a request, that is not waited on to be seen.
NUDGE = 16 * MB
# A thread that could not be started is tried again after so many seconds.
RETRY = 10.0
# What was seen is half forgotten after so many seconds.
MEMORY_OF_GROWTH = 60.0

# What is done at each look, with the reading and the level after it.
Duty = Callable[[Usage, str], None]


def next_look(distance: int, steepest: float) -> float:
    """Seconds to the next reading, `distance` bytes under a threshold."""
    arrival = distance / max(steepest, USUAL_GROWTH)
    return min(max(arrival / LOOKS, SHORTEST), REST)


def thresholds_for(settings: Settings, limit: int) -> tuple[int, int]:
    """Return warn and critical in bytes, for a limit of so many bytes."""
    warn, critical = (threshold_bytes(at, limit) for at in (settings.warn_at, settings.critical_at))
    if not 0 < warn < critical <= limit:
        # Sizes may make no sense under a limit that is found only now.
        log.once(
            logging.WARNING,
            ("thresholds", limit),
            "LOWMEM_WARN_AT (%s) and LOWMEM_CRITICAL_AT (%s) do not fit the limit of %s: "
            "using 78 %% and 88 %% of it.",
            format_size(warn),
            format_size(critical),
            format_size(limit),
        )
        shares = Settings.warn_at.default(), Settings.critical_at.default()
        warn, critical = (threshold_bytes(share, limit) for share in shares)
    return max(1, warn), max(2, critical)


class Monitor:
    """Call `start` at a request; it does nothing where the thread runs already."""

    def __init__(
        self,
        settings: Settings,
        memory: Memory,
        levels: Levels,
        cleanups: Cleanup,
        collector: GcRunner,
        *,
        duties: Sequence[tuple[str, Duty]] = (),
        may_act: Callable[[], bool] = lambda: True,
        now: Callable[[], float] = time.monotonic,
        shared: Callable[[], int] = shared_bytes,
    ) -> None:
        self._settings = settings
        self._shared = shared
        self._memory = memory
        self._cleanups = cleanups
        self._gc_runner = collector
        self._now = now
        self.running = False
        self._may_act = may_act  # else it only looks: the process is about to end
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._nudged = False
        self._woken_at = 0
        self._lock = threading.Lock()
        self._duties = tuple(duties)
        self._maintained_at = self._logged_at = self._acted_at = 0.0
        self._retry_at = 0.0
        self._read_at = float("-inf")
        self._steepest = 0.0
        self._highest, self._grew_at = 0, 0.0
        self._seen: tuple[float, int] | None = None
        self.levels = levels
        self._forget()

    def start(self) -> None:
        """Raises RuntimeError where no thread can be had; tried again after RETRY seconds."""
        with self._lock:
            if self.running or self._now() < self._retry_at:
                return
            # One each: an ending thread still looks at its own.
            self._stop = stop = threading.Event()
            self.running = True
        try:
            # Not with the lock held: a greenlet's start lets others run, and under gevent they may
            # be of this very thread.
            threading.Thread(
                target=self._run, args=(stop,), name="lowmem-monitor", daemon=True
            ).start()
        except RuntimeError:
            self._ended(stop)
            self._retry_at = self._now() + RETRY
            raise

    def stop(self) -> None:
        """End the thread at its next wake-up, which is now."""
        with self._lock:
            self._stop.set()
            self._wake.set()
            self.running = False

    def nudge(self, rss: int) -> None:
        """Look now, if the process has grown much since the last time this was told."""
        if rss < self._woken_at:
            self._woken_at = rss
        elif rss >= self._woken_at + NUDGE:
            self._woken_at = rss
            self._nudged = True
            self._wake.set()

    def runs_owed(self) -> None:
        """Requests have left passes to be shared: make them, if no later request does."""
        self._wake.set()

    def after_fork(self) -> None:
        """In a new child: there is no thread here, and nothing was seen yet."""
        self.running = False
        self._stop, self._wake = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._memory.reopen()
        self._forget()

    def tick(self) -> float:
        """One look, and what follows from it. Seconds to the next."""
        now = self._now()
        if now - self._read_at >= FIND:
            self._read_at, usage = now, self._memory.read()
        else:
            usage = self._memory.glance()
        self._notice_growth(now, usage.used)
        self._keep_thresholds(usage.limit)
        before = self.levels.level
        level = self.levels.observe(usage.used)
        latest = self._do_duties(usage, level)  # first: a cleanup takes its time
        acting = self._may_act()
        if not acting:
            pass
        elif level != before:
            self._changed(usage, before, level)
        elif level != OK and now - self._acted_at >= self._settings.cleanup_interval:
            self._act(usage, level, tell=False)
        if acting and now - self._maintained_at >= self._settings.cleanup_interval:
            self._maintained_at = now
            self._gc_runner.maintain()
        if now - self._logged_at >= self._settings.check_interval:
            self._logged_at = now
            log.logger.info("🔍 %s, %s", self._figures(usage), level)
        return min(self._pause(usage.used), latest)

    # --- In between

    def _do_duties(self, usage: Usage, level: str) -> float:
        """Return the seconds to the next look, at the latest."""
        return min([REST, *(self._do(name, duty, usage, level) for name, duty in self._duties)])

    def _do(self, name: str, duty: Duty, usage: Usage, level: str) -> float:
        try:
            duty(usage, level)
        except MemoryError:  # for the moment
            return SHORTEST
        except Exception:
            log.failure(name)
        return REST

    def _run(self, stop: threading.Event) -> None:
        try:
            while not stop.is_set():
                try:
                    pause = self.tick()
                except Exception:
                    log.failure("The memory monitor")
                    pause = REST
                self._rest(stop, pause)
        finally:
            self._ended(stop)  # whatever ended it, the next request starts another

    def _rest(self, stop: threading.Event, pause: float) -> None:
        """Sleep for so many seconds, at most, and meanwhile make the passes that are owed."""
        end = time.monotonic() + pause
        while pause > 0 and not self._nudged and not stop.is_set():
            owing = self._gc_runner.owing
            self._wake.wait(min(pause, self._gc_runner.shared_within) if owing else pause)
            self._wake.clear()
            if owing:
                self._gc_runner.catch_up()
            pause = end - time.monotonic()
        self._nudged = False

    def _ended(self, stop: threading.Event) -> None:
        with self._lock:
            if self._stop is stop:
                self.running = False

    def _forget(self) -> None:
        now = self._now()
        self._limit = self._memory.read().limit
        self.levels.restart(*thresholds_for(self._settings, self._limit))
        self._steepest, self._seen = 0.0, None
        self._highest, self._grew_at = 0, now
        self._maintained_at = self._logged_at = self._acted_at = now

    def _keep_thresholds(self, limit: int) -> None:
        if limit != self._limit:
            self._limit = limit
            self.levels.move(*thresholds_for(self._settings, limit))

    def _notice_growth(self, now: float, used: int) -> None:
        if self._seen is not None and now > self._seen[0]:
            seconds, grown = now - self._seen[0], used - self._seen[1]
            self._steepest *= 0.5 ** (seconds / MEMORY_OF_GROWTH)
            self._steepest = max(self._steepest, grown / seconds)
        if used > self._highest:
            self._highest, self._grew_at = used + NOISE, now
        elif used < self._highest - 2 * NOISE:
            self._highest = used + NOISE
        self._seen = (now, used)

    def _pause(self, used: int) -> float:
        if self.levels.unsettled:
            return CONFIRM
        if self.levels.level == CRITICAL:
            return REST / LOOKS
        threshold = self.levels.warn if self.levels.level == OK else self.levels.critical
        pause = next_look(threshold - used, self._steepest)
        # Near a threshold but still: it need not be looked at as often. A growth that begins just
        # under it may then be seen STILL seconds later.
        still = self._now() - self._grew_at >= STILL_AFTER
        return max(pause, STILL) if still else pause

    def _changed(self, usage: Usage, before: str, level: str) -> None:
        if LEVELS.index(level) > LEVELS.index(before):
            self._act(usage, level, tell=True)
        else:
            log.logger.info("🔍 %s, %s again after %s", self._figures(usage), level, before)

    def _leave_shared(self) -> bool:
        """Whether shared pages had better not be copied: memory is well under warn again, or it
        would be at critical with the copies."""
        used = self._memory.read().used
        if self.levels.zone(used) == CALM:
            return True
        return used + self._shared() >= self.levels.critical

    def _act(self, usage: Usage, level: str, *, tell: bool) -> None:
        self._acted_at = self._now()
        result = self._cleanups.run(level, tell=tell, leave_shared=self._leave_shared)
        sign, severity = {WARN: ("🧹", logging.WARNING), CRITICAL: ("🚨", logging.ERROR)}[level]
        log.limited(
            severity,
            ("acted", level, tell),
            "%s %s at %s: freed %s (%s)",
            sign,
            level,
            self._figures(usage),
            format_size(max(0, result["freed_bytes"])),
            freed_by_step(result),
        )

    def _figures(self, usage: Usage) -> str:
        share = 100 * usage.used / usage.limit if usage.limit else 0
        return (
            f"{format_size(usage.used)} of {format_size(usage.limit)} ({share:.0f} %, "
            f"{usage.source})"
        )


def freed_by_step(result: dict[str, list[dict[str, object]]]) -> str:
    """The steps of a cleanup for a log line: `trim 39 MB, collect 0 bytes`."""
    return ", ".join(
        # A step that looks at shared pages takes copies of them, so a figure can be negative.
        f"{step['step']} {format_size(max(0, int(str(step['freed_bytes']))))}"
        for step in result["steps"]
    )
