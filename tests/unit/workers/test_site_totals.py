"""What a site has counted, and its last hour, on a page that several processes share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from helpers.fakes import MB, Clock
from helpers.forks import together
from lowmem_wsgi.memory.attribution import OTHER, Booking
from lowmem_wsgi.workers.shared_page import LEDGER_AT, Board
from lowmem_wsgi.workers.site_totals import EVENTS, EVERY, HELDS, POINTS, ROUTES, SIZE, Ledger

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.private()
    yield board
    board.close()


@pytest.fixture
def ledger(board: Board) -> Ledger:
    return board.ledger


def at(board: Board, clock: Clock) -> Ledger:
    return Ledger(board.map, LEDGER_AT, board.locked, now=clock)


def test_counts_add_up(ledger: Ledger) -> None:
    ledger.add({"requests": 3, "gc_seconds": 0.25})
    ledger.add({"requests": 2, "shed": 1})
    counts = ledger.counts()
    assert (counts["requests"], counts["gc_seconds"], counts["shed"]) == (5, 0.25, 1)
    assert counts["recycles"] == 0


def test_what_falls_is_not_taken_away(ledger: Ledger) -> None:
    """An app that is closed takes its counts with it; what it had counted was."""
    ledger.add({"requests": 3})
    ledger.add({"requests": -2})
    assert ledger.counts()["requests"] == 3


@needs_fork
def test_workers_that_add_at_once_lose_nothing(board: Board) -> None:
    def add() -> None:
        for _ in range(100):
            board.ledger.add({"requests": 1}, [Booking("GET /", 1, 0, 10, 10)])

    together(4, add)
    assert board.ledger.counts()["requests"] == 400
    assert board.ledger.routes()["GET /"][:4] == (400, 0, 4000, 10)


def test_routes_add_up_and_the_worst_is_kept(ledger: Ledger) -> None:
    ledger.add({}, [Booking("GET /é", 2, 1, 5 * MB, 4 * MB), Booking("GET /b", 1, 0, -MB, 0)])
    ledger.add({}, [Booking("GET /é", 1, 0, -2 * MB, 3 * MB)])
    routes = {name: tally[:4] for name, tally in ledger.routes().items()}
    assert routes == {"GET /é": (3, 1, 3 * MB, 4 * MB), "GET /b": (1, 0, -MB, 0)}


def test_of_many_routes_the_least_are_counted_together(ledger: Ledger) -> None:
    ledger.add({}, [Booking("GET /leak", 1, 0, 50 * MB, 50 * MB)])
    for number in range(300):
        ledger.add({}, [Booking(f"GET /{number}", 1, 0, number, number)])
    routes = ledger.routes()
    assert len(routes) == ROUTES
    assert routes["GET /leak"].grown == 50 * MB
    assert sum(tally.requests for tally in routes.values()) == 301
    assert sum(tally.grown for tally in routes.values()) == 50 * MB + sum(range(300))
    assert routes[OTHER].requests == 301 - (ROUTES - 1)


def test_what_a_worker_held_is_kept_once_when_that_is_gone(ledger: Ledger) -> None:
    ledger.add({}, [Booking("GET /leak", 40, 0, 80 * MB, 0)], (3, {"GET /leak": 80 * MB}))
    assert ledger.growth({3: True})["GET /leak"].held == 80 * MB
    # It has died, and nobody has buried it yet; then somebody does, and somebody else.
    for _ in range(3):
        found = ledger.growth({3: False})["GET /leak"]
        assert (found.held, found.tally.gone, found.tally.workers) == (0, 80 * MB, 1)
        ledger.ended(3)
    ledger.add({}, (), (3, {"GET /leak": 10 * MB}))  # the next in its place
    found = ledger.growth({3: True})["GET /leak"]
    assert (found.held, found.tally.gone, found.tally.workers) == (10 * MB, 80 * MB, 1)


def test_what_a_request_took_that_did_not_end_is_nobodys_leak(ledger: Ledger) -> None:
    ledger.add({}, (), (0, {"GET /": 300 * MB, "GET /leak": 100 * MB}))
    ledger.ended(0, eaten=300 * MB)
    gone = {name: growth.tally.gone for name, growth in ledger.growth({}).items()}
    assert gone == {"GET /": 75 * MB, "GET /leak": 25 * MB}


def test_of_what_a_worker_holds_the_least_is_told_together(ledger: Ledger) -> None:
    ledger.add({}, (), (0, {f"GET /{number}": number * MB for number in range(1, 31)}))
    held = ledger.held(0)
    assert len(held) == HELDS
    assert held["GET /30"] == 30 * MB
    assert sum(held.values()) == sum(range(31)) * MB
    ledger.add({}, (), (0, {}))
    assert ledger.held(0) == {}


def test_the_most_of_each_ten_seconds_of_an_hour_is_kept(board: Board, clock: Clock) -> None:
    ledger = at(board, clock)
    for used in (50, 90, 60):
        ledger.point(used * MB)
        clock.now += 2
    assert ledger.points() == [(1000, 90 * MB)]
    for _ in range(2 * POINTS):
        clock.now += EVERY
        ledger.point(70 * MB)
    points = ledger.points()
    assert len(points) == POINTS
    assert {used for _, used in points} == {70 * MB}
    assert points == sorted(points)
    clock.now += EVERY * POINTS
    assert ledger.points() == []


def test_events_of_the_last_hour_are_kept_the_newest_of_many(board: Board, clock: Clock) -> None:
    ledger = at(board, clock)
    ledger.event("cleanup", -5, "warn")
    ledger.event("recycle", 90 * MB, "critical")
    ledger.event("death", 1, "crash, or a kill from outside, and so on" * 3)
    first, second, third = ledger.events()
    assert (first.kind, first.freed, first.what, first.at) == ("cleanup", -5, "warn", 1000.0)
    assert (second.kind, second.freed) == ("recycle", 90 * MB)
    assert third.what.startswith("crash, or a kill from outside")
    for number in range(2 * EVENTS):
        clock.now += 1
        ledger.event("cleanup", number, "asked")
    events = ledger.events()
    assert [event.freed for event in events] == list(range(EVENTS, 2 * EVENTS))
    clock.now += EVERY * POINTS
    assert ledger.events() == []


def test_all_of_it_takes_less_than_64_kb() -> None:
    assert SIZE < 64 * 1024


@pytest.fixture
def clock() -> Clock:
    return Clock()
