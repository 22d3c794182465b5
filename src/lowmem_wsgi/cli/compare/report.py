"""What `lowmem-wsgi compare` has measured: as a table for people, and for programs. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..._version import __version__
from ...settings import MB, format_size
from .contenders import BARE, CONTENDERS, DOCUMENT, OURS
from .figures import FIGURES, Difference, Figure, Round, Value, difference, thinned, typical, value
from .load import CLIENTS

BOLD, DIM = "1", "2"
NOISE = "noise"
# Points of a line over time in the document.
POINTS = 240
WHAT = {
    BARE: "Gunicorn and no more; one worker, three threads",
    OURS: "the same, started by lowmem-wsgi run",
    DOCUMENT: "the source document's advice to the letter (docs/source-document.md)",
}


class Report(NamedTuple):
    """`rounds`: of each contender, by its name."""

    app: str
    python: str  # its version
    limit: int  # bytes
    cgroup: bool  # whether each server had a memory cgroup of that limit
    paths: tuple[str, ...]
    source: str  # where the paths come from
    notes: tuple[str, ...]
    seconds: float  # of requests in each round
    rounds: Mapping[str, Sequence[Round]]

    @property
    def many(self) -> int:
        return max(len(rounds) for rounds in self.rounds.values())

    def value(self, figure: Figure, name: str) -> Value:
        return value(figure, self.rounds[name])

    def difference(self, figure: Figure, name: str) -> Difference | None:
        """Return how a contender differs from the bare app; None for the bare app itself."""
        if name == BARE:
            return None
        return difference(self.value(figure, name), self.value(figure, BARE))


NAMES = tuple(each.name for each in CONTENDERS)


def text(report: Report, colour: bool) -> str:
    """Return the report for a terminal."""

    def paint(words: str, code: str) -> str:
        return f"\x1b[{code}m{words}\x1b[0m" if colour and words.strip() else words

    return "\n".join(_text(report, paint))


def _text(report: Report, paint: Callable[[str, str], str]) -> Iterator[str]:
    yield paint(headline(report), BOLD)
    yield from conditions(report)
    yield ""
    rows = list(table(report))
    heads = ["", *NAMES, "promised"]
    cells = [
        [row.title, row.cells[0].shown, *map(_beside, row.cells[1:]), row.promised] for row in rows
    ]
    widths = [max(len(line[column]) for line in [heads, *cells]) for column in range(len(heads))]
    yield paint(_line(heads, widths), DIM)
    for each in cells:
        yield _line(each, widths)
    yield ""
    yield from explained(report)


def _beside(cell: Cell) -> str:
    return f"{cell.shown}  {cell.beside:>6}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = cells
    padded = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
    return f"  {first:{widths[0]}}  {'   '.join(padded)}".rstrip()


class Cell(NamedTuple):
    """A figure as it is shown, and how the figure differs from the bare app's."""

    shown: str
    beside: str = ""


class Row(NamedTuple):
    title: str
    cells: tuple[Cell, ...]  # as NAMES
    promised: str = ""


def table(report: Report) -> Iterator[Row]:
    """Yield the rows of the table."""
    for figure in FIGURES:
        yield Row(
            figure.title,
            tuple(
                Cell(
                    in_unit(report.value(figure, name).median, figure.unit),
                    beside(report.difference(figure, name)),
                )
                for name in NAMES
            ),
            figure.promised,
        )
    yield Row("failed", tuple(Cell(_failed(report.rounds[name])) for name in NAMES))
    if any(each.kills for rounds in report.rounds.values() for each in rounds):
        kills = (sum(each.kills for each in report.rounds[name]) for name in NAMES)
        yield Row("OOM kills", tuple(Cell(str(number)) for number in kills))


def in_unit(number: float | None, unit: str) -> str:
    """Return a figure in the unit of its column."""
    if number is None:
        return "–"
    if unit == "bytes":
        return f"{number / MB:.1f} MB"
    if unit == "rate":
        return f"{number:.0f}" if number >= 100 else f"{number:.1f}"
    if number < 1:
        return f"{number * 1000:.0f} ms" if number >= 0.1 else f"{number * 1000:.1f} ms"
    return f"{number:.1f} s"


def beside(found: Difference | None) -> str:
    """Return a difference in words: noise, a percentage, a multiple or a fraction."""
    if found is None or found.ratio is None:
        return ""
    if found.noise:
        return NOISE
    if found.ratio >= 2:
        return f"{found.ratio:.0f} ×" if found.ratio >= 10 else f"{found.ratio:.1f} ×"
    if found.ratio <= 0.1:
        return f"1/{1 / found.ratio:.0f}" if found.ratio else "none"
    percent = round(100 * (found.ratio - 1))
    return f"{percent:+d} %".replace("-", "−") if percent else "±0 %"


def _failed(rounds: Sequence[Round]) -> str:
    asked, failed = (sum(each.asked for each in rounds), sum(each.failed for each in rounds))
    if not asked:
        return "–"
    return f"{failed} of {asked}"


def headline(report: Report) -> str:
    room = (
        f"in a memory cgroup of {format_size(report.limit)} each"
        if report.cgroup
        else "as plain processes"
    )
    return f"{report.app} on Python {report.python}, served three ways {room}"


def conditions(report: Report) -> Iterator[str]:
    """Yield how it was measured, a line each."""
    pages = "1 request" if len(report.paths) == 1 else f"{len(report.paths)} requests"
    yield (
        f"{report.many} rounds in turn, each {report.seconds:g} s with {CLIENTS} clients; "
        f"{pages} {report.source}"
    )
    if not report.cgroup:
        yield (
            "No memory cgroup was made: no limit holds, and memory is the sum of all processes' "
            f"(PSS). LowMemory takes {format_size(report.limit)} for the limit."
        )
    yield from report.notes


def explained(report: Report) -> Iterator[str]:
    """Yield what the columns are, and what else there is to say, a line each."""
    width = max(map(len, NAMES))
    for name in NAMES:
        yield f"{name:{width}}  {WHAT[name]}"
    yield f"{NOISE:{width}}  the rounds of the two overlap: no difference was measured"
    for name in NAMES:
        yield from (f"{name}: {words}" for words in troubles(report.rounds[name]))


def troubles(rounds: Sequence[Round]) -> Iterator[str]:
    """Yield what went wrong with a contender, in words."""
    failures = [each.failure for each in rounds if each.failure]
    if failures:
        yield f"does not start ({len(failures)} of {len(rounds)} rounds): {failures[-1]}"
    died = sum(each.died for each in rounds)
    if died:
        yield f"the server has ended in {died} of {len(rounds)} rounds"


def document(report: Report) -> dict[str, Any]:
    """Return all of the report as plain values, for JSON. docs/compare.md lists the keys."""
    return {
        "lowmem_wsgi": __version__,
        "app": report.app,
        "python": report.python,
        "limit_bytes": report.limit,
        "measured_in": "cgroup" if report.cgroup else "processes",
        "rounds": report.many,
        "seconds": report.seconds,
        "clients": CLIENTS,
        "requests": list(report.paths),
        "notes": list(report.notes),
        "contenders": {name: _contender(report, name) for name in NAMES},
    }


# The figures by their keys in the document.
_KEYS = {
    **{key: f"{key}_bytes" for key in ("initial", "idle", "peak")},
    **{key: f"{key}_seconds" for key in ("p50", "p99", "first")},
    "rate": "requests_per_second",
}


def _contender(report: Report, name: str) -> dict[str, Any]:
    rounds = report.rounds[name]
    drawn = typical(rounds)
    return {
        **{_KEYS[figure.key]: _value(report, figure, name) for figure in FIGURES},
        "requests": sum(each.asked for each in rounds),
        "failed": sum(each.failed for each in rounds),
        "oom_kills": sum(each.kills for each in rounds),
        "troubles": list(troubles(rounds)),
        "memory": [
            {"seconds": round(moment, 3), "bytes": used}
            for moment, used in (thinned(drawn.readings, POINTS) if drawn else ())
        ],
    }


def _value(report: Report, figure: Figure, name: str) -> dict[str, Any]:
    found = report.value(figure, name)
    shown: dict[str, Any] = {"median": _short(found.median), "rounds": [*map(_short, found.rounds)]}
    against = report.difference(figure, name)
    if against is not None:
        shown |= {"to_bare": _short(against.ratio), "noise": against.noise}
    return shown


def _short(number: float | None) -> float | None:
    return round(number, 6) if isinstance(number, float) else number
