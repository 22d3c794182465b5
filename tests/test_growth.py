"""Growth booked to routes, with faults and memory that a test makes up."""

from __future__ import annotations

import mmap
import random
import sys
import threading

import pytest

from lowmem_wsgi.memory import growth
from lowmem_wsgi.memory.growth import MOST, NO_REQUEST, OTHER, Growth

MB = 1024 * 1024
PAGE = growth._PAGE
PAGES = MB // PAGE  # of a megabyte


class Site:
    """Some threads that fault pages in, and what has stayed of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.thread, self.rss = 0, 50 * MB
        self.faults: dict[int, int] = {}
        monkeypatch.setattr(growth, "get_ident", lambda: self.thread)
        self.book = Growth(
            thread_faults=lambda: self.faults.get(self.thread, 0),
            process_faults=lambda: sum(self.faults.values()),
        )
        self.book.weigh(self.rss, alone=True)

    def take(self, mb: float, *, keep: float, thread: int | None = None) -> None:
        thread = self.thread if thread is None else thread
        self.faults[thread] = self.faults.get(thread, 0) + int(mb * PAGES)
        self.rss += int(keep * MB)

    def ask(self, route: str, mb: float = 0, *, keep: float = 0) -> None:
        """A request that is alone."""
        self.take(mb, keep=keep)
        self.book.ended(route, False)
        self.book.weigh(self.rss, alone=True)

    def grown(self, route: str) -> float:
        return self.book.routes[route].grown / MB


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(monkeypatch)


def test_a_request_that_is_alone_is_booked_all_that_has_come(site: Site) -> None:
    site.ask("GET /", 1)
    site.ask("GET /export", 8, keep=8)
    site.ask("GET /", 1)
    assert (site.grown("GET /"), site.grown("GET /export")) == (0, 8)
    assert site.book.routes["GET /export"].worst == 8 * MB
    assert site.book.routes["GET /"].requests == 2


def test_what_is_given_back_is_taken_back_from_who_had_it(site: Site) -> None:
    site.ask("GET /spike", 60, keep=60)
    site.ask("GET /")
    site.rss -= 59 * MB
    site.ask("GET /")
    assert site.grown("GET /spike") == pytest.approx(1)
    assert site.grown("GET /") == 0
    assert site.book.routes["GET /spike"].worst == 60 * MB


def test_a_route_that_drops_what_another_keeps_is_told_to_have_lost_it(site: Site) -> None:
    site.ask("GET /fill", 40, keep=40)
    site.ask("GET /", keep=-1)
    for _ in range(3):
        site.ask("GET /")
    site.ask("POST /clear", keep=-39)
    assert site.grown("GET /fill") == pytest.approx(39)
    assert site.grown("POST /clear") == pytest.approx(-39)


def test_what_a_cleanup_frees_is_no_requests_doing(site: Site) -> None:
    site.ask("GET /fill", 40, keep=40)
    site.ask("GET /", keep=-1)
    site.rss -= 30 * MB
    site.book.freed(site.rss)
    site.ask("GET /")
    assert site.grown("GET /") == 0
    assert site.grown("GET /fill") == pytest.approx(39)


def test_beside_others_it_is_who_faults_that_is_booked(site: Site) -> None:
    site.take(5, keep=5, thread=1)  # a request in flight
    site.take(1, keep=1)
    site.book.ended("GET /short", True)
    site.book.weigh(site.rss, alone=False)
    assert site.grown("GET /short") <= 1
    site.thread = 1
    site.book.ended("GET /long", True)
    site.book.weigh(site.rss, alone=True)
    assert site.grown("GET /long") == pytest.approx(5, abs=0.1)
    assert site.grown("GET /short") == pytest.approx(1, abs=0.1)
    assert site.book.routes["GET /long"].shared == 1


def test_growth_of_a_thread_of_the_apps_own_is_no_requests(site: Site) -> None:
    site.take(20, keep=20, thread=7)
    site.ask("GET /", 0.1)
    assert site.grown("GET /") < 0.5
    assert site.grown(NO_REQUEST) > 19


def test_where_no_faults_are_told_those_that_overlap_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    book = Growth()
    book.weigh(50 * MB, alone=True)
    book.ended("GET /a", True)
    book.ended("GET /b", True)
    book.weigh(54 * MB, alone=True)
    assert [book.routes[f"GET /{name}"].grown for name in "ab"] == [2 * MB, 2 * MB]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_a_leaky_route_among_nine_is_booked_four_fifths_at_least(
    site: Site, seed: int, threads: int
) -> None:
    """500 requests, one of ten routes at random; one leaks 1 MB a time, another takes 2 MB and
    gives them back. Memory is weighed each 20 steps, or when nobody is in flight."""
    draw = random.Random(seed)
    flights: dict[int, list[int]] = {}
    done = leaked = steps = 0
    while done < 500:
        steps += 1
        for thread in range(threads):
            if thread not in flights:
                if draw.random() < 0.5:
                    flights[thread] = [draw.randrange(10), draw.randrange(1, 10)]
                continue
            flight = flights[thread]
            flight[1] -= 1
            if flight[1]:
                continue
            del flights[thread]
            done += 1
            site.thread, route = thread, flight[0]
            if route == 0:
                site.take(1, keep=1)
                leaked += 1
            elif route == 1:
                site.take(2, keep=0)
            site.book.ended(f"GET /{route}", bool(flights))
            if not flights or steps % 20 == 0:
                site.book.weigh(site.rss, alone=not flights)
    site.thread = -1
    site.book.weigh(site.rss, alone=True)
    routes = sorted(site.book.routes.values(), key=lambda route: -route.grown)
    assert routes[0].name == "GET /0"
    assert leaked * MB * 0.8 <= routes[0].grown <= leaked * MB * 1.2


def test_it_is_still_while_nobody_faults_anything_in(site: Site) -> None:
    assert not site.book.still()  # nobody was there at all
    site.book.ended("GET /", False)
    assert site.book.still()
    site.take(1, keep=0)
    site.book.ended("GET /", False)
    assert not site.book.still()
    site.book.weigh(site.rss, alone=True)
    assert not site.book.still()
    assert site.book.routes["GET /"].requests == 2


def test_take_gives_what_is_new_and_nothing_twice(site: Site) -> None:
    site.ask("GET /", 1)
    site.ask("GET /x", 2, keep=2)
    first = {booking.route: booking for booking in site.book.take()}
    assert (first["GET /x"].requests, first["GET /x"].grown) == (1, 2 * MB)
    assert site.book.take() == []
    site.ask("GET /x", 3, keep=3)
    (second,) = site.book.take()
    assert (second.route, second.requests, second.grown, second.worst) == (
        *("GET /x", 1, 3 * MB, 3 * MB),
    )


def test_a_hundred_routes_are_told_apart_and_the_least_give_way(site: Site) -> None:
    site.ask("GET /leak", 30, keep=30)
    for number in range(500):
        site.ask(f"GET /{number}", 1)
    assert len(site.book.routes) == MOST
    assert site.grown("GET /leak") == 30
    taken = site.book.take()
    assert sum(booking.requests for booking in taken) == 501
    assert site.book.routes[OTHER].requests == 501 - (MOST - 1)
    assert OTHER in {booking.route for booking in taken}


def test_what_is_left_of_many_threads_is_bounded(site: Site) -> None:
    for number in range(3 * growth.THREADS):
        site.thread = number
        site.ask("GET /")
    assert len(site.book._faults) <= growth.THREADS + 1


def test_the_kernel_counts_the_faults_of_this_thread() -> None:
    thread_faults, _ = growth._counters()
    if thread_faults is None:
        pytest.skip("this system does not count a thread's faults")
    before = thread_faults()
    with mmap.mmap(-1, 8 * MB) as fresh:  # and no page that the heap has had before
        for offset in range(0, 8 * MB, PAGE):
            fresh[offset] = 1
    assert thread_faults() - before >= 8 * PAGES * 0.9
    seen = []

    def elsewhere() -> None:
        ours = thread_faults()
        seen.append(thread_faults() - ours)

    other = threading.Thread(target=elsewhere)
    other.start()
    other.join()
    assert seen[0] < PAGES
