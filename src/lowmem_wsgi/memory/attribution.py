"""Attribute the growth of the process to the routes whose requests caused the growth.

* LowMemory weighs the memory in use (system/malloc.py), or RSS where malloc reports no figure. It
  does so when the last request in flight has ended and the GC passes are done, and now and then
  while others are in flight. Weighing takes at most a hundredth of the time. Requests that end
  meanwhile are weighed together. While memory grows, each request is weighed by itself, on credit.
* A request weighed alone gets the whole growth, or fall, attributed to its route. Several requests
  share the growth, by how much their routes have left behind so far. Later figures of a route also
  change how the last such windows are shared. So the growth settles on the route that was present
  each time that memory grew.
* Code that runs outside of requests gets a share too, by the time that has passed.

Not thread-safe, except where a docstring says so: the GC runner weighs under its lock.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from threading import get_ident

from ..settings import KB, MB

# The most routes that are counted apart. Beyond that, the routes with the least become OTHER.
MOST = 100
OTHER = "other"
# Stands for growth outside of requests: a thread of the app's own.
NO_REQUEST = "(no request)"
# Weighing takes at most DUTY of the time, and is at least LEAST seconds apart. But after recent
# growth of GROWS bytes, the next CLOSELY requests are weighed one by one, while CREDIT (seconds of
# weighing) lasts.
DUTY, LEAST, GROWS, CLOSELY, CREDIT = 1 / 100, 0.0005, MB, 32, 0.5
# Recent growth: this share of earlier growth still counts after a weighing.
FADES = 0.98
# After so many requests in a row that ran beside no other, LowMemory expects the next to run alone.
APART = 8
# The bytes that a request is assumed to leave behind before anything is known, and the same for a
# second without requests.
PRIOR, PRIOR_OUTSIDE = 4 * KB, 64
# So many windows in which several routes grew are shared again with each new window.
WINDOWS = 64
# A route has risen if it has grown by RISE (bytes) and by RISE_SHARE of its last peak.
RISE, RISE_SHARE = 64 * KB, 1 / 8
# A route with so many requests, or so much growth (bytes), does not give way to a route with less.
OFTEN, MUCH = 10, MB


class Route:
    """The figures of one route: bytes and counts."""

    __slots__ = (
        *("grown", "name", "peak", "quiet", "requests", "rises", "shared", "units", "worst"),
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests: int = 0
        self.shared: int = 0  # of these requests, the ones that ran beside others
        self.grown: float = 0.0  # bytes; negative if memory fell
        self.worst: int = 0  # the most RSS (bytes) that a single request had added when it ended
        self.units: float = 0.0  # requests; seconds for NO_REQUEST
        # The most growth so far, how often that rose, and the requests since.
        self.peak: float = 0.0
        self.rises: int = 0
        self.quiet: int = 0

    def add(self, other: Route) -> None:
        self.requests += other.requests
        self.shared += other.shared
        self.grown += other.grown
        self.worst = max(self.worst, other.worst)
        self.units += other.units
        self.peak += other.peak
        self.rises += other.rises

    def asked(self, count: int) -> None:
        """Note that `count` of the route's requests were weighed."""
        self.quiet += count
        if self.grown >= self.peak + max(RISE, self.peak * RISE_SHARE):
            self.peak, self.quiet = self.grown, 0
            self.rises += 1

    def rate(self) -> float:
        """Return the bytes that a request (or second) leaves behind, by the figures so far; > 0."""
        prior = PRIOR_OUTSIDE if self.name == NO_REQUEST else PRIOR
        return (max(0.0, self.grown) + prior) / (self.units + 1)

    def weight(self) -> tuple[bool, float, int]:
        """Return a sort key: the route with the least gives way first."""
        counts = self.requests >= OFTEN or abs(self.grown) >= MUCH or self.name == NO_REQUEST
        return counts, abs(self.grown), self.requests


class Window:
    """Growth between two weighings: by route, the number of requests and the bytes attributed."""

    __slots__ = ("booked", "units")

    def __init__(self, units: dict[str, float], booked: dict[str, float]) -> None:
        self.units: dict[str, float] = units
        self.booked: dict[str, float] = booked


class Attribution:
    """Attribute growth to routes. Call `ended` with each request, and `weigh` when `due`.

    `size`: return the memory to weigh, in bytes. `now`: any monotonic clock in seconds.
    """

    def __init__(
        self, size: Callable[[], int], *, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.size = size
        self._now = now
        self.forget()

    def forget(self) -> None:
        """Forget all figures: in a new child process they are the parent's."""
        self.routes: dict[str, Route] = {}
        self._ended: deque[tuple[str, bool]] = deque()
        self._before: int | None = None
        self._weighed_at = self._now()
        self._due, self._credit, self._closely = 0.0, CREDIT, 0
        self._lately = 0.0
        self._apart = 0  # requests in a row that ran beside no other
        self._loads: dict[int, int] = {}  # thread that loads a package -> bytes in use before
        self._loaded = 0  # bytes of packages loaded since the last reading of RSS
        self._windows: deque[Window] = deque(maxlen=WINDOWS)
        # Whether to weigh each request by itself: memory has grown lately, and none of the last
        # APART requests ran beside others.
        self.closely: bool = False

    def ended(self, name: str, shared: bool) -> None:
        """Note that a request of route `name` has ended. Thread-safe.

        `shared`: whether the request ran beside others.
        """
        self._ended.append((name, shared))

    def due(self, now: float) -> bool:
        """Return whether a request has ended and the next weighing may begin."""
        return now >= self._due and bool(self._ended) and not self._loads

    def peaked(self, grown: int) -> None:
        """Note that RSS had grown by `grown` bytes when the last request ended, before giving back.

        Counts only for a request that ran alone: of several, the growth could be any one's.
        """
        grown, self._loaded = grown - self._loaded, 0
        if grown > 0 and self._ended and not self._ended[-1][1]:
            route = self._in_room(self._ended[-1][0])
            route.worst = max(route.worst, grown)

    def weigh(self) -> None:
        """Attribute the growth, or fall, of memory since the last time."""
        began = self._now()
        size, seconds = self.size(), began - self._weighed_at
        growth = 0 if self._before is None else size - self._before
        self._before = size
        self._rest(began, growth)
        asked: dict[str, int] = {}
        while self._ended:
            name, shared = self._ended.popleft()
            route = self.routes.get(name) or self._in_room(name)
            route.requests += 1
            route.units += 1
            self._apart = 0 if shared else self._apart + 1
            if shared:
                route.shared += 1
            asked[name] = asked.get(name, 0) + 1
        self.closely = self._closely > 0 and self._credit > 0 and self._apart >= APART
        units: dict[str, float] = {**asked}
        outside = self.routes.get(NO_REQUEST) or self._in_room(NO_REQUEST)
        outside.units += seconds
        if growth > 0:
            self._grew(growth, units, seconds)
        elif growth:
            # The requests since then have dropped memory. Without requests, an app's thread has.
            fallen = units or {NO_REQUEST: 1}
            each = growth / sum(fallen.values())
            for name, count in fallen.items():
                self._in_room(name).grown += each * count
        for name, count in asked.items():
            if (found := self.routes.get(name)) is not None:
                found.asked(count)

    @property
    def loading(self) -> bool:
        """Whether a thread loads a large package now."""
        return bool(self._loads)

    def load_begins(self) -> None:
        """Note that this thread is about to load a large package. Thread-safe.

        The package is no leak of the request that loads it; imports/tracker.py reports packages.
        """
        self._loads.setdefault(get_ident(), self.size())

    def load_ends(self) -> None:
        """Leave the package that this thread has loaded out of the growth. Thread-safe."""
        before = self._loads.pop(get_ident(), None)
        if before is not None:
            grown = self.size() - before
            self._loaded += max(0, grown)
            if self._before is not None:
                self._before += grown

    @property
    def pending(self) -> bool:
        """Whether requests have ended that are not weighed yet."""
        return bool(self._ended)

    def rebase(self) -> None:
        """Drop the growth, or fall, since the last time: no request caused it."""
        self._before = self.size()

    def held(self, most: int) -> dict[str, int]:
        """Return the bytes (above 0) that each route has left in this process and still holds.

        The sum is at most the growth left of all routes, and at most `most` bytes: a route may have
        dropped what others had left, and memory may never have been touched. Thread-safe.
        """
        grown = [(route.name, int(route.grown)) for route in list(self.routes.values())]
        left = min(most, sum(size for _, size in grown))
        return scaled({name: size for name, size in grown if size > 0}, left)

    # --- Helpers

    def _rest(self, began: float, growth: int) -> None:
        """Set the time of the next weighing, by the cost of this one."""
        ended = self._now()
        cost, passed = ended - began, ended - self._weighed_at
        self._credit = min(CREDIT, self._credit + passed * DUTY) - cost
        self._lately = max(0.0, self._lately * FADES + growth)  # a fall cancels growth
        self._closely = CLOSELY if self._lately >= GROWS else max(0, self._closely - 1)
        closely = self._closely and self._credit > 0
        self._weighed_at, self._due = ended, ended + (0.0 if closely else max(cost / DUTY, LEAST))

    def _grew(self, growth: int, units: dict[str, float], seconds: float) -> None:
        units[NO_REQUEST] = seconds
        window = Window(units, dict.fromkeys(units, 0.0))
        self._share(window, growth)
        if len(units) > 2:
            self._windows.append(window)
            for earlier in self._windows:
                self._share(earlier, sum(earlier.booked.values()))

    def _share(self, window: Window, growth: float) -> None:
        """Attribute the growth of a window by today's rates, in place of the earlier attribution.

        Code outside of requests gets its usual growth for that time. The requests get the rest.
        """
        routes = [self.routes[name] for name in window.units if name in self.routes]
        outside = [route for route in routes if route.name == NO_REQUEST]
        inside = [route for route in routes if route.name != NO_REQUEST]
        if len(window.units) > 1:
            for route in outside:
                part = min(growth, route.rate() * window.units[NO_REQUEST])
                growth -= part
                self._book(window, route, part)
        elif outside:
            inside = outside
        inside = inside or [self._in_room(OTHER)]
        weights = [route.rate() * window.units.get(route.name, 1.0) for route in inside]
        share = growth / (sum(weights) or 1.0)
        for route, weight in zip(inside, weights, strict=True):
            self._book(window, route, share * weight)

    @staticmethod
    def _book(window: Window, route: Route, part: float) -> None:
        route.grown += part - window.booked.get(route.name, 0.0)
        window.booked[route.name] = part

    def _in_room(self, name: str) -> Route:
        """Return the route's figures. Make room for a new route if MOST are kept already."""
        found = self.routes.get(name)
        if found is None:
            if len(self.routes) >= MOST:
                self._make_room()
            found = self.routes[name] = Route(name)
        return found

    def _make_room(self) -> None:
        rest = self.routes.pop(OTHER, None) or Route(OTHER)
        while len(self.routes) > MOST - 2:
            least = min(self.routes.values(), key=Route.weight)
            rest.add(self.routes.pop(least.name))
        self.routes[OTHER] = rest
        for window in self._windows:  # a removed route's share is not attributed again
            for name in [name for name in window.booked if name not in self.routes]:
                window.booked.pop(name)
                window.units.pop(name, None)


def scaled(parts: dict[str, int], most: int) -> dict[str, int]:
    """Scale the parts down to a sum of at most `most` bytes. Return the parts above 0."""
    share = min(1.0, max(0, most) / (sum(parts.values()) or 1))
    return {name: int(size * share) for name, size in parts.items() if int(size * share) > 0}


def top(routes: dict[str, Route]) -> Route | None:
    """Return the route that has grown most; None if none has grown."""
    real = [route for route in routes.values() if route.name not in (OTHER, NO_REQUEST)]
    found = max(real, key=lambda route: route.grown, default=None)
    return found if found is not None and found.grown > 0 else None
