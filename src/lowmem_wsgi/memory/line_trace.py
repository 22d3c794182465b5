"""Find the lines whose objects stay: run tracemalloc around some requests of one route.

tracemalloc makes a whole process several times slower. So LowMemory runs it in windows: from the
begin of one request of the route to the end of the next. The first request's end is the base, and
what the second leaves behind is the growth: a value that replaces an older one does not grow. If
other requests ran beside a window, LowMemory then waits PAUSE times as long as it slowed them.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import tracemalloc
from _thread import allocate_lock
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NamedTuple

from .. import log
from ..settings import MB
from .grown_lines import Place, Sizes, by_stack, code_at, growth, median, ranked, types_by_place

# Tracing beside other requests, and reading its figures, takes at most 1 / (1 + PAUSE) of the time:
# 2.4 %.
PAUSE = 40.0
# Frames of a stack. A deeper one makes each allocation dearer.
FRAMES = 6
# A window is cut, and its figures are dropped, after so many seconds of one request, or at so many
# bytes of tracemalloc's own: a snapshot takes 3.5 times as much, and there are two. After the first
# cut, LowMemory records one frame: that is faster.
LONGEST, MOST = 2.0, 8 * MB
CUTS = 3
# Seconds that a window stays open for a second request while other requests pay for it.
SECOND = 0.1
# Seconds after a request's end until its environ counts as kept, and no longer in use.
KEPT = 0.1
# In place of that time: the server has dropped the request.
DROPPED = -1.0
# Seconds between two looks of the thread: while a request is traced, while an open window waits for
# the next one, and without a window.
SOON, WAITING, TICK = 0.003, 0.01, 0.1
# Of the report.
LINES, STACK, MOST_TYPES = 10, 6, 4


class Token:
    """Lives as long as the environ of one request of the route."""

    __slots__ = ("_begun", "_trace", "number")

    def __init__(self, trace: LineTrace, number: int, begun: float) -> None:
        self._trace = trace
        self._begun = begun
        self.number: int = number  # in flight, if traced; else 0

    def __del__(self) -> None:
        self._trace.over(self.number, self._begun)


class Window(NamedTuple):
    """An open window. Times in monotonic seconds."""

    opened: float
    requests: int  # of the process, until then
    came: int  # of the route, until then
    beside: bool  # whether other requests were in flight
    begun: dict[int, float]  # the number of a request -> when it began
    waiting: dict[int, float]  # in flight -> 0, since when it is no longer, or DROPPED
    # After so many of these requests, and when so many of the route had come in all.
    snapshots: list[tuple[int, int, tracemalloc.Snapshot]]


class LineTrace:
    """One trace. `begin` runs at each request of the route, `run` in a thread of its own.

    `wanted`: requests to trace. `seconds`: the most that the trace takes. `in_flight`: of the
    process: `number_here`, `has`, `count` and `total`. `reason`: return why to end early, or None.
    `now`: a monotonic clock.
    """

    def __init__(
        self,
        wanted: int,
        seconds: float,
        *,
        in_flight: Any,
        reason: Callable[[], str | None],
        progress: Callable[[int], object] = lambda _: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wanted = wanted
        self._in_flight = in_flight
        self._reason = reason
        self._progress = progress
        self._now = now
        self._seconds = seconds
        self._end = now() + seconds
        self._frames = FRAMES
        self._lock = threading.Lock()
        self._wake = allocate_lock()  # not an Event: a finalizer may wake the thread at any moment
        self._wake.acquire()
        self._over: deque[tuple[int, float]] = deque()
        self._window: Window | None = None
        self._next = 0.0  # no window before
        self._ended = False
        self._pid = os.getpid()
        self._pairs: list[tuple[int, Sizes]] = []
        self._singles: list[tuple[int, Sizes]] = []
        self._types: dict[Place, Counter[str]] | None = None
        self.traced: int = 0
        self.came: int = 0
        self._cuts, self._most = 0, 0
        # Seconds: of open windows; of these, beside requests; the same of the present window.
        self._on, self._busy, self._slowed, self._looked_at = 0.0, 0.0, 0.0, 0.0
        self._took: list[float] = []
        self._untraced: deque[float] = deque(maxlen=1000)

    # --- In the threads of requests

    def begin(self) -> Token | None:
        """Note a request of the route. Return the object to keep as long as the request lasts."""
        now = self._now()
        with self._lock:
            if self._ended or self._pid != os.getpid():
                return None
            self.came += 1
            window = self._window
            if window is None and now >= self._next and not tracemalloc.is_tracing():
                beside = self._in_flight.count() > 1
                window = Window(now, self._in_flight.total - 1, self.came - 1, beside, {}, {}, [])
                tracemalloc.start(self._frames)
                self._window = window
            elif window is None or len(window.waiting) != len(window.snapshots):
                return Token(self, 0, now)
            number = self._in_flight.number_here()
            window.begun[number], window.waiting[number] = now, 0.0
        return Token(self, number, now)

    def over(self, number: int, begun: float) -> None:
        """Note that the server has dropped a request. A finalizer calls this, so without a lock."""
        self._over.append((number, self._now() - begun))
        try:
            self._wake.release()
        except RuntimeError:  # awake already
            pass

    # --- In the thread of the trace

    def run(self) -> dict[str, Any]:
        """Trace until the end. Return the result, see `_result`. tracemalloc is off afterwards."""
        began = self._now()
        try:
            while (why := self._why()) is None:
                self._wake.acquire(timeout=self._pause())
                self._look()
        finally:
            self._finish()
        return self._result(why, self._now() - began)

    def _why(self) -> str | None:
        if self.traced >= self._wanted:
            return "done"
        if self._cuts >= CUTS:
            return "heavy"
        return "time" if self._now() >= self._end else self._reason()

    def _pause(self) -> float:
        if self._window is None:
            return TICK
        return SOON if max(self._window.waiting.copy().values(), default=0.0) > DROPPED else WAITING

    def _look(self) -> None:
        dropped = set()
        while self._over:
            number, took = self._over.popleft()
            (self._took if number else self._untraced).append(took)
            dropped.add(number)
        window, now = self._window, self._now()
        if window is None:
            return
        if self._in_flight.count():
            self._slowed += now - max(self._looked_at, window.opened)
        self._looked_at = now
        for number, since in window.waiting.copy().items():
            if since == DROPPED:
                continue
            if window.waiting[number] == 0.0 and not self._in_flight.has(number):
                window.waiting[number] = now
            if number in dropped or 0.0 < window.waiting[number] <= now - KEPT:
                window.waiting[number] = DROPPED
                self.traced += 1
        states = window.waiting.copy()
        over = sum(since == DROPPED for since in states.values())
        slow = any(
            since != DROPPED and now - window.begun[number] > LONGEST
            for number, since in states.items()
        )
        first = window.snapshots[0][0] if window.snapshots else 0
        size = tracemalloc.get_tracemalloc_memory()
        self._most = max(self._most, size)
        if size > MOST or slow:
            self._cut()
        elif over > first > 0:
            self._close(over)
        elif over and not window.snapshots:
            self._snapshot(window, over)
            self._progress(self.traced)
        elif self._in_vain(window, over, now):
            self._close(over)

    def _in_vain(self, window: Window, over: int, now: float) -> bool:
        """Return whether no second request has come, and others pay for waiting."""
        waits = 0 < over == len(window.waiting) and now - window.opened > SECOND
        return waits and self._paid_by_others(window)

    def _paid_by_others(self, window: Window) -> bool:
        """Return whether requests that are not traced ran beside the window."""
        return window.beside or self._in_flight.total - window.requests > len(window.waiting)

    def _snapshot(self, window: Window, over: int) -> None:
        gc.collect()
        window.snapshots.append((over, self.came, tracemalloc.take_snapshot()))
        self._most = max(self._most, tracemalloc.get_tracemalloc_memory())

    def _close(self, over: int) -> None:
        """End the window with its figures."""
        window = self._window
        assert window is not None
        if over > window.snapshots[-1][0]:
            self._snapshot(window, over)
        half = 2 * self.traced >= self._wanted or self._end - self._now() < self._seconds / 2
        if self._types is None and half:
            self._types = types_by_place()
        self._stop(window)
        began = self._now()
        sizes = [by_stack(snapshot) for _, _, snapshot in window.snapshots]
        came = [window.came, *(count for _, count, _ in window.snapshots)]
        if len(sizes) > 1:
            self._pairs.append((max(1, came[2] - came[1]), growth(*sizes)))
        else:
            self._singles.append((max(1, came[1] - came[0]), sizes[0]))
        with self._lock:
            if self._next > began:  # else nobody waits for this
                self._next += (1 + PAUSE) * (self._now() - began)
        self._progress(self.traced)

    def _cut(self) -> None:
        """End the window without figures: its requests take too long, or too much."""
        self._cuts += 1
        self._frames = 1
        if self._window is not None:
            self._stop(self._window)

    def _stop(self, window: Window) -> None:
        with self._lock:
            tracemalloc.stop()
            now = self._now()
            slowed, self._slowed = self._slowed + now - max(self._looked_at, window.opened), 0.0
            paid = self._paid_by_others(window)
            self._next = now + PAUSE * slowed if paid else now
            self._on += now - window.opened
            self._busy += slowed
            self._window = None

    def _finish(self) -> None:
        with self._lock:
            self._ended = True
        window = self._window
        try:
            if window is not None and window.snapshots:
                self._close(window.snapshots[0][0])
        finally:
            if self._window is not None:  # also where no memory was left for the figures
                self._stop(self._window)

    def after_fork(self) -> None:
        """Stop tracemalloc in a new child process, which runs no thread of the trace."""
        self._ended = True
        self._lock = threading.Lock()
        if self._window is not None:
            self._window = None
            tracemalloc.stop()

    # --- The result

    def _result(self, why: str, seconds: float) -> dict[str, Any]:
        """Return the result: `why` it ended, what was `traced`, the `lines`, and the `cost`."""
        paired = bool(self._pairs)
        windows = self._pairs if paired else self._singles
        traced = sum(requests for requests, _ in windows)
        lines = [
            {
                "file": place[0],
                "line": place[1],
                "code": code_at(place),
                "grown_bytes": found.bytes,
                "blocks": found.blocks,
                "bytes_per_request": round(found.bytes / traced),
                "windows": found.windows,
                "types": [
                    {"type": name, "objects": count}
                    for name, count in (self._types or {})
                    .get(place, Counter())
                    .most_common(MOST_TYPES)
                ],
                "stack": [
                    {"file": file, "line": line, "code": code_at((file, line))}
                    for file, line in found.stack[:STACK]
                ],
            }
            for place, found in ranked([grown for _, grown in windows])[:LINES]
        ]
        return {
            "why": why,
            "came": self.came,
            "traced": self.traced,
            "windows": len(windows),
            "measured": traced,
            "paired": paired,
            "lines": lines,
            "cost": {
                "seconds": round(seconds, 3),
                "on_seconds": round(self._on, 4),
                "busy_seconds": round(self._busy, 4),
                "request_seconds": median(self._took),
                "untraced_request_seconds": median(self._untraced),
                "most_bytes": self._most,
                "cut": self._cuts,
            },
        }


def start_thread(trace: LineTrace, done: Callable[[dict[str, Any] | None], object]) -> None:
    """Run the trace in a thread, then call `done` with the result; None if the trace has failed.

    Raises RuntimeError if no thread can start.
    """

    def run() -> None:
        result = None
        try:
            result = trace.run()
        except Exception:
            log.failure("Tracing a route", "the trace has ended, requests go on")
        finally:
            done(result)

    threading.Thread(target=run, name="lowmem-trace", daemon=True).start()
