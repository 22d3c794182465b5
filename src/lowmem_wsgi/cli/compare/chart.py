"""The report as one HTML file: the table, and memory over time as a drawing. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from pathlib import Path

from ...settings import MB, format_size
from ..html_page import filled
from .figures import Round, thinned, typical
from .report import (
    NAMES,
    NOISE,
    POINTS,
    WHAT,
    Cell,
    Report,
    Row,
    conditions,
    headline,
    table,
    troubles,
)

_FILE = Path(__file__).with_name("report.html")


def page(report: Report) -> bytes:
    """Return the page in UTF-8. The page needs no other file, no network and no script."""
    return filled(
        _FILE,
        {
            "title": escape(report.app),
            "headline": escape(headline(report)),
            "conditions": "".join(f"<p>{escape(line)}</p>" for line in conditions(report)),
            "heads": "".join(f"<th scope=col>{escape(name)}</th>" for name in NAMES),
            "rows": "".join(map(_row, table(report))),
            "troubles": "".join(_troubles(report)),
            "names": "".join(_names()),
            "chart": _chart(report),
            "requests": "".join(f"<li><code>{escape(path)}</code></li>" for path in report.paths),
            "count": str(len(report.paths)),
        },
    )


def _row(row: Row) -> str:
    cells = "".join(map(_cell, row.cells))
    promised = f"<small>promised: {escape(row.promised)}</small>" if row.promised else ""
    return f"<tr><th scope=row>{escape(row.title)}{promised}</th>{cells}</tr>"


def _cell(cell: Cell) -> str:
    kind = " class=noise" if cell.beside == NOISE else ""
    beside = f"<small{kind}>{escape(cell.beside)}</small>" if cell.beside else ""
    return f"<td>{escape(cell.shown)}{beside}</td>"


def _troubles(report: Report) -> Iterator[str]:
    for name in NAMES:
        for words in troubles(report.rounds[name]):
            yield f"<p class=trouble>{escape(name)}: {escape(words)}</p>"


def _names() -> Iterator[str]:
    for number, name in enumerate(NAMES):
        yield (
            f'<li><svg viewBox="0 0 28 8" aria-hidden=true><path class="line c{number}" '
            f'd="M1 4H27"/></svg><span><b>{escape(name)}</b> {escape(WHAT[name])}</span></li>'
        )


# --- Memory over time


def _chart(report: Report) -> str:
    drawn = {name: typical(report.rounds[name]) for name in NAMES}
    found = {name: each for name, each in drawn.items() if each is not None}
    if not found:
        return "<p>No server has run.</p>"
    return "".join(_drawing(report, found))


def _drawing(report: Report, found: dict[str, Round]) -> Iterator[str]:
    moments = [moment for each in found.values() for moment, _ in each.readings]
    left, right = min(moments), max(moments)
    highest = max(each.peak or 0 for each in found.values())
    limit = report.limit if report.cgroup and report.limit < 2 * highest else 0
    step = nice(max(highest, limit) / MB / 4)
    top = step * MB * (math.floor(max(highest, limit) / MB / step) + 1)

    def x(moment: float) -> float:
        return 1000 * (moment - left) / (right - left or 1)

    def y(used: float) -> float:
        return 1000 * (1 - used / top)

    yield '<div class=plot><svg viewBox="0 0 1000 1000" preserveAspectRatio=none role=img '
    yield f'aria-label="{escape(_in_words(found))}">'
    marks = range(0, round(top / MB) + 1, step)
    for mark in marks:
        yield f'<path class=grid d="M0 {y(mark * MB):.1f}H1000"/>'
    if limit:
        yield f'<path class=limit d="M0 {y(limit):.1f}H1000"/>'
    for name, each in found.items():
        for kind, points in _parts(each):
            line = "L".join(f"{x(moment):.1f} {y(used):.1f}" for moment, used in points)
            yield f'<path class="{kind} c{NAMES.index(name)}" d="M{line}"/>'
    yield "</svg>"
    for mark in marks:
        yield f'<span class=y style="top:{y(mark * MB) / 10:.2f}%">{mark}</span>'
    if limit:
        yield f'<span class=at style="top:{y(limit) / 10:.2f}%">limit {format_size(limit)}</span>'
    every = nice((right - left) / 5)
    for second in range(math.ceil(left / every) * every, math.floor(right) + 1, every):
        yield f'<span class=x style="left:{x(second) / 10:.2f}%">{second} s</span>'
    yield "</div>"


def _parts(drawn: Round) -> Iterator[tuple[str, list[tuple[float, int]]]]:
    """Yield the line's parts with their class: before, during and after the requests."""
    points = thinned(drawn.readings, POINTS)
    before = sum(moment < 0 for moment, _ in points)
    during = sum(moment <= drawn.seconds for moment, _ in points)
    # Each part begins where the last one ends.
    ends = (0, before, during, len(points))
    for kind, begin, end in zip(("line rest", "line", "line rest"), ends, ends[1:], strict=False):
        part = points[max(0, begin - 1) : end]
        if len(part) > 1:
            yield kind, part


def _in_words(found: dict[str, Round]) -> str:
    each = (f"{name} {(drawn.peak or 0) / MB:.0f} MB" for name, drawn in found.items())
    return "Memory over time; the most: " + ", ".join(each)


def nice(least: float) -> int:
    """Return the first of 1, 2, 5, 10, 20, 50 … that is not below `least`."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power >= least:
                return factor * power
        power *= 10
