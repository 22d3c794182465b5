"""Work that outlives its request: a row each in the database, for every worker to see.

A job is `waiting`, `running`, or over: `done`, `refused` (the file is wrong), `failed` (we are) or
`interrupted` (its worker ended first). While it is not over its worker keeps a lock on a file.
The system takes that away when the worker ends, in whatever way: so that whoever looks at the job
next knows.
"""

import json
import os
import sqlite3
import time
from collections.abc import Sequence
from typing import IO, NamedTuple

import db

KEPT = 50  # rows; older ones go when a new one comes
ACTIVE = "state IN ('waiting', 'running')"
INTERRUPTED = "The server was restarted in the middle of it. Nothing was imported: send it again."
COLUMNS = "id, file, state, step, done, total, message, problems, problem_count, began, ended"


class Problem(NamedTuple):
    """What is wrong in a file. Row 0 stands for the whole of it."""

    row: int
    column: str
    reason: str


class Job(NamedTuple):
    id: int
    file: str
    state: str
    step: str  # what it is at: reading, checking, storing
    done: int  # of the step; bytes or rows
    total: int
    message: str
    problems: list[Problem]  # the first of them ...
    problem_count: int  # ... and how many there are
    began: float
    ended: float | None

    @property
    def over(self) -> bool:
        return self.ended is not None


class Gone(Exception):
    """The job is over, or forgotten: nobody waits for what is to be written of it."""


def begin(conn: sqlite3.Connection, folder: str, file: str) -> tuple[int, IO[bytes]]:
    """A new job for a file of that name, and its lock. To be closed when the work is over."""
    import fcntl  # not on Windows; neither is offload

    os.makedirs(folder, mode=0o700, exist_ok=True)
    # In a transaction: no other sees the job without its lock.
    with db.transaction(conn):
        job = conn.execute(
            "INSERT INTO jobs (file, state, began) VALUES (?, 'waiting', ?)",
            (file[:200], time.time()),
        ).lastrowid
        assert job is not None
        conn.execute("DELETE FROM jobs WHERE id <= ?", (job - KEPT,))
        lock = open(_lock(folder, job), "wb")  # noqa: SIM115
        fcntl.flock(lock, fcntl.LOCK_EX)
    return job, lock


def tell(conn: sqlite3.Connection, job: int, step: str, done: int, total: int) -> None:
    """How far it has come. Raises Gone."""
    changed = conn.execute(
        "UPDATE jobs SET state = 'running', step = ?, done = ?, total = ?"
        f" WHERE id = ? AND {ACTIVE}",
        (step, done, total, job),
    ).rowcount
    if not changed:
        raise Gone


def end(
    conn: sqlite3.Connection,
    job: int,
    state: str,
    message: str,
    problems: Sequence[Problem] = (),
    count: int = 0,
) -> None:
    """It is over; the first state that it ends in stays. Raises Gone."""
    changed = conn.execute(
        "UPDATE jobs SET state = ?, message = ?, problems = ?, problem_count = ?, ended = ?"
        f" WHERE id = ? AND {ACTIVE}",
        (state, message, json.dumps(problems), count, time.time(), job),
    ).rowcount
    if not changed:
        raise Gone


def get(conn: sqlite3.Connection, folder: str, job: int) -> Job | None:
    """How it stands with a job."""
    found = _select(conn, "WHERE id = ?", min(job, db.LARGEST_ID))
    if found and not found[0].over and not _is_locked(folder, job):
        try:
            end(conn, job, "interrupted", INTERRUPTED)
        except Gone:  # it came to its end between our two looks
            pass
        found = _select(conn, "WHERE id = ?", job)
    return found[0] if found else None


def latest(conn: sqlite3.Connection, folder: str, count: int) -> list[Job]:
    """The jobs begun last."""
    found = _select(conn, "ORDER BY id DESC LIMIT ?", count)
    jobs = (job if job.over else get(conn, folder, job.id) for job in found)
    return [job for job in jobs if job is not None]


def _select(conn: sqlite3.Connection, which: str, value: int) -> list[Job]:
    jobs = (Job(*row) for row in conn.execute(f"SELECT {COLUMNS} FROM jobs {which}", (value,)))
    return [
        job._replace(problems=[Problem(*problem) for problem in json.loads(str(job.problems))])
        for job in jobs
    ]


def _lock(folder: str, job: int) -> str:
    return os.path.join(folder, f"{job}.lock")


def release(folder: str, job: int, lock: IO[bytes]) -> None:
    """Give up a job's lock."""
    lock.close()
    try:
        os.unlink(_lock(folder, job))
    except FileNotFoundError:
        pass


def _is_locked(folder: str, job: int) -> bool:
    """Whether somebody is at it. A lock that was left behind is removed."""
    import fcntl

    try:
        with open(_lock(folder, job), "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: we may be two who look
            release(folder, job, lock)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False
