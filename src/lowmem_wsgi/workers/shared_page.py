"""The memory page that all workers of a site share, and that outlives each worker.

Only a worker itself writes to its record: its requests in flight, its memory in the last seconds,
its counters. Nothing here waits for a worker, and no worker can spoil another's figures. Readers
add up the records. When the kernel kills a worker, the worker has no time to log, but its record
remains: in the master that made the page before forking or, without such a master, in a file. The
process that finds a dead worker folds its figures into the site's totals, once, and frees the
place.
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
from . import history, trace_note
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
except ImportError:  # Windows: one process, so no locks are needed
    fcntl = None  # type: ignore[assignment]

HEAD = struct.Struct("<8sIQQIIQ")  # the magic, then FIELDS; `length`: of the text after the head
FIELDS = {  # name: offset in bytes, format
    "master": (8, "<I"),
    "kills": (12, "<Q"),
    "deaths": (20, "<Q"),
    "in_vain": (28, "<I"),
    "length": (32, "<I"),
    "release": (36, "<Q"),  # how long workers took to end, µs (see `released`)
}
TEXT = 1024 - HEAD.size  # the last death, as JSON
PLACES, NO_PID = 40, bytes(4)
FIGURES_AT = RECORDS_AT + PLACES * RECORD_SIZE
TOTALS_AT = FIGURES_AT + PLACES * SIDES_SIZE
HISTORY_AT = TOTALS_AT + SIDES_SIZE
TRACE_AT = HISTORY_AT + history.SIZE
SIZE = TRACE_AT + trace_note.SIZE  # 1.4 MB, of which 0.1 MB are touched

# A page with another layout comes from another version: LowMemory clears that page.
OFFSETS = (RECORD_SIZE, FIGURES_AT, TOTALS_AT, HISTORY_AT, TRACE_AT)
LAYOUT = (NAMES, SIZE, OFFSETS, *(kind.format for kind in (HEAD, WORKER, POINT, REQUEST, ROUTE)))
MAGIC = b"lowm" + crc32(repr(LAYOUT).encode()).to_bytes(4, "little")

# A worker that takes longer than this (seconds) to end is kept alive by a slow request.
LONGEST_RELEASE = 2.0

ALL_OF_IT = 2**63  # bytes

# Bytes of the file to lock: ALL to change shared parts of the page; REPLACING by the worker that is
# being replaced.
ALL, REPLACING = 0, 1


def figures_at(place: int) -> int:
    return FIGURES_AT + place * SIDES_SIZE


class SharedPage:
    """The page. The master makes the page before forking, or each worker opens its file."""

    def __init__(self, file: int) -> None:
        """Map the file. `file`: the descriptor of an empty file, or of another worker's page."""
        self.made_by: int = os.getpid()
        self.threads: threading.RLock = threading.RLock()  # replaced after a fork
        self._locks = 0
        self._file = file
        if os.fstat(file).st_size < SIZE:
            os.ftruncate(file, SIZE)
        self.map: mmap.mmap = mmap.mmap(file, SIZE)
        if hasattr(mmap, "MADV_RANDOM"):  # otherwise the kernel reads the whole file ahead
            with contextlib.suppress(OSError):  # a sandbox may forbid it
                self.map.madvise(mmap.MADV_RANDOM)
        with self.locked():
            if self.map[: len(MAGIC)] != MAGIC:
                if self.map[: len(MAGIC)] != NOBODY:  # a page of another version
                    self.map[:] = bytes(SIZE)
                HEAD.pack_into(self.map, 0, MAGIC, *[0] * len(FIELDS))
        self.history: history.History = history.History(self.map, HISTORY_AT, self.locked)
        self.trace: trace_note.TraceNote = trace_note.TraceNote(
            self.map, TRACE_AT, self.locked, is_alive
        )
        self._totals = TwoSides(self.map, TOTALS_AT)
        self._own: list[WorkerRecord] = []  # this process's records, with or without a place

    @classmethod
    def private(cls) -> SharedPage:
        """Make a page for this process and its future children."""
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("lowmem-wsgi", os.MFD_CLOEXEC))
        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()))

    @classmethod
    def at(cls, path: str) -> SharedPage:
        """Open or make a page in a file, for processes that know the path. Raise OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        return cls(os.open(path, flags, 0o600))

    def close(self) -> None:
        self.map.close()
        os.close(self._file)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Exclude other processes and threads from changes to the shared parts. Re-entrant."""
        if fcntl is None:
            yield
            return
        # The kernel's lock belongs to the process and does not exclude the process's own threads.
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
        """Forget the parent's locks and records in a new child process."""
        self.threads, self._locks = threading.RLock(), 0
        self._own.clear()

    def take_turn(self) -> bool:
        """Try to become the one worker that is being replaced. Return whether that succeeded.

        Does not wait. When this worker dies, the kernel releases the lock.
        """
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

    # --- Shared by all

    @property
    def master(self) -> int:
        """The pid of a master that replaces retiring workers at once, and logs deaths; else 0."""
        return self._get("master")

    @property
    def kills(self) -> int:
        """How many OOM kills the kernel had counted at the last reading."""
        return self._get("kills")

    @property
    def deaths(self) -> int:
        """How many workers have died."""
        return self._get("deaths")

    @property
    def in_vain(self) -> int:
        """How many replacements in a row did not bring memory back to ok."""
        return self._get("in_vain")

    @property
    def release(self) -> float:
        """Seconds that a replaced worker takes to end; 0 if none has been replaced yet."""
        return self._get("release") / 1e6

    def released(self, seconds: float) -> None:
        """Note that a worker is gone, so many seconds after it was asked to end.

        If the earlier `release` was longer, the new one is the mean of both.
        """
        seconds = min(max(0.0, seconds), LONGEST_RELEASE)
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
        """Set some of FIELDS. Write no other field: another process may be writing those."""
        for field, value in values.items():
            at, kind = FIELDS[field]
            data = struct.pack(kind, value)  # not `pack_into`, which clears the bytes first
            self.map[at : at + len(data)] = data

    def _get(self, field: str) -> int:
        at, kind = FIELDS[field]
        return int(struct.unpack_from(kind, self.map, at)[0])

    # --- The records

    def workers(self) -> list[Seen]:
        """Return the records of all taken places."""
        found = (self.read(place) for place in self.taken())
        return [seen for seen in found if seen is not None]

    def taken(self) -> list[int]:
        """Return the numbers of the taken places. Cheap."""
        starts = range(RECORDS_AT, FIGURES_AT, RECORD_SIZE)
        return [place for place, at in enumerate(starts) if self.map[at : at + 4] != NO_PID]

    def read(self, place: int) -> Seen | None:
        """Return the record of the worker at this place; None if the place is free."""
        return read_record(self.map, place) if place >= 0 else None

    def claim(
        self,
        rss: int,
        inherited: Mapping[str, float] | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> WorkerRecord:
        """Return a record for this process.

        `rss`: bytes now. `inherited`: its counters from before the process was a worker. If all
        places are taken, the record is in the process's own memory, and other processes see its
        counters only after `give_up`.
        """
        with self.locked():
            for seen in self.workers():
                if seen.pid == os.getpid():  # an earlier process with the same pid
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
        """Fold in the record's figures, and free the place. Idempotent.

        The process goes on, so the memory that it holds does not count as a gone worker's growth.
        """
        with self.locked():
            if record in self._own:
                self._own.remove(record)
                self._fold(record, record.figures(), eaten=ALL_OF_IT)
                if record.index >= 0:
                    self.free(record.index)

    def fold_in(self, seen: Seen, counted: Mapping[str, float] | None = None) -> None:
        """Add a gone worker's figures and `counted` to the site's totals, once. Free the place."""
        with self.locked():
            self._fold(seen, self._read_figures(seen.place), seen.eaten, counted)
            self.free(seen.place)

    def free(self, place: int) -> None:
        """Free the place, and clear the figures of its worker."""
        at = record_at(place)
        self._figures_of(place).write(b"")
        self.map[at : at + RECORD_SIZE] = bytes(RECORD_SIZE)

    # --- Figures

    def figures(self) -> Figures:
        """Return the site's figures: the sum of its gone and living workers."""
        with self.locked():
            dead, living = self._totals_and_last()[0], []
            for seen in self.workers():
                found = self._read_figures(seen.place)
                if is_alive(seen.pid):
                    living.append(found)
                else:  # not folded in yet
                    dead = folded(dead, found, eaten=seen.eaten)
            living += [record.figures() for record in self._own if record.index < 0]
            return total(dead, living)

    def held(self, place: int) -> int:
        """Return the bytes that routes have left in the worker at this place."""
        return sum(row.held for row in self._read_figures(place).routes.values())

    def _read_figures(self, place: int) -> Figures:
        return Figures.unpack(self._figures_of(place).read())

    def _figures_of(self, place: int) -> TwoSides:
        return TwoSides(self.map, figures_at(place))

    def _totals_and_last(self) -> tuple[Figures, bytes]:
        """Return the totals of the gone workers, and which of them was folded in last."""
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
        if who != last:  # equal if a process died after folding in and before freeing the place
            after = folded(dead, its, eaten=eaten)
            for name, value in (counted or {}).items():
                after.counters[name] += value
            self._totals.write(who + after.pack())


def is_alive(pid: int) -> bool:
    """Return whether the process exists and has not ended (a zombie has ended)."""
    stat = read_stat(pid)
    if stat is not None:
        return not stat.ended
    try:  # /proc is missing, or hides the processes of others
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
