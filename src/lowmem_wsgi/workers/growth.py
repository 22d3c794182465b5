"""How fast a site and a worker grow, from the latest readings. No input or output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .recycling import MOST_LEAD

# LowMemory measures growth over WINDOW seconds, or over the lead if that is longer, in QUARTERS
# parts.
WINDOW, QUARTERS = 1.0, 4
# ... and over so many readings at least, unless they are older than MOST_LEAD.
READINGS = 2 * QUARTERS


class Reading(NamedTuple):
    """Time (seconds), memory used by the site and the worker's RSS (bytes), requests so far."""

    at: float
    used: int
    rss: int
    requests: int


class Rates(NamedTuple):
    """The rates of the same figures: bytes and requests a second."""

    used: float
    rss: float
    requests: float


def rates(readings: Sequence[Reading], now: float, lead: float, workers: int) -> Rates:
    """Return the rates over WINDOW seconds, or over `lead` seconds if that is longer.

    The memory that one request takes at once is a step, not growth. So the time is split into
    QUARTERS parts with equal numbers of requests, and the second smallest rate counts.
    An ending worker that gives memory back hides the growth of the site. So each of the other
    `workers` is assumed to grow as fast as this worker.
    """
    window = max(WINDOW, lead)
    recent = [reading for reading in readings if now - reading.at <= window]
    if len(recent) < READINGS:  # a slow processor makes few readings
        latest = list(readings)[-READINGS:]
        recent = [reading for reading in latest if now - reading.at <= MOST_LEAD]
    requests = recent[-1].requests - recent[0].requests if recent else 0
    if requests < QUARTERS:
        return Rates(0.0, 0.0, 0.0)
    bounds = [
        next(r for r in recent if r.requests >= recent[0].requests + part * requests / QUARTERS)
        for part in range(QUARTERS)
    ]
    pairs = list(zip(bounds, [*bounds[1:], recent[-1]], strict=True))
    spans = [(a, b, b.at - a.at) for a, b in pairs if b.at > a.at]
    few = requests < 2 * QUARTERS  # each may be large by itself
    if len(spans) < (QUARTERS if few else 2):
        return Rates(0.0, 0.0, 0.0)
    used = sorted((b.used - a.used) / seconds for a, b, seconds in spans)[1]
    rss = sorted((b.rss - a.rss) / seconds for a, b, seconds in spans)[1]
    return Rates(max(used, rss * workers), rss, requests / (recent[-1].at - recent[0].at))
