"""What `lowmem-wsgi imports` has measured: as one document, and as text. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ...settings import MB, format_size
from .tree import Node, as_json, rows
from .trials import NOISE, Found, Trial, Tried, names_of, sentences

BOLD, DIM = "1", "2"
# The part of a path that says nothing: up to the folder of packages, or of the standard library.
PREFIX = re.compile(r".*/(?:site-packages|dist-packages|lib/python3\.\d+t?)/")


class Report(NamedTuple):
    app: str
    python: str  # its version
    modules: Node
    packages: Node
    least: int  # bytes
    found: Found | None  # None: nothing was tried
    folder: str  # the app's

    def place(self, where: str) -> str:
        """Return file and line, shortened."""
        if where.startswith(self.folder + "/") and "/site-packages/" not in where:
            return where.removeprefix(self.folder + "/")
        return PREFIX.sub("", where)


def document(report: Report) -> dict[str, Any]:
    """Return all of the report as plain values, for JSON."""
    found = report.found
    return {
        "app": report.app,
        "python": report.python,
        "bytes": report.modules.bytes,
        "resident_bytes": report.modules.resident,
        "seconds": round(report.modules.seconds, 6),
        "packages": as_json(report.packages),
        "modules": as_json(report.modules),
        "tried": None if found is None else [_tried(each, report) for each in found.tried],
        "together": None
        if found is None or found.together is None
        else {"late": found.late, "saved_bytes": found.together.saved},
        "command": _command(report) or None,
    }


def _tried(each: Tried, report: Report) -> dict[str, Any]:
    return {
        "package": each.candidate.name,
        "bytes": each.candidate.bytes,
        "imported_at": each.candidate.where or None,
        "late": _trial(each.late),
        "left_out": _trial(each.without),
        "in_functions": None if each.moved is None else _trial(each.moved),
        "says": list(sentences(each, format_size, report.place)),
    }


def _trial(trial: Trial) -> dict[str, Any] | None:
    if trial.refused:
        return None
    failure = trial.failure
    return {
        "app_loads": failure is None,
        "saved_bytes": None if failure else trial.saved,
        "loaded_by": trial.at or None,
        "error": failure.message if failure else None,
        "error_at": (failure.at or None) if failure else None,
    }


def text(report: Report, colour: bool) -> str:
    """Return the report for a terminal."""

    def paint(words: str, code: str) -> str:
        return f"\x1b[{code}m{words}\x1b[0m" if colour and words.strip() else words

    return "\n".join(_text(report, paint))


def _text(report: Report, paint: Callable[[str, str], str]) -> Iterator[str]:
    root = report.packages
    yield paint(headline(report), BOLD)
    yield ""
    yield paint(f"{'memory':>10}{'own':>10}{'files':>10}{'time':>9}  import", DIM)
    for row in rows(root, report.least):
        own = size(row.node.own_bytes) if row.node is not None and row.node.children else ""
        where = row.node.where if row.node is not None else ""
        shown = report.place(where) if where.startswith(report.folder + "/") else ""
        figures = f"{size(row.bytes):>10}{own:>10}{size(row.resident - row.bytes):>10}"
        large = row.bytes >= root.bytes / 10
        yield (
            paint(figures, BOLD if large else "")
            + f"{row.seconds:>7.2f} s  "
            + paint(row.branch, DIM)
            + paint(row.name, BOLD if large else "")
            + ("  " + paint(shown, DIM) if "/site-packages/" not in where and shown else "")
        )
    if report.found is not None:
        yield from _savings(report, report.found, paint)


def headline(report: Report) -> str:
    root = report.packages
    return (
        f"{report.app} on Python {report.python}: {size(root.bytes)}, and "
        f"{size(root.resident - root.bytes)} of files' pages; imported in {root.seconds:.2f} s"
    )


def size(number: int) -> str:
    """Return bytes in MB, so that the figures of a column compare at a glance."""
    return f"{max(0, number) / MB:.1f} MB"


def _savings(report: Report, found: Found, paint: Callable[[str, str], str]) -> Iterator[str]:
    yield ""
    if not found.tried:
        yield f"No package of {format_size(report.least)} or more could be late or left out."
        return
    yield paint("What could be late or left out, each tried in a process of its own:", BOLD)
    width = max(len(each.candidate.name) for each in found.tried)
    for each in found.tried:
        first = f"  {each.candidate.name:{width}}{size(each.candidate.bytes):>10}  "
        for sentence in sentences(each, size, report.place):
            yield paint(first, BOLD) + sentence
            first = " " * len(first)
    if found.together is not None:
        saved = found.together.saved
        much = (
            f"saves {size(saved)} ({', '.join(found.late)})" if saved > NOISE else "saves nothing"
        )
        yield f"All late at once: {much}"
    command = _command(report)
    if command:
        yield f"To do so:  {paint(command, BOLD)}"


def _command(report: Report) -> str:
    """Return the command that imports late what can be late; "" if nothing can."""
    if report.found is None or not report.found.late:
        return ""
    names = names_of(report.found.late)
    app = report.app if re.fullmatch(r"[\w.:]+", report.app) else f'"{report.app}"'
    return f"LOWMEM_LAZY_HEAVY=on LOWMEM_HEAVY_MODULES={names} lowmem-wsgi run {app}"
