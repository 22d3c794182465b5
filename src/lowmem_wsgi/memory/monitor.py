"""The monitor thread: read memory, keep the level, and act when the level rises.

Each process has one monitor, a daemon thread that the process's first request starts. The thread
sleeps longer while memory is far from the next threshold, judged by the steepest growth seen.
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

# Seconds between two readings: at most, at least, and after a reading that asks for another level.
REST, SHORTEST, CONFIRM = 1.0, 0.02, 0.005
# Seconds after which LowMemory looks up the limit, and its source, again.
FIND = 10.0
# Readings on the way to a threshold.
LOOKS = 4
# Assumed growth (bytes a second) before any growth was seen: a fast import, a large query.
USUAL_GROWTH = 100 * MB
# After STILL_AFTER seconds without growth above NOISE (bytes), readings are at least STILL seconds
# apart, however near the threshold is.
NOISE, STILL_AFTER, STILL = MB, 5.0, 0.1
# Growth of the process (bytes), seen at the end of a request, that wakes the monitor at once.
NUDGE = 16 * MB
# Seconds until LowMemory tries again to start a thread that could not be started.
RETRY = 10.0
# Half-life (seconds) of the steepest growth seen.
MEMORY_OF_GROWTH = 60.0

# Called after each reading, with the reading and the level after that reading.
Duty = Callable[[Usage, str], None]


def next_look(distance: int, steepest: float) -> float:
    """Return the seconds to the next reading, when memory is `distance` bytes under a threshold.

    `steepest`: the growth to expect, in bytes a second.
    """
    arrival = distance / max(steepest, USUAL_GROWTH)
    return min(max(arrival / LOOKS, SHORTEST), REST)


def thresholds_for(settings: Settings, limit: int) -> tuple[int, int]:
    """Return the thresholds warn and critical in bytes, for a `limit` in bytes."""
    warn, critical = (threshold_bytes(at, limit) for at in (settings.warn_at, settings.critical_at))
    if not 0 < warn < critical <= limit:
        # Thresholds given as sizes may not fit a limit that is known only now.
        log.once(
            logging.WARNING,
            ("thresholds", limit),
            "LOWMEM_WARN_AT (%s) and LOWMEM_CRITICAL_AT (%s) do not fit the limit of %s: "
            "LowMemory uses 78 %% and 88 %% of it.",
            format_size(warn),
            format_size(critical),
            format_size(limit),
        )
        shares = Settings.warn_at.default(), Settings.critical_at.default()
        warn, critical = (threshold_bytes(share, limit) for share in shares)
    return max(1, warn), max(2, critical)


class Monitor:
    """The monitor of one process. Call `start` at a request; idempotent while the thread runs.

    `duties` run after each reading, in order, each with a name for the log. `may_act`: return
    whether the monitor may clean up; False while the process is about to end. `now`: a monotonic
    clock in seconds. `shared`: return the bytes that the process shares.
    """

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
        self.running: bool = False
        self._may_act = may_act
        self._stop = threading.Event()
        self._wake = _unset()  # acquired, but for a moment when `_signal` releases it
        self._resting = False
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
        """Start the thread, unless one runs. Thread-safe.

        Raises RuntimeError if no thread can start. For RETRY seconds after that, does nothing.
        """
        with self._lock:
            if self.running or self._now() < self._retry_at:
                return
            # Each thread has its own event: an ending thread still reads the earlier event.
            self._stop = stop = threading.Event()
            self._wake = _unset()  # under gevent, one made before the patches blocks all greenlets
            self.running = True
        try:
            # Release the lock first: under gevent, starting a greenlet lets other greenlets of this
            # thread run.
            threading.Thread(
                target=self._run, args=(stop,), name="lowmem-monitor", daemon=True
            ).start()
        except RuntimeError:
            self._ended(stop)
            self._retry_at = self._now() + RETRY
            raise

    def stop(self) -> None:
        """Wake the thread, which then ends. Does not wait. Thread-safe."""
        with self._lock:
            self._stop.set()
            self._signal()
            self.running = False

    def nudge(self, rss: int) -> None:
        """Wake the thread for a reading if the process has grown by NUDGE since the last nudge.

        `rss`: resident memory of the process in bytes.
        """
        if rss < self._woken_at:
            self._woken_at = rss
        elif rss >= self._woken_at + NUDGE:
            self._woken_at = rss
            self._nudged = True
            self._signal()

    def runs_owed(self) -> bool:
        """Wake the thread: run the GC passes that requests have left, if no later request does.

        Return whether the thread will: it cannot while it is busy with a tick.
        """
        if self._resting:
            self._signal()
            return True
        return False

    def after_fork(self) -> None:
        """Reset in a new child process, which has no monitor thread and no readings yet."""
        self.running = False
        self._stop, self._wake = threading.Event(), _unset()
        self._resting = False
        self._lock = threading.Lock()
        self._memory.reopen()
        self._forget()

    def tick(self) -> float:
        """Read memory and act on the reading. Return the seconds to the next tick."""
        now = self._now()
        if now - self._read_at >= FIND:
            self._read_at, usage = now, self._memory.read()
        else:
            usage = self._memory.glance()
        self._notice_growth(now, usage.used)
        self._keep_thresholds(usage.limit)
        before = self.levels.level
        level = self.levels.observe(usage.used)
        latest = self._do_duties(usage, level)  # first: a cleanup takes long
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

    # --- Helpers

    def _do_duties(self, usage: Usage, level: str) -> float:
        """Run the duties. Return the most seconds that may pass until the next reading."""
        latest = REST
        for name, duty in self._duties:
            try:
                duty(usage, level)
            except MemoryError:  # a passing shortage: try again soon
                latest = SHORTEST
            except Exception:
                log.failure(name)
        return latest

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
            self._ended(stop)  # the next request then starts another thread

    def _rest(self, stop: threading.Event, pause: float) -> None:
        """Sleep at most `pause` seconds. Meanwhile, run the GC passes that requests have left."""
        end, runner, wake = time.monotonic() + pause, self._gc_runner, self._wake
        try:
            self._resting = True
            while pause > 0 and not self._nudged and not stop.is_set():
                owing = runner.owing
                wake.acquire(timeout=min(pause, runner.shared_within) if owing else pause)
                if owing:
                    self._catch_up()
                pause = end - time.monotonic()
        finally:
            self._resting = self._nudged = False
            self._catch_up(at_once=True)

    def _catch_up(self, *, at_once: bool = False) -> None:
        try:
            self._gc_runner.catch_up(at_once=at_once)
        except Exception:
            log.failure("The GC passes that requests share")

    def _signal(self) -> None:
        """End the thread's sleep. A finalizer may call this at any moment, so not an Event: the
        thread may be holding an Event's own lock just then."""
        try:
            self._wake.release()
        except RuntimeError:  # nobody has slept since the last time
            pass

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
        # Memory that does not grow needs fewer readings, also near a threshold. A growth that
        # begins just under the threshold is then seen up to STILL seconds later.
        still = self._now() - self._grew_at >= STILL_AFTER
        return max(pause, STILL) if still else pause

    def _changed(self, usage: Usage, before: str, level: str) -> None:
        if LEVELS.index(level) > LEVELS.index(before):
            self._act(usage, level, tell=True)
        else:
            log.logger.info("🔍 %s, %s again after %s", self._figures(usage), level, before)

    def _leave_shared(self) -> bool:
        """Return whether a cleanup should not copy the pages shared with the master.

        True when memory is well under warn again, or when the copies would fill it to critical.
        """
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
    """Return the steps of a cleanup for a log line: `trim 39 MB, collect 0 bytes`."""
    return ", ".join(
        # A figure can be negative: a step that reads shared pages makes copies of them.
        f"{step['step']} {format_size(max(0, int(str(step['freed_bytes']))))}"
        for step in result["steps"]
    )


def _unset() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock
