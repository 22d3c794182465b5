"""The clients in SQLite: a pool of connections, the schema, the queries."""

import math
import os
import sqlite3
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import repeat
from queue import Empty, LifoQueue
from typing import Generic, TypeVar

from forms import COLUMNS, Client

# What each version of the database adds to the one before it.
VERSIONS = (
    (
        """
        CREATE TABLE clients (
            id INTEGER PRIMARY KEY,
            name TEXT NOT NULL,
            email TEXT NOT NULL UNIQUE,
            city TEXT NOT NULL,
            phone TEXT NOT NULL,
            folded TEXT NOT NULL -- name, email and city as a search compares them
        )
        """,
        "CREATE INDEX clients_by_folded ON clients (folded)",
    ),
    (
        # The day; it is not known of clients from before this version.
        "ALTER TABLE clients ADD COLUMN added TEXT",
        """
        CREATE TABLE jobs ( -- see jobs.py
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            file TEXT NOT NULL,
            state TEXT NOT NULL,
            step TEXT NOT NULL DEFAULT '',
            done INTEGER NOT NULL DEFAULT 0,
            total INTEGER NOT NULL DEFAULT 0,
            message TEXT NOT NULL DEFAULT '',
            problems TEXT NOT NULL DEFAULT '[]',
            problem_count INTEGER NOT NULL DEFAULT 0,
            began REAL NOT NULL,
            ended REAL
        )
        """,
    ),
)
INSERT = """
    INSERT INTO clients (name, email, city, phone, folded, added)
    VALUES (?, ?, ?, ?, ?, date('now', ?))
"""
TODAY = "0 days"
LARGEST_ID = 2**63 - 1

# How long to wait for a connection of the pool, or for another process's write: well under
# the ten seconds after which Gunicorn takes a worker for dead.
PATIENCE = 4.0


class PoolBusy(Exception):
    """No connection came free in time."""


class Pool:
    """At most `size` open connections, opened when first needed and then kept."""

    def __init__(self, path: str, size: int) -> None:
        self._path = path
        # Last in, first out: the connection with the warm page cache is used first, and one
        # that was never needed (None) is never opened.
        self._free: LifoQueue[sqlite3.Connection | None] = LifoQueue()
        for _ in range(size):
            self._free.put(None)

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection for the length of a `with` block. Do not nest: a pool may be of one."""
        try:
            conn = self._free.get(timeout=PATIENCE)
        except Empty:
            raise PoolBusy from None
        try:
            if conn is None:
                conn = connect(self._path)
            yield conn
        finally:
            self._free.put(conn)


_pools: dict[tuple[int, str, int], Pool] = {}
_pools_lock = threading.Lock()


def pool(path: str, size: int) -> Pool:
    """This process's pool; the first call of a process also makes the database if need be."""
    # SQLite connections must not cross a fork, not even to be closed. Keyed by process, those
    # of the parent stay in the dictionary, untouched.
    key = (os.getpid(), path, size)
    with _pools_lock:
        if key not in _pools:
            _prepare(path)
            _pools[key] = Pool(path, size)
        return _pools[key]


def connect(path: str, patience: float = PATIENCE) -> sqlite3.Connection:
    """A connection of one's own. `patience`: seconds to wait for another process's write."""
    # isolation_level None: transactions begin where transaction() says, nowhere else.
    # check_same_thread False: a connection serves one thread at a time, but not always the same.
    conn = sqlite3.connect(path, timeout=patience, isolation_level=None, check_same_thread=False)
    conn.row_factory = sqlite3.Row
    conn.execute("PRAGMA cache_size = -512")  # KB of page cache; SQLite's own default is 2 MB
    return conn


@contextmanager
def transaction(conn: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """All of the block's writes, or none of them."""
    # IMMEDIATE takes the write lock at once, so what is read here still holds at the commit.
    conn.execute(f"BEGIN {kind}")
    try:
        yield
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise


def _prepare(path: str) -> None:
    """Make the schema and the first clients, or bring an older database up to date, unless
    another process did or is doing it."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with closing(connect(path)) as conn:
        if _version(conn) == len(VERSIONS):
            return
        with transaction(conn):
            version = _version(conn)  # another process may have had the lock before us
            for statements in VERSIONS[version:]:
                for statement in statements:
                    conn.execute(statement)
            if version == 0:
                from seed import days_ago, made_up_clients  # once in the life of a database

                insert_clients(conn, made_up_clients(), (f"-{days} days" for days in days_ago()))
            conn.execute(f"PRAGMA user_version = {len(VERSIONS)}")


def _version(conn: sqlite3.Connection) -> int:
    found: int = conn.execute("PRAGMA user_version").fetchone()[0]
    return found


def fold(text: str) -> str:
    """Text without accents and capitals, so that "muller" finds "Müller"."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(char for char in decomposed if not unicodedata.combining(char)).casefold()


def folded(client: Client) -> str:
    """What a search looks through."""
    # A line each: no search term can match across two fields.
    return fold(f"{client.name}\n{client.email}\n{client.city}")


def insert_clients(
    conn: sqlite3.Connection, clients: Iterable[Client], added: Iterable[str] = repeat(TODAY)
) -> None:
    """Insert clients as they come; IntegrityError where an address is in the list already.

    `added`: for each the day it was added, as SQLite counts from today ("-3 days").
    """
    rows = zip(clients, added, strict=False)
    conn.executemany(INSERT, ((*client, folded(client), day) for client, day in rows))


def insert_client(conn: sqlite3.Connection, client: Client) -> int | None:
    """Insert one client and return its id; IntegrityError as above."""
    return conn.execute(INSERT, (*client, folded(client), TODAY)).lastrowid


def update_client(conn: sqlite3.Connection, client_id: int, client: Client) -> None:
    """Replace one client; IntegrityError where another one has the address."""
    conn.execute(
        "UPDATE clients SET name = ?, email = ?, city = ?, phone = ?, folded = ? WHERE id = ?",
        (*client, folded(client), client_id),
    )


def email_taken(conn: sqlite3.Connection, email: str) -> bool:
    """Whether a client has this address."""
    return bool(conn.execute("SELECT 1 FROM clients WHERE email = ?", (email,)).fetchone())


def get_client(conn: sqlite3.Connection, client_id: int) -> sqlite3.Row | None:
    """One client by id."""
    if client_id > LARGEST_ID:  # sqlite3 would raise OverflowError
        return None
    found: sqlite3.Row | None = conn.execute(
        "SELECT id, name, email, city, phone FROM clients WHERE id = ?", (client_id,)
    ).fetchone()
    return found


def newest_clients(conn: sqlite3.Connection, count: int) -> list[sqlite3.Row]:
    """The clients added last."""
    return conn.execute(
        "SELECT id, name, email, city, phone FROM clients ORDER BY id DESC LIMIT ?", (count,)
    ).fetchall()


def _where(search: str) -> tuple[str, list[str]]:
    # Each word must be found. instr(), not LIKE: nothing to escape.
    words = fold(search).split()
    return " AND ".join(["instr(folded, ?)"] * len(words)) or "1", words


def count_matches(conn: sqlite3.Connection, search: str) -> int:
    """How many clients a search finds."""
    where, words = _where(search)
    found: int = conn.execute(f"SELECT count(*) FROM clients WHERE {where}", words).fetchone()[0]
    return found


def list_clients(
    conn: sqlite3.Connection, search: str, count: int, offset: int
) -> list[sqlite3.Row]:
    """One page of the clients that a search finds, by name."""
    where, words = _where(search)
    return conn.execute(
        f"SELECT id, name, email, city, phone FROM clients WHERE {where}"
        " ORDER BY folded, id LIMIT ? OFFSET ?",
        (*words, count, offset),
    ).fetchall()


def clients_after(conn: sqlite3.Connection, client_id: int, count: int) -> list[sqlite3.Row]:
    """The next clients by id: how an export goes on after giving its connection back."""
    return conn.execute(
        f"SELECT id, {', '.join(COLUMNS)} FROM clients WHERE id > ? ORDER BY id LIMIT ?",
        (client_id, count),
    ).fetchall()


def clients_by_month(conn: sqlite3.Connection) -> dict[str, int]:
    """How many clients were added in each of the last twelve months, "2026-01" for January."""
    found = dict(
        conn.execute(
            "SELECT substr(added, 1, 7) AS month, count(*) FROM clients"
            " WHERE added >= date('now', 'start of month', '-11 months') GROUP BY month"
        ).fetchall()
    )
    today = time.gmtime()
    last = today.tm_year * 12 + today.tm_mon - 1  # months since the year 0
    months = (f"{month // 12}-{month % 12 + 1:02}" for month in range(last - 11, last + 1))
    return {month: found.get(month, 0) for month in months}


T = TypeVar("T")


class Counted(Generic[T]):
    """What a query counts, asked for at most every `timeout` seconds in a process."""

    def __init__(self, count: Callable[[sqlite3.Connection], T]) -> None:
        self._count = count
        self._writes = 0
        self._known: tuple[T | None, float] = (None, -math.inf)

    def get(self, conn: sqlite3.Connection, timeout: float) -> T:
        found, counted_at = self._known
        now = time.monotonic()
        if found is None or now - counted_at >= timeout:
            writes = self._writes
            found = self._count(conn)
            if writes == self._writes:  # else a write overtook the counting
                self._known = (found, now)
        return found

    def drop(self) -> None:
        self._writes += 1
        self._known = (None, -math.inf)


client_count = Counted(lambda conn: count_matches(conn, ""))
by_month = Counted(clients_by_month)


def drop_counts() -> None:
    """Count again next time: to be called after each write."""
    client_count.drop()
    by_month.drop()
