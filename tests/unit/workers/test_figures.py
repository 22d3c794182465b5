"""What a site has counted: each worker writes its own figures, and whoever reads adds them up."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helpers.fakes import MB, Clock
from helpers.forks import child, fork, kill, together
from lowmem_wsgi.memory.attribution import OTHER, Route
from lowmem_wsgi.metrics import NAMES
from lowmem_wsgi.workers.figures import ROUTES, SIZE, Figures, RouteFigures, total
from lowmem_wsgi.workers.record import SIDES_SIZE, WORKER, TwoSides, record_at
from lowmem_wsgi.workers.shared_page import PLACES, SharedPage

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@pytest.fixture
def page() -> Iterator[SharedPage]:
    page = SharedPage.private()
    yield page
    page.close()


def route(name: str, requests: int, shared: int = 0, **more: int) -> Route:
    found = Route(name)
    found.requests, found.shared = requests, shared
    for field, value in more.items():
        setattr(found, field, value)
    return found


def routes(page: SharedPage) -> dict[str, RouteFigures]:
    return dict(page.figures().routes)


def requests(page: SharedPage) -> float:
    return page.figures().counters["requests"]


def killed(page: SharedPage, work: Callable[[], object]) -> None:
    """A worker does something, is killed, and nobody has folded it in yet."""
    with child(work) as pid:
        kill(pid)
    assert [seen.pid for seen in page.workers()] == [pid]


def fold_in_all(page: SharedPage) -> None:
    for seen in page.workers():
        page.fold_in(seen)


# --- Counters


def test_what_a_worker_has_counted_is_there_when_it_has_written_it_down(page: SharedPage) -> None:
    record = page.claim(MB)
    assert page.figures().counters == dict.fromkeys(NAMES, 0)
    record.flush({"requests": 3, "gc_seconds": 0.25})
    record.flush({"requests": 5, "shed": 1})
    counters = page.figures().counters
    assert (counters["requests"], counters["gc_seconds"], counters["shed"]) == (5, 0.25, 1)
    assert counters["recycles"] == 0
    record.count("recycles")
    record.flush({"requests": 5})
    assert page.figures().counters["recycles"] == 1


def test_what_falls_is_not_taken_away(page: SharedPage) -> None:
    """An app that is closed takes its counts with it; what it had counted was."""
    record = page.claim(MB)
    record.flush({"requests": 3})
    record.flush({"requests": 0})
    assert requests(page) == 3
    record.flush({"requests": 2})
    assert requests(page) == 5


def test_what_was_counted_before_the_process_was_a_worker_is_not_counted_twice(
    page: SharedPage,
) -> None:
    record = page.claim(MB, {"requests": 40, "cleanups": 1})
    record.flush({"requests": 40, "cleanups": 1})
    assert requests(page) == 0
    record.flush({"requests": 42, "cleanups": 1})
    assert (requests(page), page.figures().counters["cleanups"]) == (2, 0)


def test_a_place_that_is_given_up_leaves_its_counts_and_frees_itself(page: SharedPage) -> None:
    record = page.claim(MB)
    record.flush({"requests": 3}, [route("GET /", 3)], {"GET /": 5 * MB})
    for _ in range(3):
        page.give_up(record)
    assert page.workers() == []
    found = routes(page)["GET /"]
    # The process goes on, so nothing that it holds is gone with it.
    assert (requests(page), found.requests, found.held, found.gone) == (3, 3, 0, 0)
    again = page.claim(MB)
    again.flush({"requests": 4})
    assert requests(page) == 7


@needs_fork
def test_a_dead_workers_counts_are_there_before_it_is_folded_in_and_after_it(
    page: SharedPage,
) -> None:
    def work() -> None:
        page.claim(MB).flush({"requests": 7}, [route("GET /", 7)])

    killed(page, work)
    for _ in range(3):
        assert (requests(page), routes(page)["GET /"].requests) == (7, 7)
        fold_in_all(page)
    assert page.workers() == []


@needs_fork
def test_one_that_dies_between_folding_in_and_freeing_the_place_folds_in_once(
    page: SharedPage,
) -> None:
    def work() -> None:
        page.claim(MB).flush({"requests": 7})

    killed(page, work)
    (dead,) = page.workers()

    def dies(place: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    pid = fork()
    if pid == 0:
        page.free = dies  # type: ignore[method-assign]
        page.fold_in(dead)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    (again,) = page.workers()
    page.fold_in(again)
    assert page.workers() == []
    assert requests(page) == 7


# --- Several processes at once


@needs_fork
def test_workers_that_write_at_once_lose_nothing_in_ten_thousand_flushes(page: SharedPage) -> None:
    def work() -> None:
        record = page.claim(MB)
        for number in range(1, 2501):
            record.flush({"requests": number}, [route("GET /", number, worst=number)])

    together(4, work)
    for _ in range(2):
        found = routes(page)["GET /"]
        assert (requests(page), found.requests, found.worst) == (10_000, 10_000, 2500)
        fold_in_all(page)


@needs_fork
def test_a_reader_sees_one_flush_whole_and_never_less_than_before(page: SharedPage) -> None:
    def work() -> None:
        record, number = page.claim(MB), 0
        while True:
            number += 1
            counters = dict.fromkeys(NAMES, number)
            # Other routes than before, on the same rows.
            names = [f"GET /{number % 3}/{row}" for row in range(30)]
            record.flush(counters, [route(name, number, number) for name in names])

    before = 0.0
    with child(work, stays=False):
        until(lambda: requests(page) > 0)
        for _ in range(1500):
            counters, table = page.figures()
            (number,) = set(counters.values())
            assert {(row.requests, row.shared) for row in table.values()} == {(number, number)}
            assert set(table) == {f"GET /{number % 3:.0f}/{row}" for row in range(30)}
            assert number >= before
            before = number
    assert before > 100


@needs_fork
def test_a_worker_that_is_killed_as_it_writes_leaves_a_flush_that_is_whole(
    page: SharedPage,
) -> None:
    def work() -> None:
        record, number = page.claim(MB), 0
        while True:
            number += 1
            names = [f"GET /{number % 3}/{row}" for row in range(90)]
            counters = dict.fromkeys(NAMES, number)
            record.flush(counters, [route(name, number) for name in names])

    chance, last = random.Random(5), 0.0
    for _ in range(40):
        with child(work, stays=False) as pid:
            until(partial(counted_more, page, last))
            for _ in range(chance.randrange(2000)):
                pass
            kill(pid)
        (dead,) = page.workers()
        assert dead.pid == pid
        fold_in_all(page)
        (after,) = set(page.figures().counters.values())
        assert after > last
        last = after
    found = routes(page)
    assert sum(row.requests for row in found.values()) == 90 * last


class Stops(bytearray):
    """Memory whose writer is killed when it has written so many bytes more."""

    left = 10**6

    def __setitem__(self, where: Any, data: Any) -> None:
        whole = bytes(data) if isinstance(where, slice) else bytes([data])
        start = where.start if isinstance(where, slice) else where
        written = whole[: self.left]
        self.left -= len(written)
        super().__setitem__(slice(start, start + len(written)), written)
        if len(written) < len(whole):
            raise SystemExit


def test_wherever_a_write_stops_what_was_written_before_is_read_whole() -> None:
    old, new = b"o" * 40, b"n" * 60
    for left in range(len(new) + 20):
        memory = Stops(SIDES_SIZE)
        sides = TwoSides(memory, 0)
        for number in range(left % 3 + 1):
            sides.write(old[number:])
        memory.left = left
        with contextlib.suppress(SystemExit):
            sides.write(new)
        assert sides.read() == (old[left % 3 :] if left < len(new) + 9 else new)


@needs_fork
def test_workers_come_and_go_and_a_reader_never_counts_one_twice_or_not_at_all(
    page: SharedPage,
) -> None:
    page.claim(MB).flush({"requests": 1})

    def folds() -> None:
        for number in range(300):
            pid = fork()
            if pid == 0:
                page.after_fork()
                page.claim(MB, now=partial(float, number)).flush({"requests": 1})
                os._exit(0)
            os.waitpid(pid, 0)
            (dead,) = (seen for seen in page.workers() if seen.pid == pid)
            page.fold_in(dead)

    before = 1.0
    with child(folds, stays=False) as pid:
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            now = requests(page)
            assert before <= now <= 301
            before = now
    assert requests(page) == 301


@needs_fork
def test_a_forked_worker_counts_from_nothing_and_leaves_its_masters_record(
    page: SharedPage,
) -> None:
    page.claim(MB).flush({"requests": 5})

    def work() -> None:
        page.after_fork()
        page.claim(MB, {"requests": 5}).flush({"requests": 8})

    with child(work):
        assert requests(page) == 8
        assert len(page.taken()) == 2


@needs_fork
def test_of_more_workers_than_places_no_count_is_lost(page: SharedPage) -> None:
    for place in range(PLACES):
        WORKER.pack_into(page.map, record_at(place), os.getppid(), 1, 1.0, 1.0, 1, 1, 1, 0.0)

    def work() -> None:
        page.after_fork()
        record = page.claim(MB)
        before = requests(page)
        for number in range(1, 4):
            record.flush({"requests": number}, [route("GET /", number)], {"GET /": MB})
            assert requests(page) >= before + number
        page.give_up(record)
        page.give_up(record)

    together(5, work)
    found = routes(page)["GET /"]
    assert (requests(page), found.requests, found.held) == (15, 15, 0)


def counted_more(page: SharedPage, than: float) -> bool:
    return requests(page) > than


def until(holds: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


# --- Routes


def test_routes_add_up_and_the_worst_is_kept(page: SharedPage) -> None:
    def work() -> None:
        record = page.claim(MB)
        record.flush({}, [route("GET /é", 2, 1, worst=4 * MB), route("GET /b", 1)])

    killed(page, work)
    fold_in_all(page)
    page.claim(MB).flush({}, [route("GET /é", 1, worst=3 * MB)], {"GET /é": 2 * MB})
    assert {name: row[:3] for name, row in routes(page).items()} == {
        "GET /é": (3, 1, 4 * MB),
        "GET /b": (1, 0, 0),
    }
    assert routes(page)["GET /é"].held == 2 * MB


def test_of_many_routes_of_dead_workers_the_least_are_counted_together(page: SharedPage) -> None:
    clock = Clock()
    for part in range(4):
        clock.now += 1
        record = page.claim(MB, now=clock)
        names = [f"GET /{part}/{number}" for number in range(80)]
        record.flush({}, [route(name, 1) for name in names] + [route("GET /leak", 1)])
        if part == 0:
            record.flush({}, [route("GET /leak", 1)], {"GET /leak": 50 * MB})
            (seen,) = page.workers()
            page.fold_in(seen)
        else:
            page.give_up(record)
    found = routes(page)
    assert len(found) == ROUTES
    assert found["GET /leak"].gone == 50 * MB
    assert sum(row.requests for row in found.values()) == 3 * 80 + 4
    assert found[OTHER].requests == 3 * 80 + 4 - 4 - (ROUTES - 2)


@needs_fork
def test_what_a_worker_held_is_kept_once_when_that_is_gone(page: SharedPage) -> None:
    def work() -> None:
        page.claim(MB).flush({}, [route("GET /leak", 40)], {"GET /leak": 80 * MB})

    with child(work) as pid:
        assert routes(page)["GET /leak"].held == 80 * MB
        assert page.held(0) == 80 * MB
        kill(pid)
    # It has died, and nobody has folded it in yet; then somebody does, and somebody else.
    for _ in range(3):
        found = routes(page)["GET /leak"]
        assert (found.held, found.gone, found.workers) == (0, 80 * MB, 1)
        fold_in_all(page)
    page.claim(MB).flush({}, [route("GET /leak", 5)], {"GET /leak": 10 * MB})
    found = routes(page)["GET /leak"]
    assert (found.held, found.gone, found.workers) == (10 * MB, 80 * MB, 1)


@needs_fork
def test_what_a_request_took_that_did_not_end_is_nobodys_leak(page: SharedPage) -> None:
    def work() -> None:
        record = page.claim(100 * MB)
        record.flush(
            {},
            [route("GET /", 1), route("GET /leak", 1)],
            {"GET /": 300 * MB, "GET /leak": 100 * MB},
        )
        record.began("GET", "/runaway")
        record.note(400 * MB, 400 * MB)

    killed(page, work)
    for _ in range(2):
        gone = {name: row.gone for name, row in routes(page).items()}
        assert gone == {"GET /": 75 * MB, "GET /leak": 25 * MB}
        fold_in_all(page)


@pytest.mark.parametrize(
    ("rows", "quiet"),
    [
        ([(100, 2, 40)], 40),
        ([(100, 0, 100)], 100),
        # One still grows, and the other never did.
        ([(100, 9, 0), (100, 0, 100)], 0),
        # Both have filled their caches.
        ([(100, 2, 90), (100, 2, 95)], 180),
        # No more than there were.
        ([(100, 2, 90), (10, 0, 10)], 110),
    ],
)
def test_how_long_a_route_has_not_grown_is_told_by_the_worker_that_grew_last(
    rows: list[tuple[int, int, int]], quiet: int
) -> None:
    counters = dict.fromkeys(NAMES, 0.0)
    parts = [
        Figures(counters, {"GET /": RouteFigures(requests=asked, rises=rises, quiet=since)})
        for asked, rises, since in rows
    ]
    assert total(Figures(counters, {}), parts).routes["GET /"].quiet == quiet


# --- The page


@needs_fork
def test_a_page_of_another_version_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "workers-1"
    page = SharedPage.at(str(path))
    page.claim(MB).flush({"requests": 5})
    fold_in_all(page)
    page.close()
    page = SharedPage.at(str(path))
    assert requests(page) == 5
    page.close()
    data = path.read_bytes()
    path.write_bytes(b"lowmem 3" + data[8 : len(data) // 2])
    page = SharedPage.at(str(path))
    assert requests(page) == 0
    assert page.workers() == []
    page.close()


def test_a_workers_figures_take_less_than_17_kb() -> None:
    assert SIZE < 17 * 1024
