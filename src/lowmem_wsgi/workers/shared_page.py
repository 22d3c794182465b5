"""The black box: a page that all workers of a site share, and that outlives each of them.

A worker writes down what it is doing: its requests in flight, its memory in the last seconds.
When the kernel kills it there is no time to log anything; but the page is still there, in the
master that made it before it forked, or, where there is none, in a file. Nothing here waits:
each worker writes to its own slot, and who reads may see it half written.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ..settings import MB
from ..system.procfs import read_stat
from . import site_totals as ledger

try:
    import fcntl
except ImportError:  # Windows: one process, nothing to keep apart
    fcntl = None  # type: ignore[assignment]

MAGIC = b"lowmem 3"
# What a worker is doing: at work; finishing what it has; the same, and the master has started
# another already. GONE is added to it as it ends in order. A slot that nobody has is all zeros.
READY, RETIRING, REPLACED, GONE = 1, 2, 3, 8

HEAD = struct.Struct("<8sIQQIIQQ")  # magic; the rest as named here, `length` is that of the text:
FIELDS = {  # where, and what
    "master": (8, "<I"),
    "kills": (12, "<Q"),
    "deaths": (20, "<Q"),
    "in_vain": (28, "<I"),
    "length": (32, "<I"),
    "retired": (36, "<Q"),  # when a worker was told to end, µs of the monotonic clock
    "release": (44, "<Q"),  # what the last ones took to be gone after that, µs
}
TEXT = 1024 - HEAD.size  # the last death, as JSON
SLOT = struct.Struct("<IIddQQQ")  # pid, state, born and seen (monotonic), RSS at both, requests
POINT = struct.Struct("<dQQ")  # when, the worker's RSS, what the site used
REQUEST = struct.Struct("<dQ112s")  # begun, the worker's RSS then, what

SLOTS, POINTS, REQUESTS = 40, 16, 8
POINTS_AT = SLOT.size
REQUESTS_AT = POINTS_AT + POINTS * POINT.size
SLOT_SIZE = REQUESTS_AT + REQUESTS * REQUEST.size
SLOTS_AT = 1024
LEDGER_AT = SLOTS_AT + SLOTS * SLOT_SIZE
SIZE = LEDGER_AT + ledger.SIZE + SLOTS * ledger.HELD_SIZE  # 150 KB; a few pages are touched
PID = struct.Struct("<I")
NOBODY, NO_PID = bytes(8), bytes(4)

# A worker that takes longer to end (seconds) is kept by a slow request.
LONGEST_RELEASE = 2.0

# Readings closer together (seconds) than this share a point: the points span some seconds.
APART = 0.25

# Bytes of the file that are locked: while the page is changed for all; by who is being replaced.
ALL, REPLACING = 0, 1


class Flight(NamedTuple):
    """A request in flight: what, since when (monotonic seconds), the worker's RSS then."""

    what: str
    begun: float
    rss: int


class Seen(NamedTuple):
    """A worker's slot as it was read. Bytes, and seconds of the monotonic clock."""

    place: int
    pid: int
    state: int
    born: float
    at: float
    born_rss: int
    rss: int
    requests: int
    points: list[tuple[float, int, int]]
    flights: list[Flight]

    def grew(self, since: float, noise: int = 4 * MB) -> bool:
        """Whether its RSS has grown since then (monotonic seconds)."""
        then = [rss for at, rss, _ in self.points if at <= since] or [self.born_rss]
        return self.rss - then[-1] > noise

    def takes_room(self, since: float) -> bool:
        """Whether it is at work; or ending, and what it has in flight still grows."""
        return self.state == READY or (bool(self.flights) and self.grew(since))

    @property
    def ready(self) -> bool:
        return self.state == READY

    @property
    def replaced(self) -> bool:
        return self.state & ~GONE == REPLACED


class Board:
    """The page. Made before workers fork, or opened by each of them."""

    def __init__(self, file: int) -> None:
        """`file`: descriptor of an empty file, or of one that another worker has begun."""
        self.made_by = os.getpid()
        self.threads = threading.RLock()  # anew after a fork
        self._locks = 0
        self._file = file
        if os.fstat(file).st_size < SIZE:
            os.ftruncate(file, SIZE)
        self.map = mmap.mmap(file, SIZE)
        with self.locked():
            if self.map[: len(MAGIC)] != MAGIC:
                if self.map[: len(MAGIC)] != NOBODY:  # another version's
                    self.map[:] = bytes(SIZE)
                HEAD.pack_into(self.map, 0, MAGIC, *[0] * len(FIELDS))
        self.ledger = ledger.Ledger(self.map, LEDGER_AT, self.locked)

    @classmethod
    def private(cls) -> Board:
        """For this process and those that it will fork."""
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("lowmem-wsgi", os.MFD_CLOEXEC))
        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()))

    @classmethod
    def at(cls, path: str) -> Board:
        """In a file, for processes that know the same path. Raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        return cls(os.open(path, flags, 0o600))

    def close(self) -> None:
        self.map.close()
        os.close(self._file)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes what belongs to all."""
        if fcntl is None:
            yield
            return
        # The kernel's lock is the process's: it does not keep its threads apart.
        with self.threads:
            self._locks += 1
            try:
                if self._locks == 1:
                    fcntl.lockf(self._file, fcntl.LOCK_EX, 1, ALL)
                yield
            finally:
                self._locks -= 1
                if not self._locks:
                    fcntl.lockf(self._file, fcntl.LOCK_UN, 1, ALL)

    def after_fork(self) -> None:
        """In a new child: the parent's locks are the parent's."""
        self.threads, self._locks = threading.RLock(), 0

    def take_turn(self) -> bool:
        """Be the one worker that is replaced. The kernel takes the turn back from who dies."""
        if fcntl is None:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, REPLACING)
        except OSError:
            return False
        return True

    def end_turn(self) -> None:
        if fcntl is not None:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, REPLACING)

    # --- For all

    @property
    def master(self) -> int:
        """The pid of a master that replaces who retires at once, and logs deaths; else 0."""
        return self._get("master")

    @property
    def kills(self) -> int:
        """How many OOM kills there were when it was looked last."""
        return self._get("kills")

    @property
    def deaths(self) -> int:
        """How many workers have died."""
        return self._get("deaths")

    @property
    def in_vain(self) -> int:
        """How many workers in a row were replaced and memory was not ok after it."""
        return self._get("in_vain")

    @property
    def release(self) -> float:
        """Seconds that a worker takes to end when it is replaced; 0 where none has been."""
        return self._get("release") / 1e6

    def retires(self, now: float) -> None:
        """A worker is told to end, at `now` (monotonic seconds)."""
        self.change(retired=int(now * 1e6))

    def released(self, now: float) -> None:
        """The worker that was told to end is gone. Half of what was measured before is kept, where
        that was more."""
        seconds = min(max(0.0, now - self._get("retired") / 1e6), LONGEST_RELEASE)
        self.change(release=int(max(seconds, (seconds + self.release) / 2) * 1e6))

    @property
    def last_death(self) -> dict[str, Any] | None:
        import json

        length = min(self._get("length"), TEXT)
        try:
            found = json.loads(self.map[HEAD.size : HEAD.size + length])
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def add_death(self, death: dict[str, Any]) -> None:
        import json

        flights = death["in_flight"]
        while len(text := json.dumps({**death, "in_flight": flights}).encode()) > TEXT:
            flights = flights[:-1]
        self.map[HEAD.size : HEAD.size + len(text)] = text
        self.change(deaths=self.deaths + 1, length=len(text))

    def change(self, **values: int) -> None:
        """Set some of FIELDS: those alone, as another may be setting others."""
        for field, value in values.items():
            at, kind = FIELDS[field]
            ledger.put(self.map, at, struct.pack(kind, value))

    def _get(self, field: str) -> int:
        at, kind = FIELDS[field]
        return int(struct.unpack_from(kind, self.map, at)[0])

    # --- The slots

    def workers(self) -> list[Seen]:
        """All slots that somebody has."""
        found = (self.read(place) for place in self.taken())
        return [seen for seen in found if seen is not None]

    def taken(self) -> list[int]:
        """The places that somebody has: a glance."""
        starts = range(SLOTS_AT, LEDGER_AT, SLOT_SIZE)
        return [place for place, at in enumerate(starts) if self.map[at : at + 4] != NO_PID]

    def read(self, index: int) -> Seen | None:
        at = SLOTS_AT + index * SLOT_SIZE
        pid, state, born, seen, born_rss, rss, requests = SLOT.unpack_from(self.map, at)
        if not pid:
            return None
        points = POINT.iter_unpack(self.map[at + POINTS_AT : at + REQUESTS_AT])
        flights = REQUEST.iter_unpack(self.map[at + REQUESTS_AT : at + SLOT_SIZE])
        return Seen(
            *(index, pid, state, born, seen, born_rss, rss, requests),
            points=sorted(point for point in points if point[0]),
            flights=sorted(
                (
                    Flight(what.rstrip(b"\0").decode("utf-8", "replace"), begun, then)
                    for begun, then, what in flights
                    if begun
                ),
                key=lambda flight: flight.begun,
            ),
        )

    def free(self, index: int) -> None:
        """Nobody has the slot any more. What its worker held is forgotten."""
        at = SLOTS_AT + index * SLOT_SIZE
        self.map[at : at + SLOT_SIZE] = bytes(SLOT_SIZE)
        self.ledger.add({}, (), (index, {}))

    def bury(self, seen: Seen) -> None:
        """The worker is gone: keep by how much each route had grown in it, and free its place."""
        eaten = max((seen.rss - flight.rss for flight in seen.flights), default=0)
        self.ledger.ended(seen.place, eaten=eaten)
        self.free(seen.place)

    def growth(self) -> dict[str, ledger.Growth]:
        """By route, what this site's workers have grown by, before and now."""
        pids = {place: self._pid(place) for place in self.taken()}
        return self.ledger.growth({place: is_alive(pid) for place, pid in pids.items()})

    def _pid(self, place: int) -> int:
        return int(PID.unpack_from(self.map, SLOTS_AT + place * SLOT_SIZE)[0])


class Slot:
    """A worker's own place on the page. `began` and `ended` are on the path of every request."""

    def __init__(
        self, board: Board, index: int, rss: int, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._map = board.map
        self._at = SLOTS_AT + index * SLOT_SIZE
        self._now = now
        self._free = dict.fromkeys(range(REQUESTS))  # a stack without duplicates
        self._frozen = False
        self._point, self._pointed = 0, 0.0
        self.index = index
        self.pid = os.getpid()
        self.state = READY
        self.born, self.born_rss = now(), rss
        self.rss = rss
        self.requests = 0
        self._write(self.born)
        ledger.put(self._map, self._at, PID.pack(self.pid))  # last: from now on it is read

    def began(self, method: str, path: str) -> int:
        """Note a request; give the number back to `ended`. -1 where there is no room."""
        self.requests += 1
        # Made first: a place that is taken is not lost where there is no memory for these.
        now, what = self._now(), f"{method} {path}".encode("latin-1", "replace")
        try:
            place = self._free.popitem()[0]
        except KeyError:
            return -1
        REQUEST.pack_into(
            self._map,
            self._at + REQUESTS_AT + place * REQUEST.size,
            now,
            self.rss,
            what,  # the bytes that came
        )
        return place

    def ended(self, place: int) -> None:
        """The request that has this place is over. Harmless when repeated."""
        if place >= 0 and not self._frozen:
            at = self._at + REQUESTS_AT + place * REQUEST.size
            self._map[at : at + 8] = NOBODY
            self._free[place] = None

    def freeze(self) -> None:
        """What is in flight now stays noted, whatever becomes of it."""
        self._frozen = True

    def note(self, rss: int, used: int) -> None:
        """Write down a reading. The last POINTS of them are kept."""
        now = self._now()
        self.rss = rss
        if now - self._pointed >= APART:
            self._point = (self._point + 1) % POINTS
            self._pointed = now
        at = self._at + POINTS_AT + self._point * POINT.size
        ledger.put(self._map, at, POINT.pack(now, rss, used))
        self._write(now)

    def enter(self, state: int) -> None:
        self.state = state
        self._write(self._now())

    def _write(self, now: float) -> None:
        figures = (self.state, self.born, now, self.born_rss, self.rss, self.requests)
        # The pid stays as it is. Who reads nobody's there would take the place.
        ledger.put(self._map, self._at + PID.size, SLOT.pack(self.pid, *figures)[PID.size :])


def claim(board: Board, rss: int, *, now: Callable[[], float] = time.monotonic) -> Slot | None:
    """A free slot, now this process's; None where all are taken."""
    with board.locked():
        for index in board.taken():
            seen = board.read(index)
            if seen is not None and seen.pid == os.getpid():  # of a process before that had the pid
                board.bury(seen)
        for index in range(SLOTS):
            if board.read(index) is None:
                return Slot(board, index, rss, now=now)
    return None


def is_alive(pid: int) -> bool:
    """Whether there is such a process, that has not ended already."""
    stat = read_stat(pid)
    if stat is not None:
        return not stat.ended
    try:  # where /proc tells nothing, or not of others' processes
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
