"""A CSV file into the client list: row by row, all of it or nothing."""

import csv
import io
import sqlite3
from collections.abc import Iterator
from typing import IO, NamedTuple, cast

from werkzeug.datastructures import FileStorage

import db
from forms import Client, clean_client, wrong_header


class Problem(NamedTuple):
    line: int
    reason: str


class ImportRefused(Exception):
    """Nothing was imported: the first problems, and how many there are in all."""

    def __init__(self, problems: list[Problem], count: int) -> None:
        super().__init__(f"{count} problems in the file")
        self.problems = problems
        self.count = count


def import_clients(
    conn: sqlite3.Connection, upload: FileStorage, batch_size: int, most_problems: int
) -> int:
    """Insert the clients of a CSV file; returns how many, or raises ImportRefused.

    Memory holds one batch and the first problems, however long the file is.
    """
    imported = 0
    batch: list[Client] = []
    problems: list[Problem] = []
    problem_count = 0

    # One transaction for the file: after a refusal it can be put right and sent again whole,
    # and nobody has to find out which half of it is in.
    with db.transaction(conn):
        for line, found in _read(upload):
            if isinstance(found, str):
                reason = found
            elif _is_known(conn, batch, found):
                reason = f"Email “{found.email}”: in the list already, or earlier in this file."
            else:
                batch.append(found)
                if len(batch) >= batch_size:
                    imported += _insert(conn, batch)
                continue
            problem_count += 1
            if len(problems) < most_problems:
                problems.append(Problem(line, reason))
        imported += _insert(conn, batch)
        if problem_count:
            raise ImportRefused(problems, problem_count)
    return imported


def _insert(conn: sqlite3.Connection, batch: list[Client]) -> int:
    count = len(batch)
    db.insert_clients(conn, batch)
    batch.clear()
    return count


def _is_known(conn: sqlite3.Connection, batch: list[Client], client: Client) -> bool:
    # Earlier batches of this file are in the table already, for this transaction to see.
    return any(client.email == other.email for other in batch) or db.email_taken(conn, client.email)


def _read(upload: FileStorage) -> Iterator[tuple[int, Client | str]]:
    """The line of each row, with its client or with what is wrong."""
    # utf-8-sig: what Excel saves as "CSV UTF-8" begins with a byte order mark.
    # The FileStorage, not its stream: before Python 3.11 that may lack what a wrapper needs.
    text = io.TextIOWrapper(cast(IO[bytes], upload), encoding="utf-8-sig", newline="")
    reader = csv.reader(text, strict=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if wrong := wrong_header(header, "a CSV file of clients"):
            yield 1, wrong
            return
        empty = True
        while True:
            line = reader.line_num + 1  # a row ends lines later where a cell has line breaks
            row = next(reader, None)
            if row is None:
                break
            if row:  # not a blank line
                empty = False
                yield line, _client(header, row)
        if empty:
            yield line, "There are no rows below the header."
    except UnicodeDecodeError as error:
        # The decoder is a block ahead of the reader: count the lines up to the byte itself.
        ahead = len(error.object[: error.start + 1].splitlines())
        yield (
            reader.line_num + ahead,
            "Not UTF-8 text. In a spreadsheet, save the file as “CSV UTF-8”.",
        )
    except csv.Error as error:
        yield reader.line_num, f"Not well-formed CSV ({error}), so reading stopped here."
    finally:
        text.detach()  # the upload is not the wrapper's to close


def _client(header: list[str], row: list[str]) -> Client | str:
    if len(row) != len(header):
        return f"{len(header)} cells expected, {len(row)} found."
    values = dict(zip(header, row, strict=True))
    client, errors = clean_client(values)
    if errors:
        return " ".join(_reason(column, values[column], errors[column]) for column in errors)
    return client


def _reason(column: str, value: str, message: str) -> str:
    quoted = f" “{value[:40]}”" if value else ""
    return f"{column.capitalize()}{quoted}: {message}"
