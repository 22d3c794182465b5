"""What the rounds have shown: medians, and whether a difference is more than noise. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

# With fewer rounds no noise can be told from a difference.
LEAST_ROUNDS = 3


class Round(NamedTuple):
    """One trial of one contender. Bytes and seconds. `failure`: why it has no figures."""

    first: float | None = None  # from the start to the first answer
    initial: int | None = None
    idle: int | None = None
    peak: int | None = None
    answers: tuple[tuple[float, bool], ...] = ()  # seconds, and whether the request failed
    seconds: float = 0.0  # how long requests were made
    kills: int = 0  # processes that the kernel killed for want of memory
    died: bool = False  # whether the server has ended by itself
    failure: str = ""
    readings: tuple[tuple[float, int], ...] = ()  # seconds since the first request, bytes

    @property
    def asked(self) -> int:
        return len(self.answers)

    @property
    def failed(self) -> int:
        return sum(failed for _, failed in self.answers)

    def percentile(self, share: float) -> float | None:
        """Return the least time that this share of the answers did not exceed."""
        times = sorted(seconds for seconds, failed in self.answers if not failed)
        return times[max(0, math.ceil(share * len(times)) - 1)] if times else None

    @property
    def rate(self) -> float | None:
        """Answers a second, without those that failed."""
        return (self.asked - self.failed) / self.seconds if self.seconds else None


class Figure(NamedTuple):
    """A row of the table. `promised`: what the source document says that its advice leads to."""

    key: str
    title: str
    unit: str  # bytes, seconds or rate
    of: Callable[[Round], float | None]
    promised: str = ""


FIGURES = (
    Figure("initial", "initial RAM", "bytes", lambda found: found.initial, "30–40 MB"),
    Figure("idle", "idle", "bytes", lambda found: found.idle, "60–80 MB"),
    Figure("peak", "peak", "bytes", lambda found: found.peak, "under 200 MB"),
    Figure("p50", "p50", "seconds", lambda found: found.percentile(0.50)),
    Figure("p99", "p99", "seconds", lambda found: found.percentile(0.99)),
    Figure("rate", "requests/s", "rate", lambda found: found.rate),
    Figure("first", "first answer", "seconds", lambda found: found.first),
)


class Value(NamedTuple):
    """A figure of a contender: the median of the rounds, and each round's."""

    median: float | None
    rounds: tuple[float | None, ...]


def value(figure: Figure, rounds: Sequence[Round]) -> Value:
    found = tuple(figure.of(each) for each in rounds)
    known = [each for each in found if each is not None]
    return Value(median(known) if known else None, found)


class Difference(NamedTuple):
    """A contender's figure beside the bare app's. `ratio`: None where it cannot be told."""

    ratio: float | None
    noise: bool


def difference(other: Value, bare: Value) -> Difference:
    """Return how a figure differs from the bare app's, and whether that is noise.

    Noise: the figure was larger in some round than in another of the bare app, and smaller in some.
    Between two equal servers all of five rounds would come out on one side once in 126 times.
    """
    ours = [each for each in other.rounds if each is not None]
    theirs = [each for each in bare.rounds if each is not None]
    if min(len(ours), len(theirs)) < LEAST_ROUNDS or not bare.median or other.median is None:
        return Difference(None, False)
    overlap = min(ours) <= max(theirs) and min(theirs) <= max(ours)
    return Difference(other.median / bare.median, overlap)


def typical(rounds: Sequence[Round]) -> Round | None:
    """Return the round whose peak is the middle one, to draw."""
    drawn = sorted((each for each in rounds if each.readings), key=lambda each: each.peak or 0)
    return drawn[len(drawn) // 2] if drawn else None


def thinned(readings: Sequence[tuple[float, int]], most: int) -> list[tuple[float, int]]:
    """Return at most `most` readings: of each stretch of time the largest, so that no peak goes."""
    if len(readings) <= most:
        return list(readings)
    begin, end = readings[0][0], readings[-1][0]
    found: dict[int, tuple[float, int]] = {}
    for moment, used in readings:
        stretch = min(most - 1, int(most * (moment - begin) / (end - begin or 1)))
        if stretch not in found or used > found[stretch][1]:
            found[stretch] = (moment, used)
    return [found[stretch] for stretch in sorted(found)]
