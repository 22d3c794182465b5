"""What each route leaves behind: the growth of the process, booked to the requests that made it.

* What is weighed is the memory in use (system/malloc.py), or RSS where that is not told: when the
  last of the requests in flight has ended and the passes are done, and now and then beside others.
  It takes at most a hundredth of the time; what ends meanwhile is weighed together. While memory
  grows, each request is weighed by itself, on credit.
* A request that is weighed alone is booked what has come, or gone. Several share it, by how much
  their routes have been seen to leave behind. What is learned of a route later changes how the last
  such windows were shared, too: so it settles on who was there whenever it grew.
* What runs outside of requests has a share as well, by the time that has passed.

Not thread-safe but where it says so: the collector weighs under its lock.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from threading import get_ident

from ..settings import KB, MB

# As many routes are told apart; the least of them give way to others.
MOST = 100
OTHER = "other"
# What no request has done: a thread of the app's own.
NO_REQUEST = "(no request)"
# Weighing takes at most this share of the time, and nothing is weighed sooner (seconds). But where
# so much (bytes) has come lately, so many are weighed one by one, while there is credit (seconds).
DUTY, LEAST, GROWS, CLOSELY, CREDIT = 1 / 100, 0.0005, MB, 32, 0.5
# What came lately: of what came before a weighing, so much counts after it.
FADES = 0.98
# After so many requests in a row that ran beside no other, nobody is taken to be about to end.
APART = 8
# Before anything is known, a request is taken to leave so much behind (bytes), and so is a second
# in which nobody asks.
PRIOR, PRIOR_OUTSIDE = 4 * KB, 64
# So many windows in which several routes grew are shared anew with each that comes.
WINDOWS = 64
# A route has risen where it has grown by so much (bytes), and such a share of what it had.
RISE, RISE_SHARE = 64 * KB, 1 / 8
# A route that has been asked for so often, or has grown so much (bytes), does not give way to one
# that has not.
OFTEN, MUCH = 10, MB


class Route:
    """What is known of one. Bytes and counts."""

    __slots__ = (
        *("grown", "name", "peak", "quiet", "requests", "rises", "shared", "units", "worst"),
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests = 0
        self.shared = 0  # of them, beside others
        self.grown = 0.0  # fell, where negative
        self.worst = 0  # by which RSS was larger when a single request ended
        self.units = 0.0  # requests, or seconds for what is none
        # The most that it had grown by, how often that rose, and its requests since.
        self.peak, self.rises, self.quiet = 0.0, 0, 0

    def add(self, other: Route) -> None:
        self.requests += other.requests
        self.shared += other.shared
        self.grown += other.grown
        self.worst = max(self.worst, other.worst)
        self.units += other.units
        self.peak += other.peak
        self.rises += other.rises

    def asked(self, count: int) -> None:
        """So many of its requests were weighed."""
        self.quiet += count
        if self.grown >= self.peak + max(RISE, self.peak * RISE_SHARE):
            self.peak, self.quiet = self.grown, 0
            self.rises += 1

    def rate(self) -> float:
        """Bytes that a request (or a second) of it leaves behind, as far as is known; above 0."""
        prior = PRIOR_OUTSIDE if self.name == NO_REQUEST else PRIOR
        return (max(0.0, self.grown) + prior) / (self.units + 1)

    def weight(self) -> tuple[bool, float, int]:
        """What has the least gives way first."""
        counts = self.requests >= OFTEN or abs(self.grown) >= MUCH or self.name == NO_REQUEST
        return counts, abs(self.grown), self.requests


class Window:
    """Growth between two weighings: how many requests of each route there were, what was booked."""

    __slots__ = ("booked", "units")

    def __init__(self, units: dict[str, float], booked: dict[str, float]) -> None:
        self.units = units
        self.booked = booked


class Attribution:
    """`ended` with each request; `weigh` when it is `due`.

    `size` tells what is weighed (bytes), `now` is any monotonic clock in seconds.
    """

    def __init__(
        self, size: Callable[[], int], *, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.size = size
        self._now = now
        self.forget()

    def forget(self) -> None:
        """In a new child: what was seen is the parent's."""
        self.routes: dict[str, Route] = {}
        self._ended: deque[tuple[str, bool]] = deque()
        self._before: int | None = None
        self._weighed_at = self._now()
        self._due, self._credit, self._closely = 0.0, CREDIT, 0
        self._lately = 0.0
        self._apart = 0  # requests in a row that ran beside no other
        self._loads: dict[int, int] = {}  # thread that loads a package -> what was in use before
        self._loaded = 0  # bytes, by which packages were loaded since the last look at RSS
        self._windows: deque[Window] = deque(maxlen=WINDOWS)
        # Whether each request is weighed by itself: memory has grown lately, and none of the last
        # ones ran beside others.
        self.closely = False

    def ended(self, name: str, shared: bool) -> None:
        """A request has ended. Thread-safe."""
        self._ended.append((name, shared))

    def due(self, now: float) -> bool:
        """Whether somebody has ended, and it is time to weigh."""
        return now >= self._due and bool(self._ended) and not self._loads

    def peaked(self, grown: int) -> None:
        """RSS was so much larger (bytes) when the last request ended, before giving back. Beside
        others nobody can tell whose that was."""
        grown, self._loaded = grown - self._loaded, 0
        if grown > 0 and self._ended and not self._ended[-1][1]:
            route = self._in_room(self._ended[-1][0])
            route.worst = max(route.worst, grown)

    def weigh(self) -> None:
        """Book what has come, or gone, since the last time."""
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
            # Whoever was there has dropped that; where nobody was, a thread of the app has.
            fallen = units or {NO_REQUEST: 1}
            each = growth / sum(fallen.values())
            for name, count in fallen.items():
                self._in_room(name).grown += each * count
        for name, count in asked.items():
            if (found := self.routes.get(name)) is not None:
                found.asked(count)

    @property
    def loading(self) -> bool:
        """Whether some thread is at that."""
        return bool(self._loads)

    def load_begins(self) -> None:
        """This thread is about to load a large package, which is no leak of the request that does
        it: it is told of elsewhere. Thread-safe, as is the next."""
        self._loads.setdefault(get_ident(), self.size())

    def load_ends(self) -> None:
        before = self._loads.pop(get_ident(), None)
        if before is not None:
            grown = self.size() - before
            self._loaded += max(0, grown)
            if self._before is not None:
                self._before += grown

    @property
    def pending(self) -> bool:
        """Whether some have ended that were not weighed."""
        return bool(self._ended)

    def rebase(self) -> None:
        """What has come, or gone, since the last time was no request's doing, and is forgotten."""
        self._before = self.size()

    def held(self, most: int) -> dict[str, int]:
        """What each route has left in this process and nobody has dropped (bytes, above 0).

        All together that is not more than what is left of all growth, nor than `most`: where one
        route has dropped what others had left, or memory was never touched. Thread-safe.
        """
        grown = [(route.name, int(route.grown)) for route in list(self.routes.values())]
        left = min(most, sum(size for _, size in grown))
        return scaled({name: size for name, size in grown if size > 0}, left)

    # --- In between

    def _rest(self, began: float, growth: int) -> None:
        """Until the next weighing."""
        ended = self._now()
        cost, passed = ended - began, ended - self._weighed_at
        self._credit = min(CREDIT, self._credit + passed * DUTY) - cost
        self._lately = max(0.0, self._lately * FADES + growth)  # what comes and goes is no growth
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
        """By what is known now, and in place of what was booked before. Outside of requests as much
        has come as comes there in that time; the rest is the requests'."""
        routes = [self.routes[name] for name in window.units if name in self.routes]
        outside = [route for route in routes if route.name == NO_REQUEST]
        inside = [route for route in routes if route.name != NO_REQUEST] or [self._in_room(OTHER)]
        if len(window.units) > 1:
            for route in outside:
                part = min(growth, route.rate() * window.units[NO_REQUEST])
                growth -= part
                self._book(window, route, part)
        elif outside:
            inside = outside
        weights = [route.rate() * window.units.get(route.name, 1.0) for route in inside]
        share = growth / (sum(weights) or 1.0)
        for route, weight in zip(inside, weights, strict=True):
            self._book(window, route, share * weight)

    @staticmethod
    def _book(window: Window, route: Route, part: float) -> None:
        route.grown += part - window.booked.get(route.name, 0.0)
        window.booked[route.name] = part

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
            least = min(self.routes.values(), key=Route.weight)
            rest.add(self.routes.pop(least.name))
        self.routes[OTHER] = rest
        for window in self._windows:  # what was booked to one that is gone stays booked
            for name in [name for name in window.booked if name not in self.routes]:
                window.booked.pop(name)
                window.units.pop(name, None)


def scaled(parts: dict[str, int], most: int) -> dict[str, int]:
    """The same shares of at most so much; those above 0."""
    share = min(1.0, max(0, most) / (sum(parts.values()) or 1))
    return {name: int(size * share) for name, size in parts.items() if int(size * share) > 0}


def top(routes: dict[str, Route]) -> Route | None:
    """The one that has grown most, if any has."""
    real = [route for route in routes.values() if route.name not in (OTHER, NO_REQUEST)]
    found = max(real, key=lambda route: route.grown, default=None)
    return found if found is not None and found.grown > 0 else None
