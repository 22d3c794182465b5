"""From what was recorded to figures with a spread, places and sentences. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from _common import percentile

# One contender at one share of a CPU in one round, as it is in the JSON: see course.py.
Record = dict[str, Any]
NAN = float("nan")
# A smaller difference is none, however close a contender's own measurements are.
LEAST = 0.03
# Counts and outages vary more: one death more or less takes several answers with it.
ROUGH = 1 / 3


class Figure(NamedTuple):
    """The median of all measurements, the least and the most of them, and their sum."""

    value: float
    low: float
    high: float
    times: int
    total: float

    @property
    def spread(self) -> float:
        """How far apart the measurements lie, as a share of the figure; nan for one alone."""
        if self.times < 2 or not self.value:
            return NAN
        return (self.high - self.low) / self.value


class Metric(NamedTuple):
    """A column of the table. `of`: its measurements in a record."""

    key: str
    title: str
    unit: str
    digits: int
    of: Callable[[Record], list[float]]
    most_wins: bool = False
    least: float = LEAST  # the relative difference that is one


def _memory(key: str) -> Callable[[Record], list[float]]:
    return lambda record: [record["memory"][key]]


def _slices(key: str) -> Callable[[Record], list[float]]:
    return lambda record: [found[key] for found in record["steady"]]


def _answers(key: str) -> Callable[[Record], list[float]]:
    return lambda record: [float(sum(found[key] for found in record["phases"].values()))]


PARTS = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
# Fewer answers have no such percentile.
ENOUGH = {"p50": 10, "p99": 100, "p999": 1000}


def _latency(key: str) -> Callable[[Record], list[float]]:
    """Each slice's percentile; that of all slices together, where a slice has too few answers."""

    def measured(record: Record) -> list[float]:
        found = [one[key] for one in record["steady"]]
        return [record["steady_all"][key]] if any(map(math.isnan, found)) else found

    return measured


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """p50, p99 and p99.9 of some answers; nan where they are too few to tell."""
    return {
        key: percentile(milliseconds, part) if len(milliseconds) >= ENOUGH[key] else NAN
        for key, part in PARTS.items()
    }


METRICS = (
    Metric("failed", "failed", "", 0, _answers("failed"), least=ROUGH),
    Metric("wrong", "wrong", "", 0, _answers("wrong"), least=ROUGH),
    Metric("kills", "OOM kills", "", 0, lambda r: [r["kills"]], least=ROUGH),
    Metric("deaths", "deaths", "", 0, lambda r: [r["deaths"]], least=ROUGH),
    Metric("down", "unavailable", "s", 1, lambda r: [r["unavailable"]], least=ROUGH),
    Metric("slowest", "slowest beside", "s", 1, lambda r: [r["slowest"]], least=ROUGH),
    Metric("refused", "runaways refused", "", 0, lambda r: [r["refused"]], most_wins=True, least=0),
    Metric("initial", "initial", "MB", 0, _memory("initial")),
    Metric("idle", "idle", "MB", 0, _memory("idle")),
    Metric("spiked", "after spikes", "MB", 0, _memory("spiked")),
    Metric("peak", "peak", "MB", 0, _memory("peak")),
    Metric("final", "final", "MB", 0, _memory("final")),
    Metric("p50", "p50", "ms", 1, _latency("p50")),
    Metric("p99", "p99", "ms", 1, _latency("p99")),
    Metric("p999", "p99.9", "ms", 1, _latency("p999"), least=ROUGH),
    Metric("rate", "requests", "/s", 0, _slices("rate"), most_wins=True),
    Metric("cpu", "CPU a request", "ms", 2, _slices("cpu")),
    Metric("start", "start", "s", 1, lambda r: [r["start"]]),
)
BY_KEY = {metric.key: metric for metric in METRICS}

Row = dict[str, Figure]  # by the metric's key
Table = dict[str, Row]  # by the contender's name


def figure(values: Sequence[float]) -> Figure:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Figure(NAN, NAN, NAN, 0, 0.0)
    return Figure(median(known), min(known), max(known), len(known), sum(known))


def summarise(records: Sequence[Record], share: float) -> Table:
    """The figures of all contenders at a share of a CPU, the best first."""
    of: dict[str, list[Record]] = {}
    for record in records:
        if record["share"] == share and not record["missing"]:
            of.setdefault(record["contender"], []).append(record)
    table = {
        name: {m.key: figure([v for r in found for v in m.of(r)]) for m in METRICS}
        for name, found in of.items()
    }
    ranks = standing(table)
    return dict(sorted(table.items(), key=lambda item: ranks[item[0]]))


# What decides the order of the table, the weightiest first.
ORDER = ("failed", "kills", "down", "wrong", "p99")


def standing(table: Table) -> dict[str, int]:
    """By contender: 1, and one more for each other that comes before it."""
    return {a: 1 + sum(before(table[b], table[a]) for b in table) for a in table}


def before(a: Row, b: Row) -> bool:
    """Whether a contender comes before another in the order, of the two alone."""
    for metric in (BY_KEY[key] for key in ORDER):
        if better(a[metric.key], b[metric.key], metric):
            return True
        if better(b[metric.key], a[metric.key], metric):
            return False
    return False


def better(a: Figure, b: Figure, metric: Metric) -> bool:
    """Whether `a` is better than `b` by more than the measurements of either lie apart.

    Counts must differ by more than chance makes likely as well: by two standard deviations of the
    difference of two Poisson rates.
    """
    if metric.most_wins:
        return a.low * (1 - metric.least) > b.high
    if not metric.unit and a.times and b.times:
        chance = math.sqrt(a.total / a.times**2 + b.total / b.times**2)
        if b.total / b.times - a.total / a.times <= 2 * chance:
            return False
    return a.high < b.low * (1 - metric.least)


def place(table: Table, metric: Metric) -> dict[str, int]:
    """By contender: 1 where no other is better beyond the noise, and one more for each that is."""
    column = {name: row[metric.key] for name, row in table.items()}
    return {
        name: 1 + sum(better(b, a, metric) for b in column.values())
        for name, a in column.items()
        if not math.isnan(a.value)
    } | {name: len(column) for name, a in column.items() if math.isnan(a.value)}


def leaders(table: Table, metric: Metric) -> list[str]:
    """Who is best, and whoever cannot be told apart from the best; the best first."""
    known = {n: r[metric.key] for n, r in table.items() if not math.isnan(r[metric.key].value)}
    ordered = sorted(known, key=lambda n: known[n].value, reverse=metric.most_wins)
    if not ordered:
        return []
    best = known[ordered[0]]
    return [n for n in ordered if not better(best, known[n], metric)]


def spread(table: Table, metric: Metric) -> float:
    """The median of the contenders' spreads; nan where each was measured once."""
    known = [s for row in table.values() if not math.isnan(s := row[metric.key].spread)]
    return median(known) if known else NAN


class Promise(NamedTuple):
    """What is to be shown, and whether it is."""

    text: str
    figure: float
    bound: float

    @property
    def kept(self) -> bool:
        return self.figure <= self.bound


def promises(table: Table, ours: Sequence[str], plain: str) -> list[Promise]:
    """What lowmem-wsgi promises, at one share of a CPU."""
    found = []
    least = min((row["failed"].high for row in table.values()), default=0)
    for name in (name for name in ours if name in table):
        row = table[name]
        found += [
            Promise(f"{name}: OOM kills", row["kills"].high, 0),
            Promise(f"{name}: failed answers", row["failed"].high, 0),
            Promise(f"{name}: wrong answers", row["wrong"].high, 0),
            Promise(f"{name}: more failures than the best", row["failed"].high - least, 0),
        ]
        if plain in table:
            bare = table[plain]
            found += [
                Promise(f"{name}: {words} / {plain}", row[key].value / bare[key].value, bound)
                for key, words, bound in (
                    ("p99", "p99", 1.03),
                    ("idle", "memory at rest", 1.0),
                    ("spiked", "memory after spikes", 1.0),
                )
            ]
    return found


def unavailable(answers: Sequence[tuple[float, float, bool]]) -> float:
    """Seconds without service, from what neighbours were answered: (began, ended, good) each.

    Good: right, and in time. An outage begins with a request that is not answered so, and ends with
    the next good answer, of any neighbour, to a request that was made after that.
    """
    total, since = 0.0, None
    last = max((ended for _, ended, _ in answers), default=0.0)
    for began, ended, good in sorted(answers):
        if since is None and not good:
            since = began
        elif since is not None and good:
            total, since = total + ended - since, None
    return total + (last - since if since is not None else 0.0)


def binned(
    points: Sequence[tuple[float, float]], spans: Sequence[tuple[float, float]], bins: int
) -> list[float]:
    """The most in each part of some spans of time taken together; nan where nothing is known."""
    length = sum(end - begin for begin, end in spans)
    found = [NAN] * bins
    for moment, value in points:
        before = 0.0
        for begin, end in spans:
            if begin <= moment < end and length > 0:
                at = min(bins - 1, int(bins * (before + moment - begin) / length))
                found[at] = value if math.isnan(found[at]) else max(found[at], value)
            before += end - begin
    return found


class Change(NamedTuple):
    """From one run to another: how far the contenders' ratios to the median of all moved."""

    usual: float  # the median contender's change
    most: float
    name: str  # whose


def agreement(first: Table, second: Table, keys: Iterable[str]) -> dict[str, Change]:
    """By metric: how far the contenders' ratios to the median of all moved from run to run."""
    found = {}
    names = [name for name in first if name in second]
    for key in keys:
        sides: list[Mapping[str, float]] = []
        for table in (first, second):
            known = {n: v for n in names if not math.isnan(v := table[n][key].value)}
            middle = median(known.values()) if known else 0.0
            sides.append({n: v / middle if middle else 1.0 for n, v in known.items()})
        one, other = sides
        changes = {n: abs(other[n] / one[n] - 1) for n in one if one[n] and n in other}
        if changes:
            worst = max(changes, key=lambda name: changes[name])
            found[key] = Change(median(changes.values()), changes[worst], worst)
    return found


class Order(NamedTuple):
    """How far the order of two runs agrees, over all pairs of contenders."""

    same: int  # told apart in both runs, in the same order
    turned: list[tuple[str, str]]  # told apart in both, in opposite orders
    unsure: int  # told apart in one run at most


def order(first: Table, second: Table) -> Order:
    """Compare the order of the contenders that both runs have, pair by pair."""
    names = [name for name in first if name in second]
    same, turned, unsure = 0, [], 0
    for number, a in enumerate(names):
        for b in names[number + 1 :]:
            sides = [
                before(table[a], table[b]) - before(table[b], table[a]) for table in (first, second)
            ]
            if 0 in sides:
                unsure += 1
            elif sides[0] == sides[1]:
                same += 1
            else:
                turned.append((a, b) if sides[0] > 0 else (b, a))
    return Order(same, turned, unsure)
