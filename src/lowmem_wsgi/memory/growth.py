"""What each route leaves behind: the growth of the process, booked to the requests that made it.

RSS is one figure for all threads, so where requests overlap it does not say who grew. But each page
that comes in comes by a fault, and the kernel counts a thread's own (`RUSAGE_THREAD` of
getrusage(2)). So:

* RSS is weighed where the collector looks at it anyway: after the passes and after giving back, at
  the last of the requests in flight and every 20 ms beside others.
* Growth since the last weighing is shared among those that have ended meanwhile, and what runs
  outside of requests, by their faults; and by how much of what a route faulted in before has
  stayed. A route that fills buffers and frees them faults as much as one that leaks.
* What is learned of a route changes how the last windows of several routes are shared, too.
* While others are in flight, a request is booked no more than it has faulted in: the rest is
  theirs, and waits for them.
* A fall takes back what was booked since the last one, first; then it is the ended requests' own.

Not thread-safe but where it says so: the collector weighs under its lock.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from threading import get_ident
from typing import NamedTuple

from ..settings import KB

# As many routes are told apart; the least of them give way to others.
MOST = 100
OTHER = "other"
# What no request has done: a thread of the app's own.
NO_REQUEST = "(no request)"
# Bytes at a time: less growth than this is not asked who else could have made it.
NOISE = 256 * KB
# Before anything is known of a route, half of what it faults in is taken to stay; so much (bytes)
# of what it does outweighs that.
PRIOR, PRIOR_WEIGHT = 0.5, 64 * KB
# A fall is shared in so many rounds, as nobody gives back more than there is.
ROUNDS = 4
# So many windows in which several routes grew are shared anew with each that comes.
WINDOWS = 64
# A request that faulted in nothing counts as this much of one that faulted in a page.
FEW = 0.01
# Threads whose faults are remembered; more have come and gone.
THREADS = 1000

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Route:
    """What is known of one. Bytes and counts, `faulted` in bytes."""

    __slots__ = ("faulted", "grown", "name", "requests", "shared", "told", "worst")

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests = 0
        self.shared = 0  # of them, beside others
        self.grown = 0  # fell, where negative
        self.worst = 0  # a single request's
        self.faulted = 0
        self.told = (0, 0, 0)  # of the first three, what `take` has given out

    def add(self, other: Route) -> None:
        self.requests += other.requests
        self.shared += other.shared
        self.grown += other.grown
        self.worst = max(self.worst, other.worst)
        self.faulted += other.faulted
        self.told = tuple(map(sum, zip(self.told, other.told, strict=True)))  # type: ignore[assignment]

    def stays(self) -> float:
        """The share of what it faults in that has stayed so far."""
        stayed = max(0, self.grown) + PRIOR * PRIOR_WEIGHT
        return min(1.0, stayed / (self.faulted + PRIOR_WEIGHT))


class Booking(NamedTuple):
    """What came to a route since it was last asked; `worst` of all time."""

    route: str
    requests: int
    shared: int
    grown: int
    worst: int


class Window:
    """Growth between two weighings, of several routes: the faults of each, and the bytes booked."""

    __slots__ = ("booked", "faults")

    def __init__(self, faults: dict[str, float], booked: dict[str, float]) -> None:
        self.faults = faults
        self.booked = booked


# A request that has ended: its route, the pages it has faulted in, whether others ran beside it.
Visit = tuple[str, int, bool]


class Growth:
    """`ended` with each request, in its thread; `weigh` now and then; `take` what is new."""

    def __init__(
        self,
        *,
        thread_faults: Callable[[], int] | None = None,
        process_faults: Callable[[], int] | None = None,
    ) -> None:
        of_thread, of_process = _counters()
        self._thread_faults = of_thread if thread_faults is None else thread_faults
        self._process_faults = of_process if process_faults is None else process_faults
        self.forget()

    def forget(self) -> None:
        """In a new child: what was seen is the parent's."""
        self.routes: dict[str, Route] = {}
        self._ended: deque[Visit] = deque()
        self._moved = False  # whether one of those has faulted anything in
        self._faults: dict[int, int] = {}  # thread -> its faults at the end of its last request
        self._rss: int | None = None
        self._faults_before = self._process_faults()
        self._faults_booked = 0  # since then, to requests
        self._waiting = 0  # bytes grown that are not booked yet
        self._recent: dict[str, int] = {}  # route -> bytes booked since the last fall
        self._windows: deque[Window] = deque(maxlen=WINDOWS)

    def ended(self, name: str, shared: bool) -> None:
        """A request has ended, in this thread. Thread-safe."""
        if self._thread_faults is None:
            self._moved = True
            self._ended.append((name, 1, shared))
            return
        faults, thread, known = self._thread_faults(), get_ident(), self._faults
        before = known.get(thread)
        if before is None:
            before = 0
            if len(known) >= THREADS:
                known.clear()
        known[thread] = faults
        if faults != before:
            self._moved = True
        self._ended.append((name, faults - before, shared))

    def still(self) -> bool:
        """Whether all that has ended since the last weighing has faulted nothing in: then RSS is
        not larger for it."""
        return not self._moved and bool(self._ended)

    def weigh(self, rss: int, alone: bool) -> None:
        """RSS as it is now (bytes), given back what can be. `alone`: no request is in flight."""
        if self._rss is not None:
            self._waiting += rss - self._rss
        self._rss = rss
        self._moved = False
        visits: list[Visit] = []
        ended, routes = self._ended, self.routes
        while ended:
            visit = ended.popleft()
            name, faults, shared = visit
            route = routes.get(name) or self._in_room(name)
            route.requests += 1
            if shared:
                route.shared += 1
            if faults:
                route.faulted += faults * _PAGE
                self._faults_booked += faults
            if self._waiting:
                visits.append(visit)
        if self._waiting > 0:
            self._grew(visits, alone)
        elif self._waiting < 0:
            self._fell(visits)

    def freed(self, rss: int) -> None:
        """RSS as it is now (bytes): a fall is the doing of who gave back, and of no request."""
        if self._rss is not None and rss < self._rss:
            self._waiting += rss - self._rss
            self._rss = rss
            if self._waiting < 0:
                self._fell([])

    def take(self) -> list[Booking]:
        """What came since the last time, by route. Thread-safe, for one who takes."""
        bookings = []
        for route in list(self.routes.values()):
            before, now = route.told, (route.requests, route.shared, route.grown)
            if now != before:
                route.told = now
                requests, shared, grown = (a - b for a, b in zip(now, before, strict=True))
                bookings.append(Booking(route.name, requests, shared, grown, route.worst))
        return bookings

    # --- In between

    def _grew(self, visits: list[Visit], alone: bool) -> None:
        makers = [(name, faults) for name, faults, _ in visits]
        growth = self._waiting
        if alone and growth >= NOISE:
            outside = self._faults_outside()
            if outside > 0:
                makers.append((NO_REQUEST, outside))
        weights = [self._in_room(name).stays() * (faults or FEW) for name, faults in makers]
        total = sum(weights)
        window = Window({}, {})
        for (name, faults), weight in zip(makers, weights, strict=True):
            part = int(growth * weight / total)
            part = part if alone else min(part, faults * _PAGE)
            self._book(name, part)
            window.faults[name] = window.faults.get(name, 0) + (faults or FEW)
            window.booked[name] = window.booked.get(name, 0) + part
        if len(window.faults) > 1 and growth >= NOISE:
            self._windows.append(window)
            for earlier in self._windows:
                self._share_anew(earlier)

    def _share_anew(self, window: Window) -> None:
        """With what is known now."""
        routes = [route for name in window.faults if (route := self.routes.get(name)) is not None]
        growth = sum(window.booked[route.name] for route in routes)
        weights = [route.stays() * window.faults[route.name] for route in routes]
        for route, weight in zip(routes, weights, strict=True):
            part = growth * weight / sum(weights)
            route.grown += int(part) - int(window.booked[route.name])
            window.booked[route.name] = part

    def _fell(self, visits: list[Visit]) -> None:
        recent, self._recent = self._recent, {}
        for name, part in self._taken_back(recent, -self._waiting).items():
            self._book(name, -part)
            kept = 1 - part / recent[name]
            for window in self._windows:
                if name in window.booked:
                    window.booked[name] *= kept
        left = self._waiting
        for name, _, _ in visits:
            self._book(name, int(left / len(visits)))
        self._waiting = 0  # the rest fell by itself

    def _taken_back(self, recent: dict[str, int], fall: int) -> dict[str, int]:
        """A fall, shared among who grew lately: first by what does not stay of theirs."""
        taken = dict.fromkeys(recent, 0)
        for _ in range(ROUNDS):
            left = {name: recent[name] - taken[name] for name in recent}
            rest = min(fall, sum(recent.values())) - sum(taken.values())
            weights = {name: left[name] * (1.01 - self._in_room(name).stays()) for name in recent}
            total = sum(weights.values())
            if rest <= 0 or total <= 0:
                break
            for name, weight in weights.items():
                taken[name] += min(left[name], int(rest * weight / total))
        return {name: part for name, part in taken.items() if part}

    def _book(self, name: str, part: int) -> None:
        self._waiting -= part
        route = self._in_room(name)
        route.grown += part
        if part > 0:
            route.worst = max(route.worst, part)
            self._recent[name] = self._recent.get(name, 0) + part

    def _faults_outside(self) -> int:
        """Those of the process, less those of requests, since this was asked last."""
        now = self._process_faults()
        outside = now - self._faults_before - self._faults_booked
        self._faults_before, self._faults_booked = now, 0
        return outside

    def _in_room(self, name: str) -> Route:
        """The route's own place; where there is none left, the least of the others gives up its."""
        found = self.routes.get(name)
        if found is None:
            if len(self.routes) >= MOST:
                self._make_room()
            found = self.routes[name] = Route(name)
        return found

    def _make_room(self) -> None:
        rest = self.routes.pop(OTHER, None) or Route(OTHER)
        while len(self.routes) > MOST - 2:
            least = min(self.routes.values(), key=lambda route: (abs(route.grown), route.requests))
            rest.add(self.routes.pop(least.name))
        self.routes[OTHER] = rest


def _counters() -> tuple[Callable[[], int] | None, Callable[[], int]]:
    """Page faults of this thread (None where they are not told), and of the process."""
    try:
        import resource

        getrusage, thread = resource.getrusage, resource.RUSAGE_THREAD
    except (ImportError, AttributeError):  # Windows, macOS
        return None, (lambda: 0)
    # Field 6 is ru_minflt. This system call does not let go of the interpreter's lock: 0.5 µs.
    return (lambda: getrusage(thread)[6]), (lambda: getrusage(resource.RUSAGE_SELF)[6])
