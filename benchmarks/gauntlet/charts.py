"""SVG charts of a run, in a light and a dark dress. Pure: figures in, text out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from .figures import Table


class Dress(NamedTuple):
    """The colours of a chart."""

    ground: str
    panel: str
    ink: str
    soft: str
    line: str
    ours: str
    peer: str
    bad: str
    scale: tuple[str, ...]  # of failures: from few to all


DRESSES = {
    "light": Dress(
        *("#ffffff", "#f6f5f1", "#1d2320", "#6a706c", "#dcdad2", "#0f766b", "#7d8590", "#c2410c"),
        ("#fde9d3", "#fbc88f", "#f19a4e", "#dd6b20", "#b03a0c"),
    ),
    "dark": Dress(
        *("#0f1417", "#171e22", "#e8ebe9", "#98a29d", "#2c363b", "#3fc1ad", "#8d99a6", "#fb7b3c"),
        ("#3b2718", "#63391a", "#92501c", "#c96a22", "#f58b3d"),
    ),
}
FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
WIDTH = 980
Traces = Mapping[str, Mapping[str, Sequence[float | None]]]  # by contender, by phase


def memory(
    traces: Traces,
    kills: Mapping[str, Mapping[str, int]],
    ours: set[str],
    limit: float,
    dress: Dress,
) -> str:
    """Small multiples: a panel a contender, memory over the phases, which are as wide everywhere.

    `kills`: OOM kills by contender and phase. MB.
    """
    phases = list(dict.fromkeys(phase for found in traces.values() for phase in found))
    columns, gap, left, top = 3, 18, 24, 142
    width, height, label = (WIDTH - 2 * left - 2 * gap) / columns, 112.0, 24
    rows = math.ceil(len(traces) / columns)
    out = [_text(left, 34, "Memory over time", dress.ink, 20, weight=650)]
    words = (
        f"The whole container: a panel is {limit:.0f} MB high. All phases are drawn equally wide."
    )
    out.append(_text(left, 57, words, dress.soft, 13))
    out.append(f'<circle cx="{WIDTH - 192}" cy="52.5" r="8" fill="{dress.bad}"/>')
    out.append(_text(WIDTH - 192, 56.5, "n", dress.ground, 10, anchor="middle", weight=700))
    out.append(_text(WIDTH - 178, 57, "OOM kills in the phase", dress.soft, 13))
    for number, (name, found) in enumerate(traces.items()):
        x = left + number % columns * (width + gap)
        y = top + number // columns * (height + label + gap + 14)
        colour = dress.ours if name in ours else dress.peer
        out.append(_text(x, y + 14, name, colour if name in ours else dress.ink, 13, weight=600))
        y += label
        out.append(_rectangle(x, y, width, height, dress.panel, radius=4))
        part = width / max(1, len(phases))
        edges = (x + at * part for at in range(1, len(phases)))
        out += [_line(edge, y, edge, y + height, dress.line) for edge in edges]
        for mb in (128, 256, 384):
            up = y + height - height * mb / limit
            out.append(_line(x, up, x + width, up, dress.line))
        points = []
        for at, phase in enumerate(phases):
            values = found.get(phase, ())
            for step, used in enumerate(values):
                if used is not None:
                    across = x + part * (at + (step + 0.5) / len(values))
                    points.append((across, y + height - height * min(used, limit) / limit))
        if points:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
            foot = f"{points[-1][0]:.1f},{y + height:.1f} {points[0][0]:.1f},{y + height:.1f}"
            out.append(f'<polygon points="{path} {foot}" fill="{colour}" fill-opacity="0.16"/>')
            out.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"'
                ' stroke-linejoin="round"/>'
            )
        for at, phase in enumerate(phases):
            count = kills.get(name, {}).get(phase, 0)
            if count:
                across = x + part * (at + 0.5)
                out.append(f'<circle cx="{across:.1f}" cy="{y + 9:.1f}" r="8" fill="{dress.bad}"/>')
                out.append(
                    _text(across, y + 13, str(count), dress.ground, 10, anchor="middle", weight=700)
                )
        for at, phase in enumerate(phases):
            if number < columns:  # each part has its name at the head of the column
                across, up = x + part * (at + 0.5) - 2, y - 26
                out.append(_text(across, up, phase, dress.soft, 10, turned=-42))
    tall = top + rows * (height + label + gap + 14) + 8
    return _svg(tall, out, dress, "Memory of each contender over the phases")


def failures(
    table: Mapping[str, Mapping[str, tuple[int, int]]], ours: set[str], dress: Dress
) -> str:
    """A cell a contender and phase: (how many failed or were wrong, of how many)."""
    phases = list(dict.fromkeys(phase for found in table.values() for phase in found))
    left, top, row, names = 24, 110, 26, 250
    part = (WIDTH - 2 * left - names) / max(1, len(phases))
    out = [_text(left, 34, "Failed and wrong answers, by phase", dress.ink, 20, weight=650)]
    words = "The runaways themselves are not counted. The colour tells the share that failed."
    out.append(_text(left, 57, words, dress.soft, 13))
    for at, phase in enumerate(phases):
        across = left + names + part * (at + 0.5)
        out.append(_text(across, top - 12, phase, dress.soft, 12, anchor="middle"))
    for number, (name, found) in enumerate(table.items()):
        y = top + number * row
        colour = dress.ours if name in ours else dress.ink
        weight = 650 if name in ours else 400
        out.append(_text(left, y + 17, name, colour, 13, weight=weight))
        for at, phase in enumerate(phases):
            x = left + names + part * at
            lost, asked = found.get(phase, (0, 0))
            fill, ink = dress.panel, dress.soft
            if lost:
                step = min(len(dress.scale) - 1, int(len(dress.scale) * math.sqrt(lost / asked)))
                fill, ink = dress.scale[step], dress.ink
                if step > 2:
                    ink = dress.ground
            out.append(_rectangle(x + 1.5, y, part - 3, row - 3, fill, radius=3))
            across = x + part / 2
            weight = 650 if lost else 400
            out.append(_text(across, y + 16, str(lost), ink, 12, anchor="middle", weight=weight))
    return _svg(top + len(table) * row + 20, out, dress, "Failed and wrong answers by phase")


def latency(table: Table, ours: set[str], dress: Dress) -> str:
    """A row a contender, on a logarithmic scale: p50, p99 with its spread, p99.9."""
    known = {n: r for n, r in table.items() if not math.isnan(r["p99"].value)}
    known = dict(sorted(known.items(), key=lambda item: item[1]["p99"].value))
    values = [row[key].value for row in known.values() for key in ("p50", "p999")] or [1.0]
    values += [row["p99"].high for row in known.values()]
    low, high = min(values) / 1.3, max(values) * 1.3
    left, top, row, names, right = 24, 110, 26, 250, 90
    wide = WIDTH - 2 * left - names - right

    def across(ms: float) -> float:
        return left + names + wide * math.log(ms / low) / math.log(high / low)

    out = [_text(left, 34, "Latency in the steady phase", dress.ink, 20, weight=650)]
    words = (
        "Milliseconds, logarithmic: ○ p50   ● p99 (bar: its spread)   | p99.9. At the right: p99."
    )
    out.append(_text(left, 57, words, dress.soft, 13))
    tall = top + len(known) * row
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for step in (1, 2, 5):
            if low <= (ms := step * 10.0**power) <= high:
                out.append(_line(across(ms), top - 8, across(ms), tall, dress.line))
                out.append(_text(across(ms), top - 14, f"{ms:g}", dress.soft, 11, anchor="middle"))
    for number, (name, found) in enumerate(known.items()):
        y = top + number * row + 12
        colour = dress.ours if name in ours else dress.peer
        ink, weight = (colour, 650) if name in ours else (dress.ink, 400)
        out.append(_text(left, y + 4, name, ink, 13, weight=weight))
        p50, p99, p999 = (found[key] for key in ("p50", "p99", "p999"))
        out.append(_line(across(p50.value), y, across(p999.value), y, colour, 1.5, opacity=0.5))
        out.append(_line(across(p99.low), y, across(p99.high), y, colour, 7, opacity=0.3))
        out.append(
            f'<circle cx="{across(p50.value):.1f}" cy="{y}" r="4.5" fill="{dress.ground}"'
            f' stroke="{colour}" stroke-width="2"/>'
        )
        out.append(f'<circle cx="{across(p99.value):.1f}" cy="{y}" r="5" fill="{colour}"/>')
        out.append(_line(across(p999.value), y - 6, across(p999.value), y + 6, colour, 2))
        out.append(
            _text(WIDTH - left, y + 4, f"{p99.value:.1f} ms", ink, 12, anchor="end", weight=weight)
        )
    return _svg(tall + 20, out, dress, "p50, p99 and p99.9 of each contender")


Lines = Mapping[str, Sequence[tuple[float, float]]]


def cost(panels: Mapping[str, Lines], colours: Mapping[str, str], dress: Dress) -> str:
    """Panels of lines on two logarithmic scales: (size of the work, ms of CPU time a request).

    `colours`: by line, the name of one of the dress's.
    """
    columns, gap, left, top = 3, 40, 56, 118
    width, height = (WIDTH - left - 24 - (columns - 1) * gap) / columns, 190.0
    points = [p for lines in panels.values() for line in lines.values() for p in line]
    low = min((y for _, y in points), default=1.0) / 1.5
    high = max((y for _, y in points), default=10.0) * 1.5
    out = [_text(24, 34, "CPU time a request, as the work grows", dress.ink, 20, weight=650)]
    out.append(_text(24, 57, "Milliseconds. Both scales are logarithmic.", dress.soft, 13))
    x = 24.0
    for name, key in colours.items():
        out.append(_line(x, 78, x + 18, 78, getattr(dress, key), 3))
        out.append(_text(x + 24, 82, name, dress.ink, 12))
        x += 40 + 7.2 * len(name)
    for number, (title, lines) in enumerate(panels.items()):
        x = left + number % columns * (width + gap)
        y = top + number // columns * (height + 66)
        out.append(_text(x, y - 8, title, dress.ink, 13, weight=600))
        out.append(_rectangle(x, y, width, height, dress.panel, radius=4))
        sizes = sorted({size for line in lines.values() for size, _ in line})
        first, last = math.log(sizes[0]), math.log(sizes[-1])

        def place(
            size: float, ms: float, x: float = x, y: float = y, a: float = first, b: float = last
        ) -> tuple[float, float]:
            part = (math.log(size) - a) / (b - a) if b > a else 0.5
            up = math.log(ms / low) / math.log(high / low)
            return x + 12 + (width - 24) * part, y + height - height * up

        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
            if low <= 10.0**power <= high:
                at = place(sizes[0], 10.0**power)[1]
                out.append(_line(x, at, x + width, at, dress.line))
                out.append(_text(x - 6, at + 4, f"{10.0**power:g}", dress.soft, 10, anchor="end"))
        for size in sizes:
            at = place(size, low)[0]
            out.append(_text(at, y + height + 15, _count(size), dress.soft, 10, anchor="middle"))
        for name, line in lines.items():
            colour = getattr(dress, colours[name])
            path = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in sorted(line))
            out.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.2"/>'
            )
            for point in line:
                a, b = place(*point)
                out.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.2" fill="{colour}"/>')
    tall = top + math.ceil(len(panels) / columns) * (height + 66)
    return _svg(tall, out, dress, "CPU time a request as heap, workers and routes grow")


def _count(size: float) -> str:
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{size / unit:g}{name}"
    return f"{size:g}"


def _svg(height: float, parts: Sequence[str], dress: Dress, title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}"'
        f' width="{WIDTH}" height="{height:.0f}" font-family="{FONT}" role="img">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="100%" height="100%" rx="10" fill="{dress.ground}"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _text(
    x: float,
    y: float,
    words: str,
    fill: str,
    size: float,
    *,
    anchor: str = "start",
    weight: int = 400,
    turned: int = 0,
) -> str:
    turn = f' transform="rotate({turned} {x:.1f} {y:.1f})"' if turned else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}"{turn} fill="{fill}" font-size="{size}"'
        f' font-weight="{weight}"'
        f' text-anchor="{anchor}" xml:space="preserve">{escape(words)}</text>'
    )


def _line(
    x: float, y: float, to_x: float, to_y: float, stroke: str, width: float = 1, opacity: float = 1
) -> str:
    return (
        f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{stroke}"'
        f' stroke-width="{width}" stroke-opacity="{opacity}" stroke-linecap="round"/>'
    )


def _rectangle(x: float, y: float, width: float, height: float, fill: str, *, radius: float) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius}"'
        f' fill="{fill}"/>'
    )
