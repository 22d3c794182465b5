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

from ..memory.growth import MOST, MUCH, OFTEN, OTHER, Booking

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
ROUTE = struct.Struct("<96sQQqQ")  # name; requests, of them beside others; bytes grown, worst
ROUTES = MOST + 1

POINTS_AT = 64 * COUNT.size
EVENTS_AT = POINTS_AT + POINTS * POINT.size
NEXT_EVENT = struct.Struct("<I")
ROUTES_AT = EVENTS_AT + NEXT_EVENT.size + EVENTS * EVENT.size
SIZE = ROUTES_AT + ROUTES * ROUTE.size  # 22 KB

Tally = tuple[int, int, int, int]  # as in ROUTE


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

    def add(self, counts: Mapping[str, float], bookings: Iterable[Booking] = ()) -> None:
        """Add to what was counted, by name in COUNTS, and to the routes."""
        new = [(COUNTS.index(name), value) for name, value in counts.items() if value > 0]
        bookings = list(bookings)
        if not new and not bookings:
            return
        with self._locked():
            for index, value in new:
                at = self._at + index * COUNT.size
                COUNT.pack_into(self._map, at, COUNT.unpack_from(self._map, at)[0] + value)
            if bookings:
                self._book(bookings)

    def counts(self) -> dict[str, float]:
        values = struct.unpack_from(f"<{len(COUNTS)}d", self._map, self._at)
        return dict(zip(COUNTS, values, strict=True))

    def routes(self) -> dict[str, Tally]:
        found = {}
        for index in range(ROUTES):
            name, *tally = ROUTE.unpack_from(self._map, self._row(index))
            if name[:1] != b"\0":
                found[name.rstrip(b"\0").decode("utf-8", "replace")] = tuple(tally)
        return found

    def _book(self, bookings: list[Booking]) -> None:
        routes = self.routes()
        for name, requests, shared, grown, worst in bookings:
            routes[name] = _sum(routes.get(name), (requests, shared, grown, worst))
        while len(routes) > ROUTES:
            others = [name for name in routes if name != OTHER]
            least = min(others, key=lambda name: _weight(routes[name]))
            routes[OTHER] = _sum(routes.get(OTHER), routes.pop(least))
        self._write(routes)

    def scale(self, share: float) -> None:
        """A worker has died, and this share of what all held is left."""
        with self._locked():
            routes = self.routes()
            for name, (requests, shared, grown, worst) in routes.items():
                routes[name] = (requests, shared, int(grown * share), worst)
            self._write(routes)

    def _write(self, routes: dict[str, Tally]) -> None:
        rows = [ROUTE.pack(name.encode("utf-8", "replace"), *routes[name]) for name in routes]
        start, size = self._row(0), ROUTES * ROUTE.size
        self._map[start : start + size] = b"".join(rows).ljust(size, b"\0")

    def _row(self, index: int) -> int:
        return self._at + ROUTES_AT + index * ROUTE.size

    # --- The last hour

    def point(self, used: int) -> None:
        """What the site uses now (bytes): the most of each ten seconds is kept."""
        stamp = int(self._now() // EVERY)
        at = self._at + POINTS_AT + stamp % POINTS * POINT.size
        before = POINT.unpack_from(self._map, at)
        if before[0] != stamp or before[1] < used:
            POINT.pack_into(self._map, at, stamp, used)

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
            NEXT_EVENT.pack_into(self._map, self._at + EVENTS_AT, (number + 1) % 2**32)
            EVENT.pack_into(
                self._map,
                self._at + EVENTS_AT + NEXT_EVENT.size + number % EVENTS * EVENT.size,
                self._now(),
                freed,
                KINDS.index(kind) + 1,
                what.encode()[:44],
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
    requests, _, grown, _ = tally
    return requests >= OFTEN or abs(grown) >= MUCH, abs(grown), requests


def _sum(before: Tally | None, new: Tally) -> Tally:
    if before is None:
        return new
    return (
        before[0] + new[0],
        before[1] + new[1],
        before[2] + new[2],
        max(before[3], new[3]),
    )
