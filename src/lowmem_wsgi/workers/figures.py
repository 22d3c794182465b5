"""The figures of a process or a whole site: counters, and figures of each route.

Each process writes its own figures. A reader adds them up. The figures of a dead process are
folded into the site's totals.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from ..memory.attribution import MOST, MUCH, OFTEN, OTHER, scaled
from ..metrics import NAMES

COUNTS = struct.Struct(f"<{len(NAMES)}d")
ROUTE = struct.Struct("<96s8Q")  # name, RouteFigures
ROUTES = MOST + 1
SIZE = COUNTS.size + ROUTES * ROUTE.size  # 16 KB; only the part of the routes in use is touched
LARGEST = 2**64 - 1


class RouteFigures(NamedTuple):
    """The figures of one route: counts, and bytes."""

    requests: int = 0
    shared: int = 0  # of these requests, the ones that ran beside others
    worst: int = 0  # the most bytes that one request has left behind
    rises: int = 0  # how often the route has grown
    quiet: int = 0  # requests since the last rise
    held: int = 0  # bytes held in living workers
    gone: int = 0  # bytes that workers held when they ended
    workers: int = 0  # ended workers that held much (attribution.MUCH)


NOTHING = RouteFigures()


class Figures(NamedTuple):
    counters: dict[str, float]  # by name, all of metrics.NAMES
    routes: dict[str, RouteFigures]

    def pack(self) -> bytes:
        rows = list(self.routes.items())[:ROUTES]
        return COUNTS.pack(*(self.counters[name] for name in NAMES)) + b"".join(
            ROUTE.pack(name.encode("utf-8", "replace"), *(min(figure, LARGEST) for figure in row))
            for name, row in rows
        )

    @classmethod
    def unpack(cls, data: bytes) -> Figures:
        """Return the figures that `pack` has packed; all zero for no data."""
        counts, rest = data[: COUNTS.size].ljust(COUNTS.size, b"\0"), data[COUNTS.size :]
        return cls(
            dict(zip(NAMES, COUNTS.unpack(counts), strict=True)),
            {
                name.rstrip(b"\0").decode("utf-8", "replace"): RouteFigures(*row)
                for name, *row in ROUTE.iter_unpack(rest[: len(rest) // ROUTE.size * ROUTE.size])
            },
        )


def total(dead: Figures, living: Iterable[Figures]) -> Figures:
    """Return the sum of the figures of the dead and the living."""
    living = list(living)
    parts = [dead, *living]
    routes = {}
    for name in dict.fromkeys(name for part in parts for name in part.routes):
        before = dead.routes.get(name, NOTHING)
        rows = [part.routes[name] for part in living if name in part.routes]
        added = RouteFigures(*map(sum, zip(before, *rows, strict=True)))
        routes[name] = added._replace(
            worst=max(row.worst for row in (before, *rows)), quiet=_quiet(before, rows)
        )
    counters = {name: sum(part.counters[name] for part in parts) for name in NAMES}
    return Figures(counters, routes)


def folded(dead: Figures, gone: Figures, *, eaten: int = 0) -> Figures:
    """Return the figures of the dead, with those of one more dead worker.

    The memory that this worker held counts as gone, except `eaten` bytes: requests that did not end
    took those, and they are no route's growth.
    """
    added = total(dead, [gone])
    held = {name: row.held for name, row in gone.routes.items()}
    held = scaled(held, sum(held.values()) - max(0, eaten))
    routes = {
        name: row._replace(
            held=0,
            gone=row.gone + held.get(name, 0),
            workers=row.workers + (held.get(name, 0) >= MUCH),
        )
        for name, row in added.routes.items()
    }
    while len(routes) > ROUTES:
        least = min(
            (name for name in routes if name != OTHER), key=lambda name: _weight(routes[name])
        )
        others, row = routes.get(OTHER, NOTHING), routes.pop(least)
        summed = RouteFigures(*map(sum, zip(others, row, strict=True)))
        routes[OTHER] = summed._replace(worst=max(others.worst, row.worst))
    return Figures(added.counters, routes)


def _quiet(before: RouteFigures, rows: list[RouteFigures]) -> int:
    """Return the requests of a route in the whole site since the route grew last.

    Of several workers, each is assumed to have had as many since then as the one that grew last.
    """
    requests = sum(row.requests for row in rows)
    rose = [row.quiet for row in rows if row.rises]
    return min(min(rose) * len(rows), requests) if rose else before.quiet + requests


def _weight(row: RouteFigures) -> tuple[bool, int, int]:
    """Return a sort key: the least gives way first, but often used or much grown routes last."""
    return row.requests >= OFTEN or row.gone >= MUCH, row.gone, row.requests
