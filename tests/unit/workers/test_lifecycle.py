"""A worker among others: when it is replaced, by whom, and what is told of those that died."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from helpers.fakes import MB, Clock, Process
from helpers.forks import asked, child, kill
from helpers.wsgi import call, make_environ
from lowmem_wsgi import LowMemory, runtime
from lowmem_wsgi.memory.attribution import Attribution
from lowmem_wsgi.memory.ceiling import RESERVE_SHARE
from lowmem_wsgi.memory.interrupt import Interrupt
from lowmem_wsgi.memory.levels import CRITICAL, OK, WARN, Levels
from lowmem_wsgi.settings import Settings
from lowmem_wsgi.system.usage import Usage
from lowmem_wsgi.workers import lifecycle as module
from lowmem_wsgi.workers import pages, postmortem, servers
from lowmem_wsgi.workers.lifecycle import Worker as LifeCycle
from lowmem_wsgi.workers.pages import Pages
from lowmem_wsgi.workers.record import (
    GONE,
    READY,
    REPLACED,
    RETIRING,
    WORKER,
    Seen,
    record_at,
)
from lowmem_wsgi.workers.recycling import (
    GIVEN_BACK,
    IN_VAIN,
    LASTED,
    LEAST_LEAD,
    LONGER,
    OLD,
    PATIENCE,
    lead,
)
from lowmem_wsgi.workers.servers import Server, find_server, start_threads
from lowmem_wsgi.workers.shared_page import PLACES, SharedPage

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

LIMIT, WARN_AT, CRITICAL_AT = 512 * MB, 400 * MB, 450 * MB
# A process that lives as long as the tests do, and is not this one.
NEIGHBOUR = os.getppid()


@pytest.fixture(autouse=True)
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A page, and a runtime directory, of the test's own."""
    found = Pages()
    monkeypatch.setattr(runtime, "pages", found)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    yield tmp_path / "lowmem-wsgi"
    runtime.forget()  # who is on the page
    found.close()


class Flying(dict[object, int]):
    """Requests in flight, and their threads."""

    def count(self) -> int:
        return len(self)


class Engine:
    """As much of one as a worker asks for, where memory and time are the test's."""

    def __init__(self, clock: Clock) -> None:
        self.in_flight = Flying()
        self.attribution = Attribution(lambda: 0)
        self.counted = {"requests": 0.0}
        self.interrupt = Interrupt(lambda: self.in_flight, now=clock)
        self.room: int | None = None
        self.holes = 0
        self.hits = 0
        self.hit_at: float | None = None
        self.clock = clock

    def attribute(self) -> None: ...

    def counts(self) -> dict[str, float]:
        return dict(self.counted)

    def met_by_one(self) -> bool:
        return self.hits == 1

    def met_by_all(self) -> bool:
        return self.hits > 1

    def hit_since(self) -> float | None:
        if self.hit_at is None:
            return 0.0 if self.hits else None
        return self.clock.now - self.hit_at


def life_of(
    engine: Engine,
    find: Callable[[], Server | None],
    *,
    levels: Levels | None = None,
    kills: int | None = None,
    rss: Callable[[], int] | None = None,
    uss: int = 20,
    **settings: Any,
) -> LifeCycle:
    return LifeCycle(
        Settings.load(settings, {}),
        runtime.pages,
        levels=levels or Levels(WARN_AT, CRITICAL_AT),
        ceiling=engine,  # type: ignore[arg-type]
        interrupt=engine.interrupt,
        in_flight=engine.in_flight,  # type: ignore[arg-type]
        gc_runner=engine,  # type: ignore[arg-type]
        counts=engine.counts,
        kills=lambda: kills,
        rss=rss,
        uss=lambda: uss * MB,
        now=engine.clock,
        find=find,
    )


class Worker:
    """A worker of a server that replaces it, beside what else the site uses."""

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        rss: int = 50,
        uss: int = 20,
        rest: int = 0,
        size: int = 1,
        served: bool = True,
        kills: int | None = None,
        release: float = LEAST_LEAD / 2,
        kept: float = 0.0,
        listens: bool = True,
        started: bool = True,
        **settings: Any,
    ) -> None:
        """`release`: seconds that a worker before it has taken to be gone; 0 where there was none
        yet."""
        self.clock = clock or Clock()
        self.process = Process(rss * MB)
        self.rest = rest
        self.runtime = Engine(self.clock)
        self.in_flight = self.runtime.in_flight
        self.levels = Levels(WARN_AT, CRITICAL_AT)
        self.replaced: list[bool] = []
        self.patience: list[float] = []

        def replace(at_once: bool, patience: float) -> None:
            self.replaced.append(at_once)
            self.patience.append(patience)

        fake = Server("Fake", os.getpid(), size, replace, kept=lambda: kept, listens=listens)
        self.server = fake if served else None
        self.worker = life_of(
            self.runtime,
            lambda: self.server,
            levels=self.levels,
            kills=kills,
            rss=self.process.read,
            uss=uss,
            **settings,
        )
        if started:
            self.worker.start()
        self.page.change(release=int(release * 1e6))

    @property
    def page(self) -> SharedPage:
        return runtime.pages.page

    @property
    def seen(self) -> Seen:
        assert self.worker.record is not None
        seen = self.page.read(self.worker.record.index)
        assert seen is not None
        return seen

    @property
    def level(self) -> str:
        return self.levels.level

    def began(self, path: str) -> int:
        assert self.worker.record is not None
        return self.worker.record.began("GET", path)

    def asked(self, path: str) -> None:
        """A request came and went."""
        place = self.began(path)
        assert self.worker.record is not None
        self.worker.record.ended(place)

    def live(self, seconds: float, grow: float = 0.0, until: Callable[[], object] = bool) -> None:
        """So long, growing by so many MB a second, a tenth of that a request; until something
        holds."""
        end = self.clock.now + seconds
        while self.clock.now < end and not until():
            self.clock.now += 0.1
            if grow and self.worker.record is not None:
                self.asked("/leak")
            self.process.rss += int(grow * MB / 10)
            self.look()

    def look(self) -> None:
        used = self.process.rss + self.rest * MB
        self.worker.look(Usage(used, LIMIT, "cgroup v2"), self.levels.observe(used))

    def gone(self) -> None:
        """As after its end in order, seen by its master."""
        self.worker.leave()
        self.worker.give_up()


def neighbour(page: SharedPage, place: int, pid: int = NEIGHBOUR, **changes: Any) -> None:
    """Another worker's slot."""
    fields = {"state": READY, "born": 1.0, "seen": 1.0, "born_rss": 50 * MB, "rss": 50 * MB}
    fields |= {"requests": 1, "retired": 0.0, **changes}
    WORKER.pack_into(page.map, record_at(place), pid, *fields.values())


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


# --- A worker that has grown


def test_what_one_request_takes_at_once_is_no_growth() -> None:
    """A cache that is filled: it would be at critical in a moment, if it went on."""
    worker = Worker()
    worker.live(5, grow=0.1)
    worker.process.rss = 390 * MB
    worker.live(5, grow=0.1)
    assert worker.replaced == []


def test_a_worker_that_leaks_is_replaced_once_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker()
    worker.live(60, grow=20, until=lambda: worker.replaced)
    requests = f"in {worker.seen.requests} requests"
    worker.live(20, grow=20)
    assert worker.replaced == [False]
    assert worker.seen.state == RETIRING
    (line,) = lines(caplog)
    for part in ("♻️ recycled at", "of 512 MB", "from 50 MB", requests, "LOWMEM_RECYCLE"):
        assert part in line


def test_one_that_leaks_fast_is_replaced_shortly_before_critical() -> None:
    worker = Worker()
    worker.live(60, grow=20, until=lambda: worker.replaced)
    assert CRITICAL_AT - LEAST_LEAD * 20 * MB <= worker.process.rss < CRITICAL_AT


@pytest.mark.parametrize("release", [0.0, 0.3, 1.0, 5.0])
def test_it_is_replaced_the_sooner_the_longer_a_worker_takes_here_to_be_gone(
    release: float,
) -> None:
    """At a tenth of a processor that is ten times as long."""
    worker = Worker(release=release)
    worker.live(60, grow=20, until=lambda: worker.replaced)
    before = (CRITICAL_AT - worker.process.rss) / (20 * MB)
    assert before == pytest.approx(lead(release), abs=0.11)


def test_connections_that_clients_keep_open_count_as_an_end_that_took_as_long() -> None:
    worker = Worker(release=0.3, kept=2.0)
    worker.live(60, grow=20, until=lambda: worker.replaced)
    before = (CRITICAL_AT - worker.process.rss) / (20 * MB)
    assert before == pytest.approx(lead(2.0), abs=0.11)


@pytest.mark.parametrize("grow", [20, 100])
def test_connections_without_a_request_are_kept_for_half_of_the_time_that_memory_lasts(
    grow: int,
) -> None:
    worker = Worker(kept=2.0)
    worker.live(60, grow=grow, until=lambda: worker.replaced)
    (patience,) = worker.patience
    room = LIMIT * (1 - RESERVE_SHARE) - worker.process.rss
    assert patience == pytest.approx(room / (grow * MB) / 2, rel=0.1)


@pytest.mark.parametrize("age", [0.02, 0.5, 5.0])
def test_before_a_worker_has_gone_a_fresh_ones_start_says_how_long_it_takes(
    monkeypatch: pytest.MonkeyPatch, age: float
) -> None:
    """Measured in a worker that is started before its first request."""
    monkeypatch.setattr(module, "process_seconds", lambda: age)
    worker = Worker(release=0.0, started=False)
    worker.worker.start(fresh=True)
    worker.live(60, grow=20, until=lambda: worker.replaced)
    before = (CRITICAL_AT - worker.process.rss) / (20 * MB)
    assert before == pytest.approx(lead(LONGER * age), abs=0.11)


@pytest.mark.parametrize(
    ("age", "fresh", "started_in"),
    [(0.7, True, 0.7), (3.0, True, 3.0), (0.0, True, 1.0), (0.7, False, 0.7), (3.0, False, 1.0)],
)
def test_what_a_start_takes_is_measured_where_the_system_tells(
    monkeypatch: pytest.MonkeyPatch, age: float, fresh: bool, started_in: float
) -> None:
    """A worker is replaced at critical when it is as old as that. One that is started by its first
    request may have waited for that: its start is taken to need a second at most."""
    monkeypatch.setattr(module, "process_seconds", lambda: age)
    worker = Worker(started=False)
    worker.worker.start(fresh=fresh)
    worker.process.rss = 470 * MB
    worker.live(started_in - 0.15)
    assert worker.replaced == []
    worker.live(0.3)
    assert worker.replaced == [False]


def test_it_is_noted_when_a_worker_was_told_to_end() -> None:
    worker = Worker()
    worker.live(60, grow=20, until=lambda: worker.replaced)
    assert worker.seen.retired == worker.clock.now
    worker.live(1)
    worker.worker.leave()
    assert worker.seen.retired == pytest.approx(worker.clock.now - 1)


def test_a_slow_leak_is_seen_to_at_warn_when_it_has_lasted() -> None:
    worker = Worker()
    worker.live(OLD, grow=5.8)
    assert worker.level == OK
    worker.live(LASTED, grow=1)
    assert worker.level == WARN
    assert worker.replaced == []
    worker.live(2, grow=1)
    assert worker.replaced == [False]
    assert worker.process.rss < CRITICAL_AT - 30 * MB


def test_memory_that_is_ok_replaces_nobody() -> None:
    worker = Worker()
    worker.process.rss = 390 * MB
    worker.live(600)
    assert worker.replaced == []


def test_nobody_is_replaced_where_that_is_off() -> None:
    worker = Worker(recycle="off")
    worker.live(60, grow=20)
    assert worker.level == CRITICAL
    assert (worker.replaced, worker.seen.state) == ([], READY)


def test_where_the_server_cannot_do_it_one_line_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker(served=False)
    worker.live(120, grow=20)
    (line,) = lines(caplog)
    assert "cannot replace it" in line
    assert "Gunicorn" in line
    assert worker.seen.state == READY
    assert not worker.worker.retiring


def test_a_worker_that_is_born_too_big_is_told_of_once_and_never_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker(rss=455)
    worker.live(120)
    assert worker.level == CRITICAL
    assert worker.replaced == []
    (line,) = lines(caplog)
    for part in (
        "Not recycling: a fresh worker would be as large",
        "455 MB at start",
        "larger plan",
    ):
        assert part in line


def test_a_worker_is_not_replaced_before_it_is_so_old_that_it_was_worth_its_start() -> None:
    worker = Worker()
    worker.process.rss = 470 * MB
    worker.live(module.LONGEST_START - 0.2)
    assert worker.level == CRITICAL
    assert worker.replaced == []
    worker.live(0.4)
    assert worker.replaced == [False]


@pytest.mark.parametrize("ends", [True, False])
def test_a_busy_worker_is_replaced_when_it_comes_to_rest_or_when_it_lasts(
    ends: bool,
) -> None:
    worker = Worker()
    worker.in_flight.update(request=0)
    worker.live(5)
    worker.process.rss = 460 * MB  # it stands at critical, where it has got at once
    worker.live(PATIENCE - 0.2)
    assert worker.level == CRITICAL
    assert worker.replaced == []
    if ends:
        worker.in_flight.clear()
        worker.live(0.1)
    else:
        worker.live(0.5)
    assert worker.replaced == [False]


def test_a_busy_worker_is_replaced_at_once_where_there_is_no_time() -> None:
    worker = Worker()
    worker.in_flight.update(request=0)
    worker.live(60, grow=30, until=lambda: worker.replaced)
    assert worker.process.rss <= CRITICAL_AT


def test_the_request_that_holds_what_has_grown_is_waited_for() -> None:
    worker = Worker()
    worker.live(5)
    worker.process.rss = 460 * MB
    # For as long as it is in flight.
    worker.runtime.interrupt.grown = 300 * MB
    worker.live(10 * PATIENCE)
    assert worker.level == CRITICAL
    assert worker.replaced == []
    worker.runtime.interrupt.grown = 0
    worker.live(0.1)
    assert worker.replaced == [False]


def test_who_meets_the_ceiling_alone_is_waited_for_and_who_all_meet_is_not() -> None:
    worker = Worker()
    worker.live(5)
    worker.process.rss = 460 * MB
    worker.runtime.hits = 1
    worker.live(1)
    assert worker.replaced == []
    worker.runtime.hits = 2
    worker.live(0.1)
    assert worker.replaced == [False]


@pytest.mark.parametrize(("holds", "replaced"), [(200, [False]), (100, [])])
def test_one_whose_ceiling_was_met_while_it_holds_much_is_replaced_at_any_level(
    holes_or_not: bool, holds: int, replaced: list[bool]
) -> None:
    """A leak, what a caught MemoryError left behind, or holes: a fresh one has the room."""
    worker = Worker()
    if not holes_or_not:
        worker.process.rss += holds * MB
    worker.live(20)
    worker.runtime.holes = holds * MB if holes_or_not else 0
    worker.live(20)
    assert worker.replaced == []
    worker.runtime.hit_at = worker.clock.now
    worker.live(GIVEN_BACK - 0.15)
    assert worker.replaced == []
    worker.live(0.3)
    assert worker.level == OK
    assert worker.replaced == replaced


@pytest.fixture(params=[False, True], ids=["in use", "holes"])
def holes_or_not(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_a_worker_that_all_requests_find_full_is_replaced_whatever_the_level() -> None:
    worker = Worker()
    worker.live(20, grow=5)
    worker.runtime.hits = 1
    worker.live(1)
    assert worker.replaced == []
    worker.runtime.hits = 2
    worker.live(0.2)
    assert worker.level == OK
    assert worker.replaced == [False]


@pytest.mark.parametrize(("slow", "at"), [(True, 250 * MB), (False, CRITICAL_AT - 5 * MB)])
def test_one_that_a_slow_request_would_keep_is_replaced_while_there_is_room_for_both(
    slow: bool, at: int
) -> None:
    """Others come and go, and leave something behind."""
    worker = Worker()
    worker.live(1)
    if slow:
        worker.began("/slow")
    while not worker.replaced and worker.process.rss < LIMIT:
        for _ in range(3):
            worker.asked("/leaks")
        worker.live(0.1, grow=20)
    assert abs(worker.process.rss - at) <= 5 * MB


def test_what_other_workers_give_back_as_they_end_hides_no_growth() -> None:
    """Of three that leak, one ends every 0.3 s, and this one is never idle."""
    worker = Worker(rest=100)
    worker.live(1)
    worker.in_flight.update(request=0)
    for turn in range(60):
        if worker.replaced:
            break
        worker.rest += -50 if turn % 3 == 2 else 30
        worker.asked("/leaks")
        worker.live(0.1, grow=100)
    assert worker.replaced == [False]
    assert CRITICAL_AT - 100 * MB < worker.process.rss + worker.rest * MB <= CRITICAL_AT + 10 * MB


def test_two_large_requests_among_four_are_no_growth() -> None:
    """A cache is filled, and something large is loaded: all in a tenth of a second."""
    worker = Worker()
    worker.live(1)
    for grown, requests in ((100, 1), (200, 3)):
        for _ in range(requests):
            worker.asked("/")
        worker.clock.now += 0.05
        worker.process.rss += grown * MB
        worker.look()
    assert worker.level == OK
    assert worker.replaced == []


def test_its_own_ceiling_counts_as_well_as_the_sites_memory() -> None:
    worker = Worker(rest=200)
    worker.live(5)
    worker.runtime.room = 60 * MB
    for _ in range(100):
        if worker.replaced:
            break
        worker.live(0.1, grow=50)
        worker.runtime.room -= 5 * MB
    assert worker.level == OK
    assert worker.replaced == [False]
    assert 0 < worker.runtime.room < 20 * MB


# --- How it is replaced


@pytest.mark.parametrize(
    ("master", "listens", "uss", "at_once"),
    [
        (True, True, 20, True),
        (False, True, 20, False),
        (True, False, 20, False),
        (True, True, 150, False),
    ],
    ids=["it waits for nobody", "no such master", "a master of another user", "no room"],
)
def test_a_fresh_one_starts_beside_it_where_there_is_a_master_for_that_and_room(
    master: bool, listens: bool, uss: int, at_once: bool
) -> None:
    worker = Worker(uss=uss, listens=listens)
    worker.page.change(master=os.getpid() if master else 0)
    worker.live(5)
    worker.live(2, grow=600, until=lambda: worker.replaced)
    assert worker.replaced == [at_once]
    assert worker.seen.state == (REPLACED if at_once else RETIRING)
    assert worker.seen.replaced is at_once


def test_a_worker_that_is_on_its_way_out_acts_no_more() -> None:
    worker = Worker()
    assert not worker.worker.retiring
    worker.live(60, grow=20, until=lambda: worker.replaced)
    assert worker.worker.retiring


def test_one_that_has_been_replaced_is_not_once_more_as_it_ends() -> None:
    worker = Worker()
    worker.live(60, grow=20, until=lambda: worker.replaced)
    worker.worker.leave()  # and its monitor looks on, for as long as that takes
    worker.live(60, grow=20)
    assert len(worker.replaced) == 1


def test_another_that_has_grown_more_is_replaced_first() -> None:
    worker = Worker(size=2, rest=100)
    neighbour(worker.page, 7, born_rss=50 * MB, rss=500 * MB)
    worker.live(60, grow=20, until=lambda: worker.level == CRITICAL)
    worker.live(1)
    assert worker.replaced == []
    neighbour(worker.page, 7, born_rss=50 * MB, rss=60 * MB)
    worker.live(0.1)
    assert worker.replaced == [False]


@needs_fork
def test_it_waits_for_another_that_is_not_back_yet_but_not_for_ever() -> None:
    worker = Worker(size=2, rest=100)
    path = worker_page(worker)
    worker.live(5)
    worker.process.rss = 360 * MB
    worker.live(29)
    assert worker.level == CRITICAL
    assert worker.replaced == []
    assert asked(lambda: SharedPage.at(path).take_turn())  # it does not keep the turn meanwhile
    worker.live(2)
    assert worker.replaced == [False]


def test_one_that_is_back_in_the_meantime_ends_the_wait() -> None:
    worker = Worker(size=2, rest=100)
    worker.live(5)
    worker.process.rss = 360 * MB
    worker.live(3)
    neighbour(worker.page, 7, 2**31 - 5)  # gone, and still on the page
    worker.live(0.1)
    assert worker.replaced == []
    neighbour(worker.page, 7)
    worker.live(0.1)
    assert worker.replaced == [False]


@needs_fork
def test_one_worker_is_replaced_at_a_time_also_when_it_dies_meanwhile() -> None:
    worker = Worker()
    path = worker_page(worker)

    keep: list[SharedPage] = []

    def stay() -> None:
        keep.append(SharedPage.at(path))
        assert keep[0].take_turn()

    with child(stay) as pid:
        worker.live(60, grow=20)
        assert worker.level == CRITICAL
        assert worker.replaced == []
        kill(pid)
        worker.live(0.1)
        assert worker.replaced == [False]


@needs_fork
def test_the_turn_is_the_next_ones_once_a_fresh_worker_is_ready() -> None:
    worker = Worker()
    path = worker_page(worker)

    def free() -> bool:
        return SharedPage.at(path).take_turn()

    worker.live(60, grow=20, until=lambda: worker.replaced)
    worker.live(1)
    assert asked(free) is False
    neighbour(worker.page, 7)
    worker.look()
    assert asked(free) is True


@needs_fork
@pytest.mark.parametrize(
    ("serving", "seconds"), [(True, LEAST_LEAD), (False, lead(1.0))], ids=["serving", "idle"]
)
def test_beside_a_fresh_worker_an_old_one_keeps_its_turn_for_its_end_unless_a_request_keeps_it(
    serving: bool, seconds: float
) -> None:
    worker = Worker(release=1.0)
    path = worker_page(worker)

    def free() -> bool:
        return SharedPage.at(path).take_turn()

    worker.live(60, grow=20, until=lambda: worker.replaced)
    if serving:
        worker.in_flight[1] = threading.get_ident()
    neighbour(worker.page, 7)
    worker.live(seconds - 0.15)
    assert asked(free) is False
    worker.live(0.3)
    assert asked(free) is True


def worker_page(worker: Worker) -> str:
    assert worker.server is not None
    return os.path.join(os.environ["XDG_RUNTIME_DIR"], "lowmem-wsgi", pages.file_name(os.getpid()))


# --- In vain


def test_when_fresh_workers_come_back_to_it_they_are_let_be(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, replaced = Clock(), 0
    for _ in range(IN_VAIN + 2):
        worker = Worker(clock, rest=380)
        worker.live(3)
        worker.live(30, grow=20)
        replaced += len(worker.replaced)
        worker.gone()
    assert replaced == IN_VAIN
    assert runtime.pages.page.in_vain == IN_VAIN
    assert len([line for line in lines(caplog) if "recycled" in line]) == IN_VAIN
    (line,) = [line for line in lines(caplog) if "soon grew as large" in line]
    assert "Not recycling" in line


def test_memory_that_is_ok_again_makes_it_worth_trying_again() -> None:
    clock, seen = Clock(), []
    for rest in (380, 380, 0, 380, 380, 380, 380):
        worker = Worker(clock, rest=rest)
        worker.live(3)
        if rest:
            worker.live(30, grow=20)
        seen.append((bool(worker.replaced), worker.page.in_vain))
        worker.gone()
    assert [in_vain for _, in_vain in seen] == [1, 2, 0, 1, 2, 3, 3]
    assert [replaced for replaced, _ in seen] == [True, True, False, True, True, True, False]


def test_a_fresh_worker_does_not_take_its_first_reading_for_memory_being_well() -> None:
    """Its level is ok until it has seen two."""
    worker = Worker(rest=400)
    worker.page.change(in_vain=2)
    worker.look()
    assert worker.level == OK
    assert worker.page.in_vain == 2


def test_two_that_are_replaced_together_are_one_attempt() -> None:
    worker = Worker(rest=100)
    neighbour(worker.page, 7, state=RETIRING, rss=500 * MB)
    worker.live(20, grow=20)
    assert worker.replaced == [False]
    assert worker.page.in_vain == 0


# --- How many there are


@pytest.mark.parametrize(
    ("size", "others", "expected"),
    [
        (1, [], 1),
        (3, [], 3),
        (1, [{}], 2),
        (1, [{"state": RETIRING}], 1),
        (1, [{"state": READY | GONE}], 1),
        (1, [{"pid": 2**31 - 5}], 1),
        (2, [{}, {"state": REPLACED}], 2),
        (2, [{}, {}], 3),
    ],
)
def test_the_room_is_shared_by_those_at_work_and_those_the_server_will_start(
    size: int, others: list[dict[str, Any]], expected: int
) -> None:
    worker = Worker(size=size)
    for place, changes in enumerate(others, 5):
        neighbour(worker.page, place, **changes)
    assert worker.worker.count() == expected


def test_without_a_server_it_is_one() -> None:
    assert Worker(served=False).worker.count() == 1


@needs_fork
def test_one_that_is_ending_shares_it_while_what_it_has_in_flight_grows() -> None:
    worker = Worker()
    clock = worker.clock

    def slow() -> None:
        slot = runtime.pages.page.claim(50 * MB, now=clock)
        slot.began("GET", "/slow")
        slot.enter(RETIRING)
        slot.note(50 * MB, 100 * MB)
        clock.now += 1
        slot.note(80 * MB, 100 * MB)

    with child(slow):
        clock.now += 1
        assert worker.worker.count() == 2
        clock.now += 1  # since then it has not
        assert worker.worker.count() == 1


# --- The place on the page


def test_starting_twice_takes_one_place() -> None:
    worker = Worker()
    worker.worker.start()
    assert worker.page.taken() == [0]


def test_without_a_place_it_goes_on() -> None:
    page = runtime.pages.page
    for place in range(PLACES):
        neighbour(page, place)
    worker = Worker(served=False)
    assert len(page.taken()) == PLACES
    worker.asked("/")
    worker.live(60, grow=20)
    worker.worker.abort()
    worker.worker.leave()
    assert worker.replaced == []


def test_apps_that_come_and_go_in_one_process_take_one_place() -> None:
    def ok(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok"]

    before: list[LowMemory] = []
    for _ in range(PLACES + 5):
        wrapped = LowMemory(ok)
        assert call(wrapped, make_environ()).body == b"ok"
        assert len(runtime.pages.page.taken()) == 1
        assert wrapped.worker.count() == 1
        wrapped.close()
        before.append(wrapped)
    assert call(before[0], make_environ()).body == b"ok"  # closed, and it still serves


def test_apps_beside_each_other_are_one_crew() -> None:
    one, other = LowMemory(int), LowMemory(int)  # type: ignore[arg-type]
    assert one.worker is other.worker
    found = runtime.current()
    assert found is not None
    assert found.worker is one.worker


@needs_fork
def test_a_child_takes_a_place_of_its_own_and_leaves_its_parents_alone() -> None:
    worker = Worker()
    worker.began("/parent")

    def fork() -> None:
        worker.worker.leave()
        worker.worker.give_up()
        worker.worker.after_fork()
        assert worker.worker.record is None
        worker.worker.start()
        worker.began("/child")

    with child(fork) as pid:
        found = {seen.pid: seen for seen in worker.page.workers()}
    assert found[os.getpid()].state == READY
    assert [request.what for request in found[os.getpid()].in_flight] == ["GET /parent"]
    assert [request.what for request in found[pid].in_flight] == ["GET /child"]


def test_what_is_in_flight_when_it_is_aborted_stays_noted() -> None:
    worker = Worker()
    place = worker.began("/hangs")
    worker.worker.abort()
    assert worker.worker.record is not None
    worker.worker.record.ended(place)
    assert [request.what for request in worker.seen.in_flight] == ["GET /hangs"]


def test_the_page_is_in_the_runtime_directory_and_those_of_dead_servers_are_not(
    site: Path,
) -> None:
    site.mkdir(0o700)
    names = ["workers-2147483643-5", pages.file_name(NEIGHBOUR), "workers-x", "session.key"]
    for name in names:
        (site / name).touch()
    Worker()
    found = sorted(path.name for path in site.iterdir())
    assert found == sorted([*names[1:], pages.file_name(os.getpid())])


def test_where_the_directory_cannot_be_trusted_the_page_is_a_private_one(site: Path) -> None:
    site.mkdir()
    site.chmod(0o755)
    worker = Worker()
    worker.live(60, grow=20)
    assert worker.replaced == [False]
    assert list(site.iterdir()) == []


def test_without_a_server_nothing_is_left_behind(site: Path) -> None:
    Worker(served=False)
    assert not site.exists()


# --- The dead


@pytest.mark.parametrize(
    ("timed_out", "killed", "orderly", "expected"),
    [
        (False, False, True, None),
        (False, True, True, None),  # somebody else was killed
        (True, False, False, postmortem.TIMEOUT),
        (True, False, True, postmortem.TIMEOUT),
        (False, True, False, postmortem.OOM_KILL),
        (True, True, False, postmortem.OOM_KILL),
        (False, False, False, postmortem.CRASH),
    ],
)
def test_causes_of_death_are_told_apart(
    timed_out: bool, killed: bool, orderly: bool, expected: str | None
) -> None:
    assert postmortem.cause(timed_out=timed_out, killed=killed, orderly=orderly) == expected


@pytest.mark.parametrize(
    ("state", "in_flight", "expected"),
    [
        (READY, False, False),
        (READY, True, False),
        (RETIRING, False, True),
        (RETIRING, True, False),
        (REPLACED, False, True),
        (REPLACED, True, False),
        (READY | GONE, False, True),
        (READY | GONE, True, True),
        (RETIRING | GONE, True, True),
    ],
)
def test_who_has_left_in_order_has_said_so_or_had_nothing_left_to_do(
    state: int, in_flight: bool, expected: bool
) -> None:
    worker = Worker()
    if in_flight:
        worker.began("/")
    assert worker.worker.record is not None
    worker.worker.record.enter(state)
    assert postmortem.left_in_order(worker.seen) is expected


def ignored(at_once: bool, patience: float) -> None:
    """The `replace` of a server that is not asked for a fresh worker."""


def dies(do: Callable[[LifeCycle], object]) -> int:
    """A worker of the same server does something and is killed; its pid."""

    server = Server("Fake", os.getpid(), 1, ignored)

    def work() -> None:
        life = life_of(Engine(Clock()), lambda: server)
        life.start()
        assert life.record is not None
        life.record.began("GET", "/export")
        do(life)

    with child(work) as pid:
        kill(pid)
    return pid


def nothing(life: LifeCycle) -> None:
    pass


@needs_fork
@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (0, 1, postmortem.OOM_KILL),
        (3, 4, postmortem.OOM_KILL),
        (3, 3, postmortem.CRASH),
        (None, None, postmortem.CRASH),
    ],
)
def test_where_no_master_does_it_the_next_worker_tells_of_the_death(
    before: int | None, after: int | None, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = Worker(kills=before)
    pid = dies(nothing)
    assert len(first.page.workers()) == 2
    first.gone()
    second = Worker(kills=after)
    (line,) = lines(caplog)
    assert line.startswith(f"💀 worker {pid} died: {expected}. In flight: GET /export")
    assert second.page.deaths == 1
    last = second.worker.last_death()
    assert last is not None
    assert (last["pid"], last["cause"]) == (pid, expected)
    assert [seen.pid for seen in second.page.workers()] == [os.getpid()]
    # And once is enough.
    second.gone()
    Worker(kills=after)
    assert len(lines(caplog)) == 1


@needs_fork
@pytest.mark.parametrize(
    "do",
    [
        lambda life: life.leave(),
        lambda life: (life.record.ended(REQUEST_PLACE), life.record.enter(RETIRING)),
        lambda life: (life.record.ended(REQUEST_PLACE), life.record.enter(REPLACED), life.leave()),
    ],
    ids=["left", "was replaced", "was replaced and left"],
)
def test_an_end_in_order_is_not_told_of(
    do: Callable[[LifeCycle], object], caplog: pytest.LogCaptureFixture
) -> None:
    Worker().gone()
    dies(do)
    worker = Worker()
    assert lines(caplog) == []
    assert worker.page.deaths == 0
    assert [seen.pid for seen in worker.page.workers()] == [os.getpid()]


REQUEST_PLACE = 7  # the first that is given


@needs_fork
def test_one_that_was_killed_while_it_finished_its_requests_is_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def retires(life: LifeCycle) -> None:
        assert life.record is not None
        life.record.enter(RETIRING)

    Worker().gone()
    dies(retires)
    Worker()
    (line,) = lines(caplog)
    assert "GET /export" in line


@needs_fork
def test_where_a_master_does_it_workers_do_not(caplog: pytest.LogCaptureFixture) -> None:
    first = Worker()
    first.page.change(master=os.getpid())
    pid = dies(nothing)
    first.gone()
    worker = Worker()
    assert lines(caplog) == []
    assert [seen.pid for seen in worker.page.workers() if seen.pid == pid] == [pid]


@needs_fork
def test_children_of_a_process_without_a_server_go_as_they_please(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = Worker(served=False)
    page = first.page

    def work() -> None:
        slot = page.claim(MB)
        slot.began("GET", "/")

    with child(work) as pid:
        kill(pid)
    assert len(page.taken()) == 2
    first.gone()
    Worker(served=False)
    assert lines(caplog) == []
    assert len(page.taken()) == 1


@needs_fork
def test_a_worker_that_has_taken_a_dead_ones_place_meanwhile_is_let_be(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two that start together both find the dead one; the other is the first to fold it in."""
    Worker().gone()
    pid = dies(nothing)
    plain = postmortem.cause
    places: list[int] = []

    def cause(**signs: bool) -> str | None:
        (dead,) = (seen for seen in runtime.pages.page.workers() if seen.pid == pid)
        places.append(dead.place)
        runtime.pages.page.free(dead.place)
        neighbour(runtime.pages.page, dead.place)
        return plain(**signs)

    monkeypatch.setattr(postmortem, "cause", cause)
    worker = Worker()
    assert len(places) == 1
    assert sorted(seen.pid for seen in worker.page.workers()) == sorted([NEIGHBOUR, os.getpid()])
    assert lines(caplog) == []


# --- In the master


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """How many OOM kills the container has had."""
    found: list[int | None] = [5]

    class Container:
        def out_of_memory_kills(self) -> int | None:
            return found[0]

        def read(self) -> Usage:
            return Usage(100 * MB, 128 * MB, "cgroup v2")

    monkeypatch.setattr(pages, "Container", Container)
    return found


def test_a_master_lays_out_the_page_before_it_forks(kills: list[int | None]) -> None:
    runtime.pages.lay_out()
    assert (runtime.pages.page.master, runtime.pages.page.kills) == (os.getpid(), 5)
    kills[0] = 6
    runtime.pages.lay_out()  # once: what comes after it is news
    assert runtime.pages.page.kills == 5
    runtime.pages.close()
    kills[0] = None
    runtime.pages.lay_out()
    assert runtime.pages.page.kills == 0


@needs_fork
@pytest.mark.parametrize(
    ("killed", "timed_out", "expected"),
    [
        (0, False, postmortem.CRASH),
        (0, True, postmortem.TIMEOUT),
        (1, False, postmortem.OOM_KILL),
        (1, True, postmortem.OOM_KILL),
    ],
)
def test_a_master_tells_of_the_death(
    kills: list[int | None],
    killed: int,
    timed_out: bool,
    expected: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    runtime.pages.lay_out()
    pid = forked_worker(nothing)
    assert kills[0] is not None
    kills[0] += killed
    assert runtime.pages.worker_gone(pid, timed_out=timed_out) is False
    (line,) = lines(caplog)
    assert line.startswith(f"💀 worker {pid} died: {expected}. In flight: GET /export")
    assert ("→ 128 MB in its last" in line) is bool(killed)  # then the container was at its limit
    assert caplog.records[0].levelno == logging.ERROR
    assert (runtime.pages.page.deaths, runtime.pages.page.kills) == (1, 5 + killed)
    assert runtime.pages.page.workers() == []
    assert runtime.pages.page.master == os.getpid()
    # The next one that dies has not been killed.
    pid = forked_worker(nothing)
    runtime.pages.worker_gone(pid, timed_out=False)
    assert postmortem.CRASH in lines(caplog)[1]


@needs_fork
def test_a_master_is_told_the_peak_of_a_child_that_was_the_largest_so_far(
    kills: list[int | None],
) -> None:
    runtime.pages.lay_out()
    floor = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024

    def grows(life: LifeCycle) -> None:
        block = bytearray(floor + 64 * MB)
        block[::4096] = bytes(len(block[::4096]))

    pid = forked_worker(grows)
    runtime.pages.worker_gone(pid, timed_out=False)
    death = runtime.pages.page.last_death
    assert death is not None
    assert death["rss_bytes"] >= floor + 64 * MB
    pid = forked_worker(nothing)
    runtime.pages.worker_gone(pid, timed_out=False)
    death = runtime.pages.page.last_death
    assert death is not None
    assert death["rss_bytes"] < floor + 64 * MB


@needs_fork
@pytest.mark.parametrize(("state", "replaced"), [(RETIRING, False), (REPLACED, True)])
def test_a_master_hears_whether_another_was_started_in_its_place(
    kills: list[int | None], state: int, replaced: bool, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.pages.lay_out()

    def leaves(life: LifeCycle) -> None:
        assert life.record is not None
        life.record.enter(state)
        life.leave()

    pid = forked_worker(leaves)
    assert runtime.pages.worker_gone(pid, timed_out=False) is replaced
    assert lines(caplog) == []
    assert runtime.pages.page.workers() == []


@needs_fork
@pytest.mark.parametrize(
    ("state", "leaves", "measured"),
    [
        (RETIRING, True, True),
        (REPLACED, True, True),
        (RETIRING, False, False),  # killed in the middle of what it was finishing
        (READY, True, False),  # its server ends, or its time was up
    ],
)
def test_a_master_measures_how_long_a_replaced_worker_takes_to_be_gone(
    kills: list[int | None],
    monkeypatch: pytest.MonkeyPatch,
    state: int,
    leaves: bool,
    measured: bool,
) -> None:
    runtime.pages.lay_out()

    def ends(life: LifeCycle) -> None:
        assert life.record is not None
        life.record.enter(state)
        if leaves:
            life.leave()

    pid = forked_worker(ends)
    (seen,) = runtime.pages.page.workers()
    monkeypatch.setattr(time, "monotonic", lambda: seen.retired + 0.75)
    runtime.pages.worker_gone(pid, timed_out=False)
    assert runtime.pages.page.release == (pytest.approx(0.75, abs=1e-5) if measured else 0)


def test_a_worker_that_is_not_on_the_page_is_none_of_it(
    kills: list[int | None], caplog: pytest.LogCaptureFixture
) -> None:
    runtime.pages.lay_out()
    kills[0] = 6
    assert runtime.pages.worker_gone(2**31 - 5, timed_out=True) is False
    assert lines(caplog) == []


def forked_worker(do: Callable[[LifeCycle], object]) -> int:
    """A worker forked of this process as of its master, killed after it has done something."""
    pid = dies(do)
    assert [seen.pid for seen in runtime.pages.page.workers()] == [pid]
    return pid


# --- The threads of a pool


def test_all_threads_of_a_pool_are_started_at_once() -> None:
    with ThreadPoolExecutor(4) as pool:
        start_threads(pool.submit, 4)
        assert len(pool._threads) == 4


@pytest.mark.parametrize("count", [0, -1])
def test_none_are_where_there_are_none(count: int) -> None:
    with ThreadPoolExecutor(4) as pool:
        start_threads(pool.submit, count)
        assert len(pool._threads) == 0


def test_a_pool_that_is_smaller_than_it_says_holds_nobody_up() -> None:
    with ThreadPoolExecutor(1) as pool:
        start_threads(pool.submit, 2)
        assert pool.submit(int).result(5) == 0


@pytest.mark.parametrize("within", [False, True])
def test_a_worker_has_its_server_start_the_others(within: bool) -> None:
    """Within: its first request is served by one of them."""
    submitted: list[object] = []
    server = Server("Fake", os.getpid(), 1, ignored, 3, submitted.append)
    life = life_of(Engine(Clock()), lambda: server)
    if within:
        thread = threading.Thread(target=life.start)
        thread.start()
        thread.join()
    else:
        life.start()
    assert len(submitted) == 3 - within


# --- The servers


def test_a_process_that_no_server_has_started_has_none() -> None:
    assert find_server() is None


def test_a_module_of_the_same_name_is_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("uwsgi", "mod_wsgi", "gunicorn.workers.base"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    assert find_server() is None


@pytest.mark.parametrize(
    ("worker", "master", "found"), [(1, 77, True), (1, 0, False), (0, 77, False)]
)
def test_a_worker_of_uwsgi_that_has_a_master_is_reloaded(
    monkeypatch: pytest.MonkeyPatch, worker: int, master: int, found: bool
) -> None:
    uwsgi = types.SimpleNamespace(
        worker_id=lambda: worker, masterpid=lambda: master, numproc=4, threads=2
    )
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *args: sent.append(args))
    server = find_server()
    assert (server is not None) is found
    if server is not None:
        assert server[:3] == ("uWSGI", 77, 4)
        server.replace(False, 1.0)
        assert sent == [(os.getpid(), signal.SIGHUP)]


@pytest.mark.parametrize(("group", "found"), [("shop", True), ("", False)])
def test_a_daemon_process_of_mod_wsgi_is_restarted_and_apaches_own_is_not(
    monkeypatch: pytest.MonkeyPatch, group: str, found: bool
) -> None:
    mod_wsgi = types.SimpleNamespace(process_group=group, maximum_processes=3)
    monkeypatch.setitem(sys.modules, "mod_wsgi", mod_wsgi)
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *args: sent.append(args))
    server = find_server()
    assert (server is not None) is found
    if server is not None:
        assert server[:3] == ("mod_wsgi", os.getppid(), 3)
        server.replace(False, 1.0)
        assert sent == [(os.getpid(), signal.SIGUSR1)]


class GunicornWorker:
    """As much of gunicorn.workers.base.Worker as is looked at."""

    def __init__(self) -> None:
        self.ppid = os.getppid()
        self.cfg = types.SimpleNamespace(workers=2, threads=3)

    def handle_exit(self, number: int, frame: object) -> None:
        raise AssertionError("signalled")


class TornadoWorker(GunicornWorker):
    pass


@pytest.fixture
def gunicorn(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[GunicornWorker], None]]:
    base = types.SimpleNamespace(Worker=GunicornWorker)
    monkeypatch.setitem(sys.modules, "gunicorn.workers.base", base)
    before = signal.getsignal(signal.SIGTERM)

    def runs(worker: GunicornWorker) -> None:
        signal.signal(signal.SIGTERM, worker.handle_exit)

    yield runs
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("at_once", [False, True])
def test_a_worker_of_gunicorns_ends_and_has_another_started_before_if_that_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
    gunicorn: Callable[[GunicornWorker], None],
    at_once: bool,
) -> None:
    gunicorn(GunicornWorker())
    server = find_server()
    assert server is not None
    assert server[:3] == ("Gunicorn", os.getppid(), 2)
    assert server.listens
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    server.replace(at_once, 1.0)
    expected = [(os.getpid(), signal.SIGTERM)]
    assert sent == ([(os.getppid(), signal.SIGTTIN), *expected] if at_once else expected)


def test_a_master_of_another_user_is_not_asked_for_a_worker_more(
    monkeypatch: pytest.MonkeyPatch, gunicorn: Callable[[GunicornWorker], None]
) -> None:
    """`gunicorn --user`, started as root."""

    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    gunicorn(GunicornWorker())
    server = find_server()
    assert server is not None
    assert not server.listens


def test_the_first_requests_of_a_worker_come_together_and_find_one_page() -> None:
    found: list[list[int]] = []

    def second_request() -> None:
        worker.start()
        found.append([seen.pid for seen in worker.alive()])

    other = threading.Thread(target=second_request)

    def find() -> Server:
        other.start()
        other.join(0.2)  # it waits for this thread; if it does not, it is over by then
        return Server("Fake", os.getppid(), 1, ignored)

    worker = life_of(Engine(Clock()), find)
    worker.start()
    other.join(10)
    assert found == [[os.getpid()]]
    assert [seen.pid for seen in worker.alive()] == [os.getpid()]


@pytest.mark.parametrize("kind", ["of another process", "tornado"])
def test_some_workers_of_gunicorns_are_not_replaced(
    gunicorn: Callable[[GunicornWorker], None], kind: str
) -> None:
    worker = TornadoWorker() if kind == "tornado" else GunicornWorker()
    if kind != "tornado":
        worker.ppid = os.getpid()  # forked by the app, with the worker's handlers
    gunicorn(worker)
    assert find_server() is None


def test_a_server_whose_finder_fails_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> Server | None:
        raise AttributeError("another version")

    found = Server("Found", 1, 1, ignored)
    monkeypatch.setattr(servers, "FINDERS", (fails, lambda: None, lambda: found))
    assert find_server() is found


# --- A replacement that was asked for


@pytest.mark.parametrize("waited", [5.0, 31.0])
def test_one_that_is_asked_for_waits_for_no_worker_that_never_comes(waited: float) -> None:
    """Of four workers that the server may run, it runs one."""
    worker = Worker(size=4)
    worker.worker.ask_to_replace()
    worker.live(waited)
    assert bool(worker.replaced) == (waited > 30)
