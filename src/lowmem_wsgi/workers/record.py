"""The record that a worker writes about itself on the shared page, and how others read it."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from ..metrics import NAMES
from ..settings import MB
from .figures import SIZE as FIGURES_SIZE
from .figures import Figures, RouteFigures

if TYPE_CHECKING:
    from ..memory.attribution import Route

# The state of a worker: serving; finishing its requests in flight; the same while the master has
# already started a replacement. GONE is added when the worker ends in order. A free record is all
# zeros.
READY, RETIRING, REPLACED, GONE = 1, 2, 3, 8

# pid, state, born and seen (monotonic), RSS at both, requests, when asked to end (monotonic)
WORKER = struct.Struct("<IIddQQQd")
POINT = struct.Struct("<dQQ")  # time, the worker's RSS, the memory that the site used
REQUEST = struct.Struct("<dQ112s")  # begun, the worker's RSS then, method and path
PID = struct.Struct("<I")
WHO = struct.Struct("<Id")  # pid, born
LENGTH = struct.Struct("<Q")
NOBODY = bytes(8)

POINTS, REQUESTS = 16, 8
POINTS_AT = WORKER.size
REQUESTS_AT = POINTS_AT + POINTS * POINT.size
RECORD_SIZE = REQUESTS_AT + REQUESTS * REQUEST.size
RECORDS_AT = 1024
# A worker's counters are stored apart from its record. So code that looks for workers touches only
# the records, which are a few pages of memory.
SIDE_SIZE = LENGTH.size + WHO.size + FIGURES_SIZE
SIDES_SIZE = 8 + 2 * SIDE_SIZE

# Readings within so many seconds share a point, so that the points span some seconds.
APART = 0.25


class RequestSeen(NamedTuple):
    """A request in flight: method and path, begin (monotonic seconds), the worker's RSS then."""

    what: str
    begun: float
    rss: int


class Seen(NamedTuple):
    """A worker's record as read from the page. Bytes, and seconds of the monotonic clock."""

    place: int
    pid: int
    state: int
    born: float
    at: float
    born_rss: int
    rss: int
    requests: int
    retired: float  # when the worker was asked to end; 0 if it was not
    points: list[tuple[float, int, int]]
    in_flight: list[RequestSeen]

    def grew(self, since: float, noise: int = 4 * MB) -> bool:
        """Return whether the RSS has grown by more than `noise` bytes since `since` (monotonic)."""
        then = [rss for at, rss, _ in self.points if at <= since] or [self.born_rss]
        return self.rss - then[-1] > noise

    def takes_room(self, since: float) -> bool:
        """Return whether the worker serves, or ends and still grows with requests in flight."""
        return self.state == READY or (bool(self.in_flight) and self.grew(since))

    @property
    def eaten(self) -> int:
        """The bytes that the worker has grown by during requests in flight."""
        return max((self.rss - request.rss for request in self.in_flight), default=0)

    @property
    def ready(self) -> bool:
        return self.state == READY

    @property
    def replaced(self) -> bool:
        return self.state & ~GONE == REPLACED


class TwoSides:
    """Bytes that one process at a time writes and any process reads, always a whole write.

    The writer fills the side that is not read, then switches sides by writing one byte. A writer
    that is killed in between leaves its previous write.
    """

    def __init__(self, page: mmap.mmap | bytearray, at: int) -> None:
        self._map = page
        self._at = at

    def write(self, data: bytes) -> None:
        turn = (self._map[self._at] + 1) % 256
        at, whole = self._side(turn), LENGTH.pack(len(data)) + data
        self._map[at : at + len(whole)] = whole
        self._map[self._at] = turn

    def read(self) -> bytes:
        while True:
            turn = self._map[self._at]
            at = self._side(turn)
            (length,) = LENGTH.unpack_from(self._map, at)
            data = self._map[at + LENGTH.size : at + min(SIDE_SIZE, LENGTH.size + length)]
            if self._map[self._at] == turn:  # else the writer may have reused this side
                return bytes(data)

    def _side(self, turn: int) -> int:
        return self._at + 8 + turn % 2 * SIDE_SIZE


class WorkerRecord:
    """The record that a worker writes about itself.

    `index`: the place on the page, -1 if no place was free. `at`: the byte of `page` where the
    record begins. `figures_at`: the byte where its figures begin. `rss`: bytes now. `inherited`:
    the counters from before this record. `now`: a monotonic clock in seconds.

    `began` and `ended` run at every request.
    """

    def __init__(
        self,
        page: mmap.mmap | bytearray,
        at: int,
        figures_at: int,
        index: int,
        rss: int,
        inherited: Mapping[str, float],
        now: Callable[[], float],
    ) -> None:
        self._map = page
        self._at = at
        self._now = now
        self._figures = TwoSides(page, figures_at)
        self._counted = dict.fromkeys(NAMES, 0.0)
        self._shown = dict(inherited)  # the value of each counter at the last flush
        self._free = dict.fromkeys(range(REQUESTS))  # a stack without duplicates
        self._requests_at = [at + REQUESTS_AT + place * REQUEST.size for place in range(REQUESTS)]
        self._frozen = False
        self._point, self._pointed = 0, 0.0
        self.index = index
        self.pid: int = os.getpid()
        self.state: int = READY
        self.born: float = now()
        self.born_rss: int = rss
        self.rss: int = rss
        self.requests: int = 0
        self.retired: float = 0.0  # when this worker was asked to end (monotonic seconds)
        self._write(self.born)
        self._figures.write(b"")  # the previous worker here may have written late
        self._map[at : at + PID.size] = PID.pack(self.pid)  # last: now others read the record

    def began(self, method: str, path: str) -> int:
        """Note a request. Return a number for `ended`; -1 if there is no room to note it."""
        self.requests += 1
        # Make these first: if memory runs out here, no place is taken and lost.
        now, what = self._now(), f"{method} {path}".encode("latin-1", "replace")
        try:
            place = self._free.popitem()[0]
        except KeyError:
            return -1
        try:
            REQUEST.pack_into(self._map, self._requests_at[place], now, self.rss, what)
        except BaseException:
            self._free[place] = None
            raise
        return place

    def ended(self, place: int) -> None:
        """Remove the request at this place. Idempotent."""
        if place >= 0 and not self._frozen:
            at = self._requests_at[place]
            self._map[at : at + 8] = NOBODY
            self._free[place] = None

    def freeze(self) -> None:
        """Keep the requests in flight now on the record, also after they end."""
        self._frozen = True

    def note(self, rss: int, used: int) -> None:
        """Write a reading: the worker's RSS and the site's use, in bytes. Keep the last POINTS."""
        now = self._now()
        self.rss = rss
        if now - self._pointed >= APART:
            self._point = (self._point + 1) % POINTS
            self._pointed = now
        at = self._at + POINTS_AT + self._point * POINT.size
        self._map[at : at + POINT.size] = POINT.pack(now, rss, used)
        self._write(now)

    def count(self, name: str) -> None:
        """Add 1 to a counter of the worker itself. The next `flush` writes the counter."""
        self._counted[name] += 1

    def flush(
        self,
        counters: Mapping[str, float],
        routes: Iterable[Route] = (),
        held: Mapping[str, int] | None = None,
    ) -> None:
        """Write this process's figures: counters by name, routes, and bytes that each route holds.

        A counter that starts again at 0, such as after an app was closed, lowers no figure. Only
        one thread at a time may call this.
        """
        for name, value in counters.items():
            self._counted[name] += max(0, value - self._shown.get(name, 0))
        self._shown.update(counters)
        rows = {}
        for route in list(routes):
            seen = route.requests, route.shared, route.worst, route.rises, route.quiet
            row = RouteFigures(*seen, held=(held or {}).get(route.name, 0))
            if any(row):
                rows[route.name] = row
        self._figures.write(Figures(self._counted, rows).pack())

    def figures(self) -> Figures:
        """Return the figures that the worker has written last."""
        return Figures.unpack(self._figures.read())

    def enter(self, state: int) -> None:
        now = self._now()
        if state & ~GONE == READY:
            self.retired = 0.0
        elif not self.retired:
            self.retired = now
        self.state = state
        self._write(now)

    def _write(self, now: float) -> None:
        figures = self.state, self.born, now, self.born_rss, self.rss, self.requests, self.retired
        # Do not write the pid again: a reader that saw 0 there would take the place.
        at, whole = self._at, WORKER.pack(self.pid, *figures)
        self._map[at + PID.size : at + WORKER.size] = whole[PID.size :]


def record_at(place: int) -> int:
    return RECORDS_AT + place * RECORD_SIZE


def read_record(page: mmap.mmap, place: int) -> Seen | None:
    """Return the record of the worker at this place; None if the place is free."""
    at = record_at(place)
    pid, state, born, seen, born_rss, rss, requests, retired = WORKER.unpack_from(page, at)
    if not pid:
        return None
    points = POINT.iter_unpack(page[at + POINTS_AT : at + REQUESTS_AT])
    in_flight = [
        RequestSeen(what.rstrip(b"\0").decode("utf-8", "replace"), begun, then)
        for begun, then, what in REQUEST.iter_unpack(page[at + REQUESTS_AT : at + RECORD_SIZE])
        if begun
    ]
    return Seen(
        *(place, pid, state, born, seen, born_rss, rss, requests, retired),
        points=sorted(point for point in points if point[0]),
        in_flight=sorted(in_flight, key=lambda request: request.begun),
    )
