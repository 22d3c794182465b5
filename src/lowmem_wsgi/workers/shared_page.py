"""The page that all workers of a site share, and that outlives each of them.

A worker writes to its own record, and nobody else does: what it has in flight, its memory in the
last seconds, what it has counted. Nothing here waits for a worker, and none can spoil another's
figures. Readers add up the records. When the kernel kills a worker there is no time to log
anything, but its record is still there: in the master that made the page before it forked or,
without such a master, in a file. Who finds a dead worker folds its figures into the site's, once,
and frees the place.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import tempfile
import threading
import time
from binascii import crc32
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..metrics import NAMES
from ..settings import MB
from ..system.procfs import read_stat
from . import history
from .figures import ROUTE, Figures, RouteFigures, folded, total
from .figures import SIZE as FIGURES_SIZE

if TYPE_CHECKING:
    from ..memory.attribution import Route

try:
    import fcntl
except ImportError:  # Windows: one process, nothing to keep apart
    fcntl = None  # type: ignore[assignment]

# What a worker is doing: at work; finishing what it has; the same, and the master has started
# another already. GONE is added to it as it ends in order. A record that nobody has is all zeros.
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
WORKER = struct.Struct("<IIddQQQ")  # pid, state, born and seen (monotonic), RSS at both, requests
POINT = struct.Struct("<dQQ")  # when, the worker's RSS, what the site used
REQUEST = struct.Struct("<dQ112s")  # begun, the worker's RSS then, what
PID = struct.Struct("<I")
WHO = struct.Struct("<Id")  # pid, born
LENGTH = struct.Struct("<Q")
NOBODY, NO_PID = bytes(8), bytes(4)

PLACES, POINTS, REQUESTS = 40, 16, 8
POINTS_AT = WORKER.size
REQUESTS_AT = POINTS_AT + POINTS * POINT.size
FIGURES_AT = REQUESTS_AT + REQUESTS * REQUEST.size
SIDE_SIZE = LENGTH.size + WHO.size + FIGURES_SIZE
RECORD_SIZE = FIGURES_AT + 8 + 2 * SIDE_SIZE
RECORDS_AT = 1024
TOTALS_AT = RECORDS_AT + PLACES * RECORD_SIZE
HISTORY_AT = TOTALS_AT + 8 + 2 * SIDE_SIZE
SIZE = HISTORY_AT + history.SIZE  # 1.4 MB, of which some pages are touched

# Another layout is another version's: its page begins anew.
LAYOUT = (NAMES, SIZE, *(kind.format for kind in (HEAD, WORKER, POINT, REQUEST, ROUTE)))
MAGIC = b"lowm" + crc32(repr(LAYOUT).encode()).to_bytes(4, "little")

# A worker that takes longer to end (seconds) is kept by a slow request.
LONGEST_RELEASE = 2.0

# Readings closer together (seconds) than this share a point: the points span some seconds.
APART = 0.25

ALL_OF_IT = 2**63  # bytes

# Bytes of the file that are locked: while the page is changed for all; by who is being replaced.
ALL, REPLACING = 0, 1


class Flight(NamedTuple):
    """A request in flight: what, since when (monotonic seconds), the worker's RSS then."""

    what: str
    begun: float
    rss: int


class Seen(NamedTuple):
    """A worker's record as it was read. Bytes, and seconds of the monotonic clock."""

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
    def eaten(self) -> int:
        """By how many bytes it grew during requests that are in flight."""
        return max((self.rss - flight.rss for flight in self.flights), default=0)

    @property
    def ready(self) -> bool:
        return self.state == READY

    @property
    def replaced(self) -> bool:
        return self.state & ~GONE == REPLACED


class TwoSides:
    """Bytes that one process writes at a time, and any process reads: all of one write, never half
    of it. The writer fills the side that nobody reads, and then turns over by one byte. Killed
    between the two it leaves what it wrote before."""

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
            if self._map[self._at] == turn:  # else the writer may have come back to this side
                return bytes(data)

    def clear(self) -> None:
        """Leave nothing of what was written, and touch no more than that."""
        for turn in range(2):
            at = self._side(turn)
            (length,) = LENGTH.unpack_from(self._map, at)
            size = min(SIDE_SIZE, LENGTH.size + length)
            self._map[at : at + size] = bytes(size)

    def _side(self, turn: int) -> int:
        return self._at + 8 + turn % 2 * SIDE_SIZE


class SharedPage:
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
        self.history = history.History(self.map, HISTORY_AT, self.locked)
        self._totals = TwoSides(self.map, TOTALS_AT)
        self._unplaced: list[WorkerRecord] = []  # of this process, where all places were taken

    @classmethod
    def private(cls) -> SharedPage:
        """For this process and those that it will fork."""
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("lowmem-wsgi", os.MFD_CLOEXEC))
        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()))

    @classmethod
    def at(cls, path: str) -> SharedPage:
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
        self._unplaced.clear()

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
            data = struct.pack(kind, value)  # `pack_into` sets its bytes to nothing first
            self.map[at : at + len(data)] = data

    def _get(self, field: str) -> int:
        at, kind = FIELDS[field]
        return int(struct.unpack_from(kind, self.map, at)[0])

    # --- The records

    def workers(self) -> list[Seen]:
        """The records that somebody has."""
        found = (self.read(place) for place in self.taken())
        return [seen for seen in found if seen is not None]

    def taken(self) -> list[int]:
        """The places that somebody has: a glance."""
        starts = range(RECORDS_AT, TOTALS_AT, RECORD_SIZE)
        return [place for place, at in enumerate(starts) if self.map[at : at + 4] != NO_PID]

    def read(self, place: int) -> Seen | None:
        """What the worker at this place notes of itself; None where nobody has it."""
        if not 0 <= place < PLACES:
            return None
        at = RECORDS_AT + place * RECORD_SIZE
        pid, state, born, seen, born_rss, rss, requests = WORKER.unpack_from(self.map, at)
        if not pid:
            return None
        points = POINT.iter_unpack(self.map[at + POINTS_AT : at + REQUESTS_AT])
        flights = REQUEST.iter_unpack(self.map[at + REQUESTS_AT : at + FIGURES_AT])
        return Seen(
            *(place, pid, state, born, seen, born_rss, rss, requests),
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

    def claim(
        self,
        rss: int,
        inherited: Mapping[str, float] | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> WorkerRecord:
        """Return a record for this process. `inherited`: what its counters showed before it was a
        worker. Where all places are taken, the record is in the process's own memory: the site
        hears of its counts when it is given up."""
        with self.locked():
            for seen in self.workers():
                if seen.pid == os.getpid():  # of a process before that had the pid
                    self.fold_in(seen)
            taken = {*self.taken()}
            place = next((place for place in range(PLACES) if place not in taken), None)
            if place is not None:
                at = RECORDS_AT + place * RECORD_SIZE
                return WorkerRecord(self.map, at, place, rss, inherited or {}, now)
            record = WorkerRecord(bytearray(RECORD_SIZE), 0, -1, rss, inherited or {}, now)
            self._unplaced.append(record)
            return record

    def give_up(self, record: WorkerRecord) -> None:
        """Keep what was counted, and free the place. The process goes on, so what it holds is no
        growth of a worker that is gone. Harmless when repeated."""
        with self.locked():
            seen = self.read(record.index)
            if record in self._unplaced:
                self._unplaced.remove(record)
                self._fold(record, record.figures(), eaten=ALL_OF_IT)
            elif seen is not None and (seen.pid, seen.born) == (record.pid, record.born):
                self._fold(record, record.figures(), eaten=ALL_OF_IT)
                self.free(record.index)

    def fold_in(self, seen: Seen, counted: Mapping[str, float] | None = None) -> None:
        """The worker is gone: add its figures to the site's, once, and free its place. `counted`
        is added as well."""
        with self.locked():
            gone = self._read_figures(seen.place)
            self._fold(seen, gone, eaten=seen.eaten, counted=counted or {})
            self.free(seen.place)

    def free(self, place: int) -> None:
        """Nobody has the place any more. What its worker counted is forgotten."""
        at = RECORDS_AT + place * RECORD_SIZE
        self._figures_of(place).clear()
        self.map[at : at + FIGURES_AT] = bytes(FIGURES_AT)

    # --- What was counted

    def figures(self) -> Figures:
        """Return what the site has counted: its workers that are gone, and those there are."""
        with self.locked():
            dead, living = self._totals_and_last()[0], []
            for seen in self.workers():
                found = self._read_figures(seen.place)
                if is_alive(seen.pid):
                    living.append(found)
                else:  # nobody has folded it in yet
                    dead = folded(dead, found, eaten=seen.eaten)
            return total(dead, [*living, *(record.figures() for record in self._unplaced)])

    def held(self, place: int) -> int:
        """Bytes that the routes of the worker at this place have left in it."""
        return sum(row.held for row in self._read_figures(place).routes.values())

    def _read_figures(self, place: int) -> Figures:
        return Figures.unpack(self._figures_of(place).read())

    def _figures_of(self, place: int) -> TwoSides:
        return TwoSides(self.map, RECORDS_AT + place * RECORD_SIZE + FIGURES_AT)

    def _totals_and_last(self) -> tuple[Figures, bytes]:
        """What those counted that are gone; which of them was the last."""
        data = self._totals.read()
        return Figures.unpack(data[WHO.size :]), data[: WHO.size]

    def _fold(
        self,
        gone: Seen | WorkerRecord,
        its: Figures,
        *,
        eaten: int,
        counted: Mapping[str, float] | None = None,
    ) -> None:
        who, (dead, last) = WHO.pack(gone.pid, gone.born), self._totals_and_last()
        if who == last:  # by somebody who died before the place was free
            return
        if counted:
            its = its._replace(counters={k: v + counted.get(k, 0) for k, v in its.counters.items()})
        self._totals.write(who + folded(dead, its, eaten=eaten).pack())


class WorkerRecord:
    """What a worker writes of itself, at `index` of the page; -1 where it has found no place.

    `began` and `ended` are on the path of every request.
    """

    def __init__(
        self,
        page: mmap.mmap | bytearray,
        at: int,
        index: int,
        rss: int,
        inherited: Mapping[str, float],
        now: Callable[[], float],
    ) -> None:
        self._map = page
        self._at = at
        self._now = now
        self._figures = TwoSides(page, at + FIGURES_AT)
        self._counted = dict.fromkeys(NAMES, 0.0)
        self._shown = dict(inherited)  # what each counter showed at the last flush
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
        self._map[at : at + PID.size] = PID.pack(self.pid)  # last: from now on it is read

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
        self._map[at : at + POINT.size] = POINT.pack(now, rss, used)
        self._write(now)

    def count(self, name: str) -> None:
        """Count something of the worker itself. The next `flush` writes it down."""
        self._counted[name] += 1

    def flush(
        self,
        counters: Mapping[str, float],
        routes: Iterable[Route] = (),
        held: Mapping[str, int] | None = None,
    ) -> None:
        """Write down what this process has counted so far: counters by name, its routes, and what
        each route has left in it (bytes). A counter that starts again, such as that of an app that
        was closed, takes nothing away. For one thread at a time."""
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
        """What it has written down."""
        return Figures.unpack(self._figures.read())

    def enter(self, state: int) -> None:
        self.state = state
        self._write(self._now())

    def _write(self, now: float) -> None:
        figures = (self.state, self.born, now, self.born_rss, self.rss, self.requests)
        # The pid stays as it is. Who reads nobody's there would take the place.
        at, whole = self._at, WORKER.pack(self.pid, *figures)
        self._map[at + PID.size : at + WORKER.size] = whole[PID.size :]


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
