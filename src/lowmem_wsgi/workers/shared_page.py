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
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..metrics import NAMES
from ..system.procfs import read_stat
from . import history
from .figures import ROUTE, Figures, folded, total
from .record import (
    NOBODY,
    POINT,
    RECORD_SIZE,
    RECORDS_AT,
    REQUEST,
    SIDES_SIZE,
    WHO,
    WORKER,
    Seen,
    TwoSides,
    WorkerRecord,
    read_record,
    record_at,
)

try:
    import fcntl
except ImportError:  # Windows: one process, nothing to keep apart
    fcntl = None  # type: ignore[assignment]

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
PLACES, NO_PID = 40, bytes(4)
FIGURES_AT = RECORDS_AT + PLACES * RECORD_SIZE
TOTALS_AT = FIGURES_AT + PLACES * SIDES_SIZE
HISTORY_AT = TOTALS_AT + SIDES_SIZE
SIZE = HISTORY_AT + history.SIZE  # 1.4 MB, of which 0.1 MB are touched

# Another layout is another version's: its page begins anew.
LAYOUT = (NAMES, SIZE, *(kind.format for kind in (HEAD, WORKER, POINT, REQUEST, ROUTE)))
MAGIC = b"lowm" + crc32(repr(LAYOUT).encode()).to_bytes(4, "little")

# A worker that takes longer to end (seconds) is kept by a slow request.
LONGEST_RELEASE = 2.0

ALL_OF_IT = 2**63  # bytes

# Bytes of the file that are locked: while the page is changed for all; by who is being replaced.
ALL, REPLACING = 0, 1


def figures_at(place: int) -> int:
    return FIGURES_AT + place * SIDES_SIZE


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
        if hasattr(mmap, "MADV_RANDOM"):  # else the kernel reads all of it ahead
            self.map.madvise(mmap.MADV_RANDOM)
        with self.locked():
            if self.map[: len(MAGIC)] != MAGIC:
                if self.map[: len(MAGIC)] != NOBODY:  # another version's
                    self.map[:] = bytes(SIZE)
                HEAD.pack_into(self.map, 0, MAGIC, *[0] * len(FIELDS))
        self.history = history.History(self.map, HISTORY_AT, self.locked)
        self._totals = TwoSides(self.map, TOTALS_AT)
        self._own: list[WorkerRecord] = []  # of this process, on the page or without a place

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
        self._own.clear()

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

        in_flight = death["in_flight"]
        while len(text := json.dumps({**death, "in_flight": in_flight}).encode()) > TEXT:
            in_flight = in_flight[:-1]
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
        starts = range(RECORDS_AT, FIGURES_AT, RECORD_SIZE)
        return [place for place, at in enumerate(starts) if self.map[at : at + 4] != NO_PID]

    def read(self, place: int) -> Seen | None:
        """What the worker at this place notes of itself; None where nobody has it."""
        return read_record(self.map, place) if place >= 0 else None

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
            taken = self.taken()
            place = next((place for place in range(PLACES) if place not in taken), -1)
            data: mmap.mmap | bytearray = self.map
            at, figures = record_at(place), figures_at(place)
            if place < 0:
                data, at, figures = bytearray(RECORD_SIZE + SIDES_SIZE), 0, RECORD_SIZE
            record = WorkerRecord(data, at, figures, place, rss, inherited or {}, now)
            self._own.append(record)
            return record

    def give_up(self, record: WorkerRecord) -> None:
        """Keep what was counted, and free the place. The process goes on, so what it holds is no
        growth of a worker that is gone. Idempotent."""
        with self.locked():
            if record in self._own:
                self._own.remove(record)
                self._fold(record, record.figures(), eaten=ALL_OF_IT)
                if record.index >= 0:
                    self.free(record.index)

    def fold_in(self, seen: Seen, counted: Mapping[str, float] | None = None) -> None:
        """The worker is gone: add its figures and `counted` to the site's, once; free the place."""
        with self.locked():
            self._fold(seen, self._read_figures(seen.place), seen.eaten, counted)
            self.free(seen.place)

    def free(self, place: int) -> None:
        """Nobody has the place any more. What its worker counted is forgotten."""
        at = record_at(place)
        self._figures_of(place).write(b"")
        self.map[at : at + RECORD_SIZE] = bytes(RECORD_SIZE)

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
            living += [record.figures() for record in self._own if record.index < 0]
            return total(dead, living)

    def held(self, place: int) -> int:
        """Bytes that the routes of the worker at this place have left in it."""
        return sum(row.held for row in self._read_figures(place).routes.values())

    def _read_figures(self, place: int) -> Figures:
        return Figures.unpack(self._figures_of(place).read())

    def _figures_of(self, place: int) -> TwoSides:
        return TwoSides(self.map, figures_at(place))

    def _totals_and_last(self) -> tuple[Figures, bytes]:
        """What those counted that are gone; which of them was the last."""
        data = self._totals.read()
        return Figures.unpack(data[WHO.size :]), data[: WHO.size]

    def _fold(
        self,
        gone: Seen | WorkerRecord,
        its: Figures,
        eaten: int,
        counted: Mapping[str, float] | None = None,
    ) -> None:
        who, (dead, last) = WHO.pack(gone.pid, gone.born), self._totals_and_last()
        if who != last:  # else somebody did who died before the place was free
            after = folded(dead, its, eaten=eaten)
            for name, value in (counted or {}).items():
                after.counters[name] += value
            self._totals.write(who + after.pack())


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
