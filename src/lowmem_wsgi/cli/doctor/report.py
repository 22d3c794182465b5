"""Show the figures and the findings, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from ..._version import __version__
from ...settings import MB
from ..tell import colour
from .figures import Figures, Route
from .findings import DIE, Finding, anchor, short

SIGNS = {DIE: "✗", "advice": "!", "clean": "✓"}
COLOURS = {DIE: "31", "advice": "33", "clean": "32"}


def text(
    figures: Figures, found: Sequence[Finding], stream: TextIO, environ: Mapping[str, str]
) -> str:
    """Return the report for a terminal or a file, in colour if the stream is for that."""
    painted = colour(stream, environ)

    def sign(level: str) -> str:
        return f"\033[{COLOURS[level]}m{SIGNS[level]}\033[0m" if painted else SIGNS[level]

    lines = [_title(figures), ""]
    rows = list(_rows(figures))
    lines += [f"  {name:<10}{value}" for name, value in rows]
    lines += [""] if rows else []
    for finding in found:
        lines.append(f"{sign(finding.level)} {finding.name}: {finding.figure}")
        lines.append(f"    → {finding.remedy}")
    if figures.failure is not None:
        lines += [f"    | {line}" for line in figures.failure.lines]
    if not found:
        lines.append(f"{sign('clean')} nothing found")
    else:
        lines += ["", f"{summary(found)}. What each means: {anchor('').rstrip('#')}"]
    return "\n".join(lines)


def summary(found: Sequence[Finding]) -> str:
    """Return how many findings there are of each level."""
    deadly = sum(finding.level == DIE for finding in found)
    parts = [f"{deadly} the site would die of"] if deadly else []
    advice = len(found) - deadly
    return ", ".join(parts + ([f"{advice} to improve"] if advice else []))


def as_json(figures: Figures, found: Sequence[Finding], code: int) -> str:
    """Return the report for programs. docs/doctor.md lists the keys."""
    route = figures.peak
    measured = bool(figures.worker)
    report: dict[str, Any] = {
        "lowmem_wsgi": __version__,
        "app": figures.app,
        "exit": code,
        "findings": [{**finding._asdict(), "docs": anchor(finding.name)} for finding in found],
        "limit_bytes": figures.limit,
        "platform": figures.platform,
        "start": {"by": figures.served.by, "from": figures.served.source},
        "measured_in": "cgroup" if figures.real else "process",
        "loaded_bytes": figures.loaded or None,
        "load_seconds": round(figures.seconds, 3),
        "imports": dict(sorted(figures.imports.items(), key=lambda item: -item[1])),
        "worker": {
            "own_bytes": figures.worker.own,
            "rss_bytes": figures.worker.rss,
            "shared_bytes": max(0, figures.worker.rss - figures.worker.own),
        }
        if figures.worker
        else None,
        "workers": figures.workers if measured else figures.served.workers,
        "workers_that_fit": figures.fit if measured else None,
        "used_bytes": figures.used(figures.workers) if measured else None,
        "largest_request_that_fits_bytes": figures.room(figures.workers) if measured else None,
        "largest_request": {"path": route.path, "bytes": route.peak} if route else None,
        "requests": [_of_route(route) for route in figures.routes],
    }
    return json.dumps(report, indent=2)


def _of_route(route: Route) -> dict[str, Any]:
    return {
        **{"path": route.path, "status": route.status, "requests": route.requests},
        **{"peak_bytes": route.peak, "kept_bytes_a_request": max(0, route.growth)},
    }


def _title(figures: Figures) -> str:
    where = f" on {figures.platform}" if figures.platform else ""
    return (
        f"lowmem-wsgi doctor: {figures.app or 'no app'} in {short(figures.limit)}{where}, "
        f"served by {figures.served.by} ({figures.served.source})"
    )


def _rows(figures: Figures) -> Iterator[tuple[str, str]]:
    if figures.loaded:
        costs = sorted(figures.imports.items(), key=lambda item: -item[1])[:4]
        most = ", ".join(f"{name} {short(size)}" for name, size in costs if size >= MB)
        took = f" in {figures.seconds:.1f} s" if figures.worker else ""
        yield "loaded", f"{short(figures.loaded)}{took}" + (f": {most}" if most else "")
    worker = figures.worker
    if worker is None:
        return
    shared = max(0, worker.rss - worker.own)
    yield "a worker", f"{short(worker.own)} of its own, {short(shared)} shared with the master"
    asked = figures.served.workers
    chosen = f"{asked} asked for" if asked else "not set: as many as fit start"
    yield (
        "workers",
        f"{figures.fit} fit by memory ({chosen}); {figures.workers} use "
        f"{short(figures.used(figures.workers))}",
    )
    yield "requests", f"{short(figures.room(figures.workers))} each at most{_seen(figures)}"
    if not figures.real:
        yield "limit", "by RLIMIT_DATA: no memory cgroup can be made here"


def _seen(figures: Figures) -> str:
    route = figures.peak
    if route is None:
        return ""
    pages = "page" if len(figures.routes) == 1 else "pages"
    left_out = len(figures.pages) - len(figures.routes)
    others = f" of {len(figures.pages)}" if left_out > 0 else ""
    asked = f"{len(figures.routes)}{others} {pages} asked by GET"
    return f"; {asked}, the largest GET {route.path}: {short(route.peak)}"
