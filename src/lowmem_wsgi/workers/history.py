"""Keep the last hour of a site on the shared page: memory in use, and cleanups and replacements."""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

# An hour of points, one for each ten seconds. A stamp counts the ten seconds since 1970.
POINT = struct.Struct("<IQ")
EVERY, POINTS = 10, 360
EVENT = struct.Struct("<dqI44s")  # when (Unix seconds), bytes, kind, what
EVENTS = 64
KINDS = ("cleanup", "recycle", "death")

EVENTS_AT = POINTS * POINT.size
NEXT_EVENT = struct.Struct("<I")
SIZE = EVENTS_AT + NEXT_EVENT.size + EVENTS * EVENT.size  # 8 KB


class Event(NamedTuple):
    """An event in the chart. `at`: Unix seconds. `freed`: bytes (a recycled worker's growth)."""

    at: float
    kind: str
    freed: int
    what: str


class History:
    """The history, at byte `at` of the page.

    `locked`: a context manager that excludes other processes and threads. In a process, only the
    monitor's thread calls `point`. `now`: Unix time in seconds.
    """

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

    def point(self, used: int) -> None:
        """Note the bytes that the site uses now. The most of each ten seconds is kept."""
        stamp = int(self._now() // EVERY)
        at = self._at + stamp % POINTS * POINT.size
        before = POINT.unpack_from(self._map, at)
        if before[0] != stamp or before[1] < used:
            self._map[at : at + POINT.size] = POINT.pack(stamp, used)

    def points(self) -> list[tuple[int, int]]:
        """Return (Unix seconds, bytes used) of the last hour, the oldest first."""
        area = self._map[self._at : self._at + EVENTS_AT]
        newest = self._now() // EVERY
        oldest = max(0, newest - POINTS)
        points = POINT.iter_unpack(area)
        # Leave out points after now: the clock may have been set back.
        return sorted((stamp * EVERY, used) for stamp, used in points if oldest < stamp <= newest)

    def event(self, kind: str, freed: int, what: str) -> None:
        """Mark an event of one of KINDS in the chart. `freed`: bytes. `what`: 44 bytes at most."""
        number_at = self._at + EVENTS_AT
        with self._locked():
            (number,) = NEXT_EVENT.unpack_from(self._map, number_at)
            at = number_at + NEXT_EVENT.size + number % EVENTS * EVENT.size
            self._map[at : at + EVENT.size] = EVENT.pack(
                self._now(), freed, KINDS.index(kind) + 1, what.encode()[:44]
            )
            self._map[number_at : number_at + 4] = NEXT_EVENT.pack((number + 1) % 2**32)

    def events(self) -> list[Event]:
        """Return the events of the last hour, the oldest first."""
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
