"""Excel in and out, each in a child process of its own: the worker never loads what that takes.

The child imports this module, so it keeps clear of Flask, and imports what is heavy where it is
used.
"""

import io
import os
import sqlite3
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING, Any

import db
import jobs
from forms import COLUMNS, Client, clean_client, wrong_header
from jobs import Problem
from lowmem_wsgi import offload

if TYPE_CHECKING:
    import pandas

NEEDED = ("pandas", "openpyxl")
KIND = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"

MEMORY = "160 MB"  # of an import: 50,000 clients take 115 MB, 70 of it pandas itself
MOST_ROWS = 60_000
# A sheet of 50,000 clients unpacks to 12 MB. Far more than that is no list of clients: a few KB
# of zip can be made to unpack to gigabytes.
MOST_UNPACKED = 64 * 1024 * 1024
BATCH = 1000  # rows between two words on how far it has come
TELL_EVERY = 0.3  # s, while the file is read
PATIENCE = 30.0  # s, for the database: the work is done by then, and nobody waits in front of it
CACHE = 32 * 1024  # KB: what 50,000 clients add, so that nothing is written before the commit

STAGE = "INSERT OR IGNORE INTO staged VALUES (?, ?, ?, ?, ?, ?)"


class Refused(Exception):
    """The file as a whole is not what it should be, or not the row that names the columns."""

    def __init__(self, reason: str, row: int = 0) -> None:
        super().__init__(reason)
        self.problem = Problem(row, "", reason)


def installed() -> bool:
    """Whether what this needs is there; nothing is imported."""
    return all(find_spec(name) for name in NEEDED)


@offload(memory=MEMORY, timeout="10m", wait="5m", at_once=1)
def import_clients(path: str, job: int, sheet: IO[bytes], most_problems: int) -> None:
    """Insert the clients of a workbook's first sheet, all of them or none, and tell of it.

    Rows are checked and put aside in a table that only this connection sees. One short transaction
    then takes them over and ends the job: others can write meanwhile, and a job that is not "done"
    has imported nothing, whenever it was interrupted.
    """
    with closing(db.connect(path, PATIENCE)) as conn:
        try:
            frame = read(sheet, lambda done, total: _tell(conn, job, "reading", done, total))
            problems, count = stage(conn, job, frame, most_problems)
            del frame
            store(conn, job, problems, count, most_problems)
        except Refused as refused:
            jobs.end(conn, job, "refused", "", [refused.problem], 1)
        except jobs.Gone:
            pass


def _tell(conn: sqlite3.Connection, job: int, step: str, done: int, total: int) -> None:
    try:
        jobs.tell(conn, job, step, done, total)
    except sqlite3.OperationalError:  # somebody writes, and writes: we can tell of it later
        pass


# --- Reading


def read(sheet: IO[bytes], tell: Callable[[int, int], None]) -> "pandas.DataFrame":
    """The rows of the first sheet with something in them; their index is their number less one.

    Raises Refused.
    """
    size = sheet.seek(0, os.SEEK_END)
    sheet.seek(0)
    tell(0, size)
    _check(sheet)
    import pandas

    try:
        frame = pandas.read_excel(
            Watched(sheet, tell, size),
            engine="openpyxl",
            header=None,
            nrows=MOST_ROWS + 2,
            dtype=object,
            na_filter=False,
        )
    except Exception as error:  # whatever openpyxl stumbles over
        if _ran_out(error):
            raise
        raise Refused(f"Not a workbook that can be read ({type(error).__name__}).") from error
    filled = frame != ""
    frame = frame.loc[filled.any(axis="columns"), filled.any(axis="index")]
    if len(frame) > MOST_ROWS + 1:
        raise Refused(f"More than {MOST_ROWS:,} rows: split the sheet into smaller files.")
    if frame.empty:
        raise Refused(f"The first sheet is empty: its first row must read {', '.join(COLUMNS)}.")
    return frame


def _ran_out(error: BaseException | None) -> bool:
    """Whether it is a MemoryError, or came of one."""
    while error is not None and not isinstance(error, MemoryError):
        error = error.__context__
    return error is not None


class Watched(io.BufferedReader):
    """A file that tells how far into it the reading has come.

    openpyxl goes through a sheet that does not say how large it is twice.
    """

    def __init__(self, file: Any, tell: Callable[[int, int], None], size: int) -> None:
        super().__init__(getattr(file, "raw", file))
        self._report = tell
        self._size = size
        self._told = time.monotonic()

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if time.monotonic() - self._told > TELL_EVERY:
            self._told = time.monotonic()
            self._report(self.tell(), self._size)
        return data


def _check(sheet: IO[bytes]) -> None:
    """Raises Refused where it is no workbook, or too much of one."""
    if sheet.read(4) == b"\xd0\xcf\x11\xe0":
        raise Refused("An old workbook (.xls), or one with a password: save it as .xlsx without.")
    sheet.seek(0)
    try:
        with zipfile.ZipFile(sheet) as parts:
            names = parts.namelist()
            # zipfile itself sees to it that no part unpacks to more than it says.
            unpacked = sum(part.file_size for part in parts.infolist())
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        raise Refused("Not an Excel workbook: it must be an .xlsx file.") from None
    finally:
        sheet.seek(0)
    if "[Content_Types].xml" not in names:
        raise Refused("Not an Excel workbook, but some other zip file.")
    if unpacked > MOST_UNPACKED:
        raise Refused(
            f"It unpacks to {unpacked // 1024**2:,} MB, and may to {MOST_UNPACKED // 1024**2}."
        )


# --- Checking


def stage(
    conn: sqlite3.Connection, job: int, frame: "pandas.DataFrame", most: int
) -> tuple[list[Problem], int]:
    """Check the rows, and put the good ones aside. The first problems, and how many there are.

    Raises Refused where the columns are not those of a client.
    """
    conn.execute(f"PRAGMA cache_size = -{CACHE}")
    conn.execute("PRAGMA temp_store = FILE")
    conn.execute(
        "CREATE TEMP TABLE staged"
        " (row INTEGER PRIMARY KEY, name, email TEXT UNIQUE, city, phone, folded)"
    )
    header = [" ".join(str(name).split()).lower() for name in frame.iloc[0]]
    if wrong := wrong_header(header, "a sheet of clients"):
        raise Refused(wrong, int(frame.index[0]) + 1)
    problems: list[Problem] = []
    count = 0
    total = len(frame) - 1
    if not total:
        raise Refused("There are no rows below the header.")
    for start in range(1, total + 1, BATCH):
        _tell(conn, job, "checking", start - 1, total)
        good = []
        for row, client, wrongs in _checked(header, frame.iloc[start : start + BATCH]):
            if not wrongs:
                good.append((row, *client, db.folded(client)))
            count += len(wrongs)
            problems += wrongs[: most - len(problems)]
        with db.transaction(conn, "DEFERRED"):  # nothing of the list's own is locked by this
            for values in good:
                if not conn.execute(STAGE, values).rowcount:
                    count += 1
                    if len(problems) < most:
                        problems.append(_twice(conn, *values[:3]))
    _tell(conn, job, "checking", total, total)
    return problems, count


def _checked(
    header: list[str], batch: "pandas.DataFrame"
) -> Iterator[tuple[int, Client, list[Problem]]]:
    for index, *cells in batch.itertuples():
        values = dict(zip(header, map(str, cells), strict=True))
        client, errors = clean_client(values)
        row = int(index) + 1
        yield row, client, [_problem(row, name, values[name], errors[name]) for name in errors]


def _problem(row: int, column: str, value: str, message: str) -> Problem:
    quoted = f"“{value[:40]}”: " if value else ""
    return Problem(row, column, quoted + message)


def _twice(conn: sqlite3.Connection, row: int, _: str, email: str) -> Problem:
    (other,) = conn.execute("SELECT row FROM staged WHERE email = ?", (email,)).fetchone()
    return _problem(row, "email", email, f"In row {other} already.")


# --- Storing


def store(
    conn: sqlite3.Connection, job: int, problems: list[Problem], count: int, most: int
) -> None:
    """Take over what was put aside, if nothing is wrong with any of it; and end the job."""
    _tell(conn, job, "storing", 0, 0)
    with db.transaction(conn):
        known = conn.execute(
            "SELECT row, email FROM staged JOIN clients USING (email) ORDER BY row"
        ).fetchall()
        if problems or known:
            problems += [
                _problem(row, "email", email, "In the list already.") for row, email in known
            ]
            jobs.end(conn, job, "refused", "", sorted(problems)[:most], count + len(known))
            return
        number = conn.execute(
            "INSERT INTO clients (name, email, city, phone, folded, added)"
            " SELECT name, email, city, phone, folded, date('now') FROM staged ORDER BY row"
        ).rowcount
        words = "1 client was" if number == 1 else f"{number:,} clients were"
        jobs.end(conn, job, "done", f"{words} imported.")


# --- Out


@offload(memory="96MB", timeout="2m", at_once=1)
def export_clients(path: str, out: IO[bytes]) -> None:
    """Write all clients to a file, as a workbook; a few rows in memory at a time."""
    from openpyxl import Workbook

    book = Workbook(write_only=True)
    sheet = book.create_sheet("Clients")
    for letter, width in zip("ABCD", (28, 40, 20, 20), strict=True):
        sheet.column_dimensions[letter].width = width
    sheet.freeze_panes = "A2"
    sheet.append(COLUMNS)
    last_id = 0
    with closing(db.connect(path, PATIENCE)) as conn:
        # Page by page: a reader that stays keeps writers waiting.
        while rows := db.clients_after(conn, last_id, BATCH):
            for row in rows:
                sheet.append(tuple(row)[1:])
            last_id = rows[-1]["id"]
    book.save(out)
