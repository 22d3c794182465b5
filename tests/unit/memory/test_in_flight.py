"""Which requests are in flight."""

from __future__ import annotations

from lowmem_wsgi.memory.in_flight import InFlight


def test_requests_count_from_enter_to_leave() -> None:
    in_flight = InFlight()
    first, second = (in_flight.enter("GET", path, app=1) for path in ("/a", "/b"))
    assert in_flight.count() == 2
    in_flight.leave(first)
    in_flight.leave(first)
    assert in_flight.count() == 1
    assert (in_flight.latest, in_flight.total) == (second, 2)
    assert in_flight.here() == ("GET", "/b")


def test_the_rank_is_among_the_requests_of_the_same_app() -> None:
    in_flight = InFlight()
    numbers = [in_flight.enter("GET", "/", app) for app in (1, 2, 1)]
    assert [in_flight.rank(number) for number in numbers] == [1, 1, 2]


def test_after_a_fork_there_are_none_and_the_count_goes_on() -> None:
    in_flight = InFlight()
    count = in_flight.count
    of_the_parent = in_flight.enter("GET", "/", app=1)
    in_flight.forget()
    assert count() == in_flight.count() == 0
    in_flight.enter("GET", "/", app=1)
    in_flight.leave(of_the_parent)
    assert count() == in_flight.count() == 1
