"""A trace as text. Pure."""

from __future__ import annotations

import re
from typing import Any

from ...settings import format_size

BOLD, DIM = "1", "2"
# A line that keeps less than this share of the first is left to --json.
SMALL = 0.02
# The part of a path that says nothing: up to the folder of packages, or of the standard library.
PREFIX = re.compile(r".*/(?:site-packages|dist-packages|lib/python3\.\d+t?)/")


def text(trace: dict[str, Any], coloured: bool) -> str:
    """Return the report: the lines that grew, each with its stack, and what tracing took."""

    def paint(words: str, kind: str) -> str:
        return f"\x1b[{kind}m{words}\x1b[0m" if coloured else words

    rows: list[str] = []
    if trace.get("measured"):
        rows += [f"{trace['route']}, worker {trace['pid']}: {summary(trace)}", ""]
        large = worth_showing(trace["lines"])
        for line in large:
            size = format_size(line["bytes_per_request"])
            rows.append(f"{paint(f'{size:>9}', BOLD)} a request  {place(line)}  {line['code']}")
            rows.append(f"{'':9} {paint(detail(line, trace['windows']), DIM)}")
            rows += [f"{'':9} {paint(words, DIM)}" for words in stack(line)]
        if len(large) < len(trace["lines"]):
            rows.append(f"{'':9} {len(trace['lines']) - len(large)} more keep less: see --json")
        if not trace["lines"]:
            rows.append("No line has kept anything.")
        rows.append("")
    if "cost" in trace:
        rows.append(cost(trace))
    return "\n".join(rows)


def summary(trace: dict[str, Any]) -> str:
    count = trace["measured"]
    said = f"what {count} {'request' if count == 1 else 'requests'} left behind, by line"
    if not trace["paired"]:
        said += " (each weighed by itself: a value that replaces an older one shows as well)"
    return said


def detail(line: dict[str, Any], windows: int) -> str:
    kinds = ", ".join(f"{row['objects']} {row['type']}" for row in line["types"])
    said = (
        f"{format_size(line['grown_bytes'])} in {line['blocks']} blocks, in {line['windows']} of "
    )
    said += f"{windows} looks"
    return f"{said}; now there: {kinds}" if kinds else said


def worth_showing(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines that keep at least SMALL of what the first keeps."""
    return [line for line in lines if line["grown_bytes"] >= SMALL * lines[0]["grown_bytes"]]


def stack(line: dict[str, Any]) -> list[str]:
    """Return what the line called, and what called it, the nearest first: a row each, or none."""
    places = [place(row) for row in line["stack"]]
    own = places.index(place(line)) if place(line) in places else 0
    rows = [f"made in {' < '.join(places[:own])}"] if own else []
    return rows + ([f"called at {' < '.join(places[own + 1 :])}"] if places[own + 1 :] else [])


def place(row: dict[str, Any]) -> str:
    return f"{shortened(row['file'])}:{row['line']}"


def shortened(file: str) -> str:
    """Return a path without the part that says nothing."""
    return PREFIX.sub("", file)


def cost(trace: dict[str, Any]) -> str:
    """Return what tracing took: time, and bytes."""
    found = trace["cost"]
    said = (
        f"Tracing was on for {found['on_seconds']:.1f} of {found['seconds']:.0f} s, in one worker"
    )
    if found["request_seconds"] is not None:
        said += f". A request took {_ms(found['request_seconds'])} with it"
        if found["untraced_request_seconds"] is not None:
            said += f", and {_ms(found['untraced_request_seconds'])} without"
    return f"{said}. It took {format_size(found['most_bytes'])}, all given back."


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
