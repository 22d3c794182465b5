"""Growth booked to routes, with a process that a test makes up."""

from __future__ import annotations

import gc
import random

import pytest

from helpers.fakes import Clock
from lowmem_wsgi.memory import attribution as growth
from lowmem_wsgi.memory.attribution import LEAST, MOST, NO_REQUEST, OTHER, Attribution, top
from lowmem_wsgi.system.malloc import find_in_use

MB = 1024 * 1024


class Site:
    """A process whose memory in use a test sets."""

    def __init__(self) -> None:
        self.clock, self.used = Clock(), 50 * MB
        self.book = Attribution(lambda: self.used, now=self.clock)
        self.book.weigh()

    def ask(self, route: str, *, keep: float = 0, seconds: float = 0.01) -> None:
        """A request that is weighed alone."""
        self.clock.now += seconds
        self.used += int(keep * MB)
        self.book.ended(route, False)
        self.book.weigh()

    def grown(self, route: str) -> float:
        return self.book.routes[route].grown / MB


@pytest.fixture
def site() -> Site:
    return Site()


def test_a_request_that_is_alone_is_booked_what_has_come(site: Site) -> None:
    site.ask("GET /")
    site.ask("GET /export", keep=8)
    site.ask("GET /")
    assert site.grown("GET /") == 0
    assert site.grown("GET /export") == pytest.approx(8, rel=0.01)
    assert site.book.routes["GET /"].requests == 2


def test_a_route_that_drops_what_another_keeps_is_told_to_have_lost_it(site: Site) -> None:
    site.ask("GET /fill", keep=40)
    site.ask("GET /")
    site.ask("POST /clear", keep=-39)
    assert site.grown("GET /fill") == pytest.approx(40, rel=0.01)
    assert site.grown("POST /clear") == pytest.approx(-39)
    assert site.grown("GET /") == 0


def test_what_is_nobodys_doing_is_forgotten(site: Site) -> None:
    """A cleanup, an answer of our own."""
    site.ask("GET /fill", keep=40)
    site.used -= 30 * MB
    site.book.rebase()
    site.ask("GET /")
    assert site.grown("GET /") == 0
    assert site.grown("GET /fill") == pytest.approx(40, rel=0.01)


def test_growth_of_a_thread_of_the_apps_own_is_no_requests(site: Site) -> None:
    for _ in range(50):
        site.clock.now += 1
        site.used += MB // 2
        site.book.weigh()  # nobody has asked
        site.ask("GET /")
    assert site.grown(NO_REQUEST) > 24
    assert site.grown("GET /") < 1


@pytest.mark.parametrize("at_once", [1, 3, 12])
@pytest.mark.parametrize("seed", range(5))
def test_a_leaky_route_among_nine_is_booked_four_fifths_at_least(
    site: Site, seed: int, at_once: int
) -> None:
    """500 requests, one of ten routes at random, some weighed together; one leaks 1 MB a time."""
    draw = random.Random(seed)
    leaked = 0
    for number in range(500):
        route = draw.randrange(10)
        site.clock.now += 0.005
        if route == 0:
            site.used += MB
            leaked += 1
        site.book.ended(f"GET /{route}", True)
        if number % at_once == 0:
            site.book.weigh()
    site.book.weigh()
    found = top(site.book.routes)
    assert found is not None
    assert found.name == "GET /0"
    assert leaked * MB * 0.8 <= found.grown <= leaked * MB
    assert found.shared == found.requests


def test_a_large_package_that_a_request_loads_is_no_leak_of_it(site: Site) -> None:
    site.ask("GET /frame", keep=1)
    site.used += MB
    site.book.load_begins()
    site.used += 50 * MB
    site.book.ended("GET /", False)
    site.clock.now += 1
    assert not site.book.due(site.clock.now)  # it would be taken for growth of /
    site.book.load_ends()
    assert site.book.due(site.clock.now)
    site.ask("GET /frame", keep=1)
    assert sum(route.grown for route in site.book.routes.values()) == pytest.approx(3 * MB)


def test_it_weighs_no_more_than_a_hundredth_of_the_time() -> None:
    clock, weighed = Clock(), []

    def slow() -> int:
        weighed.append(clock.now)
        clock.now += 0.001
        return 50 * MB

    book = Attribution(slow, now=clock)
    end = clock.now + 10
    while clock.now < end:
        clock.now += 0.002
        book.ended("GET /", False)
        if book.due(clock.now):
            book.weigh()
    assert 90 <= len(weighed) <= 101
    assert sum(route.requests for route in book.routes.values()) > 4000


def test_it_is_not_due_where_nobody_has_ended(site: Site) -> None:
    site.clock.now += LEAST
    assert not site.book.due(site.clock.now)
    site.book.ended("GET /", False)
    assert site.book.due(site.clock.now)


def test_the_worst_is_by_how_much_larger_the_process_was_when_a_request_ended(site: Site) -> None:
    site.book.ended("GET /frame", False)
    site.book.peaked(150 * MB)
    site.book.weigh()
    site.ask("GET /frame")
    assert site.book.routes["GET /frame"].worst == 150 * MB
    assert site.grown("GET /frame") == 0


def test_what_a_process_holds_is_not_more_than_it_has_grown_by(site: Site) -> None:
    site.ask("GET /fill", keep=40)
    site.ask("GET /leak", keep=20)
    held = site.book.held(100 * MB)
    assert held["GET /fill"] == pytest.approx(40 * MB, rel=0.1)
    assert held["GET /leak"] == pytest.approx(20 * MB, rel=0.1)
    assert sum(held.values()) == pytest.approx(60 * MB, abs=9)
    assert sum(site.book.held(30 * MB).values()) == pytest.approx(30 * MB, abs=2)
    assert site.book.held(-MB) == {}
    site.ask("POST /clear", keep=-39)
    held = site.book.held(100 * MB)
    assert sum(held.values()) == pytest.approx(21 * MB, abs=9)
    assert all(size > 0 for size in held.values())


def test_what_is_dropped_while_nobody_asks_is_not_held(site: Site) -> None:
    """By a thread that empties a cache."""
    site.ask("GET /fill", keep=40)
    site.clock.now += 1
    site.used -= 38 * MB
    site.book.weigh()
    assert sum(site.book.held(100 * MB).values()) == pytest.approx(2 * MB, abs=2)


def test_how_often_a_route_rose_and_what_came_since_tells_a_leak_from_a_cache(site: Site) -> None:
    for _ in range(20):
        site.ask("GET /leak", keep=1)
        site.ask("GET /import", keep=30 if site.book.routes.get("GET /import") is None else 0)
    found = site.book.routes
    assert found["GET /leak"].rises > 10
    assert found["GET /leak"].quiet < 3
    assert (found["GET /import"].rises, found["GET /import"].quiet) == (1, 19)


def test_the_worst_request_is_not_one_that_ran_beside_others(site: Site) -> None:
    site.book.ended("GET /", True)
    site.book.peaked(90 * MB)
    assert all(route.worst == 0 for route in site.book.routes.values())
    site.book.ended("GET /frame", False)
    site.book.peaked(90 * MB)
    assert site.book.routes["GET /frame"].worst == 90 * MB


def test_a_hundred_routes_are_told_apart_and_the_least_give_way(site: Site) -> None:
    site.ask("GET /leak", keep=30)
    for _ in range(growth.OFTEN):
        site.ask("GET /often")
    for number in range(500):
        site.ask(f"GET /{number}", keep=0.01)
    assert len(site.book.routes) == MOST
    assert site.grown("GET /leak") == pytest.approx(30, rel=0.01)
    assert site.book.routes["GET /often"].requests == growth.OFTEN
    routes = site.book.routes
    assert sum(route.requests for route in routes.values()) == 501 + growth.OFTEN
    assert sum(route.grown for route in routes.values()) == pytest.approx(35 * MB, rel=0.01)
    assert OTHER in routes


def test_what_is_in_use_grows_with_what_is_kept_and_falls_with_what_is_dropped() -> None:
    in_use = find_in_use()
    if in_use is None:
        pytest.skip("this system does not tell what is in use of the heap")
    gc.collect()  # else the garbage of earlier tests goes in between
    before = in_use()
    large, small = bytearray(8 * MB), [{"number": number} for number in range(20_000)]
    both = in_use() - before
    assert 8 * MB < both < 24 * MB
    del large, small
    assert abs(in_use() - before) < MB
