"""What a site has counted, and its last hour: the part of the workers' page that belongs to none
of them, so that it outlives each.

Every worker adds what came since it last did. Whoever is asked for the status tells of all.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple

from ..memory.attribution import MOST, MUCH, OFTEN, OTHER, Booking, scaled

# What is counted. Deaths by cause, bytes freed by kind of step.
COUNTS = (
    *("requests", "uploads_rejected", "sessions_expired", "shed", "out_of_memory"),
    *("gc_runs", "gc_collected", "gc_seconds", "gc_freed_bytes", "gc_gave_back"),
    *("cleanups", "freed_trim", "freed_caches", "freed_callback", "freed_purge", "freed_collect"),
    *("recycles", "deaths_oom", "deaths_timeout", "deaths_crash"),
)
COUNT = struct.Struct("<d")
# An hour of points, one for each ten seconds: the stamp is the number of those since 1970.
POINT = struct.Struct("<IQ")
EVERY, POINTS = 10, 360
EVENT = struct.Struct("<dqI44s")  # when (Unix seconds), bytes, kind, what
EVENTS = 64
KINDS = ("cleanup", "recycle", "death")
ROUTE = struct.Struct("<96sQQqQQIIQ")  # a name, and a Tally
ROUTES = MOST + 1
# What one worker holds: so many routes, in a table of its own. The least share the last row.
HELD = struct.Struct("<96sQ")  # a name, bytes
HELDS = 16
HELD_SIZE = HELDS * HELD.size

POINTS_AT = 64 * COUNT.size
EVENTS_AT = POINTS_AT + POINTS * POINT.size
NEXT_EVENT = struct.Struct("<I")
ROUTES_AT = EVENTS_AT + NEXT_EVENT.size + EVENTS * EVENT.size
HELD_AT = ROUTES_AT + ROUTES * ROUTE.size
SIZE = HELD_AT  # 25 KB, and HELD_SIZE for each place of a worker


class Tally(NamedTuple):
    """What the site has counted of a route, all its workers. Bytes and counts."""

    requests: int
    shared: int  # of them, beside others
    grown: int  # all that came, less all that went
    worst: int
    gone: int = 0  # what workers held of it when they ended
    workers: int = 0  # how many of those held much
    rises: int = 0  # how often it was seen to grow
    quiet: int = 0  # its requests since


class Growth(NamedTuple):
    """A route's, and what the workers there are hold of it (bytes)."""

    tally: Tally
    held: int


class Event(NamedTuple):
    """`at` in Unix seconds, `freed` in bytes (of a recycled worker: what it had grown by)."""

    at: float
    kind: str
    freed: int
    what: str


class Ledger:
    """At `at` of the page. `locked` keeps other processes away; a process's threads keep apart by
    themselves."""

    every = EVERY

    def __init__(
        self,
        page: mmap.mmap,
        at: int,
        locked: Callable[[], AbstractContextManager[None]],
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._map = page
        self._at = at
        self._locked = locked
        self._now = now

    # --- Counts and routes

    def add(
        self,
        counts: Mapping[str, float],
        bookings: Iterable[Booking] = (),
        held: tuple[int, Mapping[str, int]] | None = None,
    ) -> None:
        """Add to what was counted, by name in COUNTS, and to the routes. `held`: the place of the
        worker that adds, and what it holds of each route (bytes), in place of what it held."""
        new = [(COUNTS.index(name), value) for name, value in counts.items() if value > 0]
        bookings = list(bookings)
        if not new and not bookings and held is None:
            return
        with self._locked():
            for index, value in new:
                at = self._at + index * COUNT.size
                put(self._map, at, COUNT.pack(COUNT.unpack_from(self._map, at)[0] + value))
            if bookings:
                self._book(bookings)
            if held is not None:
                self._hold(*held)

    def counts(self) -> dict[str, float]:
        values = struct.unpack_from(f"<{len(COUNTS)}d", self._map, self._at)
        return dict(zip(COUNTS, values, strict=True))

    def routes(self) -> dict[str, Tally]:
        found = {}
        start = self._at + ROUTES_AT
        for name, *tally in ROUTE.iter_unpack(self._map[start : start + ROUTES * ROUTE.size]):
            if name[:1] == b"\0":
                break
            found[_text(name)] = Tally(*tally)
        return found

    def growth(self, alive: Mapping[int, bool]) -> dict[str, Growth]:
        """By route, what the site's workers have grown by: those that have a place, each alive or
        not any more, and those that were before them."""
        with self._locked():
            routes, held = self.routes(), dict[str, int]()
            for place, living in alive.items():
                if living:
                    for name, size in self.held(place).items():
                        held[name] = held.get(name, 0) + size
                else:
                    _part(routes, self.held(place))
        names = [*routes, *(name for name in held if name not in routes)]
        return {
            name: Growth(routes.get(name, Tally(0, 0, 0, 0)), held.get(name, 0)) for name in names
        }

    def held(self, place: int) -> dict[str, int]:
        """What the worker at this place has told to hold, by route (bytes)."""
        found: dict[str, int] = {}
        start = self._held_at(place)
        for name, size in HELD.iter_unpack(self._map[start : start + HELD_SIZE]):
            if name[:1] == b"\0":
                break
            found[_text(name)] = size
        return found

    def ended(self, place: int, *, eaten: int = 0) -> None:
        """The worker at this place is gone, and what it held with it: that it had grown by so much
        is kept. But for `eaten` bytes: by so much it grew during requests that did not end."""
        with self._locked():
            held = self.held(place)
            if held:
                routes = self.routes()
                _part(routes, scaled(held, sum(held.values()) - max(0, eaten)))
                self._write(routes)
            self._hold(place, {})

    def _hold(self, place: int, held: Mapping[str, int]) -> None:
        rows = sorted(held.items(), key=lambda row: -row[1])
        if len(rows) > HELDS:
            rows[HELDS - 1 :] = [(OTHER, sum(size for _, size in rows[HELDS - 1 :]))]
        packed = [HELD.pack(name.encode("utf-8", "replace"), size) for name, size in rows]
        # To the first row that is empty: what is behind it is not read, nor touched.
        whole = b"".join([*packed, bytes(HELD.size)])[:HELD_SIZE]
        put(self._map, self._held_at(place), whole)

    def _held_at(self, place: int) -> int:
        return self._at + HELD_AT + place * HELD_SIZE

    def _book(self, bookings: list[Booking]) -> None:
        routes = self.routes()
        for new in bookings:
            before = routes.get(new.route, Tally(0, 0, 0, 0))
            quiet = new.quiet if new.rises > 0 else before.quiet + new.requests
            came = Tally(*new[1:5], rises=max(0, new.rises))
            routes[new.route] = _sum(before, came)._replace(quiet=quiet)
        while len(routes) > ROUTES:
            others = [name for name in routes if name != OTHER]
            least = min(others, key=lambda name: _weight(routes[name]))
            routes[OTHER] = _sum(routes.get(OTHER, Tally(0, 0, 0, 0)), routes.pop(least))
        self._write(routes)

    def _write(self, routes: dict[str, Tally]) -> None:
        rows = [ROUTE.pack(name.encode("utf-8", "replace"), *routes[name]) for name in routes]
        put(self._map, self._at + ROUTES_AT, b"".join(rows).ljust(ROUTES * ROUTE.size, b"\0"))

    # --- The last hour

    def point(self, used: int) -> None:
        """What the site uses now (bytes): the most of each ten seconds is kept."""
        stamp = int(self._now() // EVERY)
        at = self._at + POINTS_AT + stamp % POINTS * POINT.size
        before = POINT.unpack_from(self._map, at)
        if before[0] != stamp or before[1] < used:
            put(self._map, at, POINT.pack(stamp, used))

    def points(self) -> list[tuple[int, int]]:
        """(Unix seconds, bytes used) of the last hour, the oldest first."""
        area = self._map[self._at + POINTS_AT : self._at + EVENTS_AT]
        newest = self._now() // EVERY
        oldest = max(0, newest - POINTS)
        points = POINT.iter_unpack(area)
        # Not after now, either: the clock may have been set back.
        return sorted((stamp * EVERY, used) for stamp, used in points if oldest < stamp <= newest)

    def event(self, kind: str, freed: int, what: str) -> None:
        """Something to mark in the chart: one of KINDS."""
        with self._locked():
            (number,) = NEXT_EVENT.unpack_from(self._map, self._at + EVENTS_AT)
            put(self._map, self._at + EVENTS_AT, NEXT_EVENT.pack((number + 1) % 2**32))
            put(
                self._map,
                self._at + EVENTS_AT + NEXT_EVENT.size + number % EVENTS * EVENT.size,
                EVENT.pack(self._now(), freed, KINDS.index(kind) + 1, what.encode()[:44]),
            )

    def events(self) -> list[Event]:
        """Those of the last hour, the oldest first."""
        start = self._at + EVENTS_AT + NEXT_EVENT.size
        area = self._map[start : start + EVENTS * EVENT.size]
        now = self._now()
        since = now - EVERY * POINTS
        found = [
            Event(at, KINDS[kind - 1], freed, what.rstrip(b"\0").decode("utf-8", "replace"))
            for at, freed, kind, what in EVENT.iter_unpack(area)
            if since < at <= now and 0 < kind <= len(KINDS)
        ]
        return sorted(found, key=lambda event: event.at)


def _weight(tally: Tally) -> tuple[bool, int, int]:
    """What has the least gives way first; what came often, or grew much, after all others."""
    grown = max(abs(tally.grown), tally.gone)
    return tally.requests >= OFTEN or grown >= MUCH, grown, tally.requests


def _sum(before: Tally, new: Tally) -> Tally:
    total = Tally(*map(sum, zip(before, new, strict=True)))
    return total._replace(worst=max(before.worst, new.worst))


def _part(routes: dict[str, Tally], held: Mapping[str, int]) -> None:
    """A worker has ended that held this. Where a route's row was given to another, the rest of the
    routes have it."""
    for name, size in held.items():
        row = name if name in routes or len(routes) < ROUTES else OTHER
        before = routes.get(row, Tally(0, 0, 0, 0))
        routes[row] = before._replace(
            gone=before.gone + size, workers=before.workers + (size >= MUCH)
        )


def _text(name: bytes) -> str:
    return name.rstrip(b"\0").decode("utf-8", "replace")


def put(page: mmap.mmap, at: int, data: bytes) -> None:
    """Write in one go. `pack_into` sets its bytes to nothing first, and another process may read
    them then."""
    page[at : at + len(data)] = data
