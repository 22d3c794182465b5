"""The last hour of a site: points and events."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers.fakes import MB, Clock
from lowmem_wsgi.workers.history import EVENTS, EVERY, POINTS, History
from lowmem_wsgi.workers.shared_page import HISTORY_AT, SharedPage


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def history(clock: Clock) -> Iterator[History]:
    page = SharedPage.private()
    yield History(page.map, HISTORY_AT, page.locked, now=clock)
    page.close()


def test_the_most_of_each_ten_seconds_of_an_hour_is_kept(history: History, clock: Clock) -> None:
    for used in (50, 90, 60):
        history.point(used * MB)
        clock.now += 2
    assert history.points() == [(1000, 90 * MB)]
    for _ in range(2 * POINTS):
        clock.now += EVERY
        history.point(70 * MB)
    points = history.points()
    assert len(points) == POINTS
    assert {used for _, used in points} == {70 * MB}
    assert points == sorted(points)
    clock.now += EVERY * POINTS
    assert history.points() == []


def test_events_of_the_last_hour_are_kept_the_newest_of_many(
    history: History, clock: Clock
) -> None:
    history.event("cleanup", -5, "warn")
    history.event("recycle", 90 * MB, "critical")
    history.event("death", 1, "crash, or a kill from outside, and so on" * 3)
    first, second, third = history.events()
    assert (first.kind, first.freed, first.what, first.at) == ("cleanup", -5, "warn", 1000.0)
    assert (second.kind, second.freed) == ("recycle", 90 * MB)
    assert third.what.startswith("crash, or a kill from outside")
    for number in range(2 * EVENTS):
        clock.now += 1
        history.event("cleanup", number, "asked")
    events = history.events()
    assert [event.freed for event in events] == list(range(EVENTS, 2 * EVENTS))
    clock.now += EVERY * POINTS
    assert history.events() == []
