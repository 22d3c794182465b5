"""The collector: passes, freezing, thawing, giving back, and requests that end together."""

from __future__ import annotations

import gc
import itertools
import mmap
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.fakes import MB, Clock, Process
from helpers.forks import fork
from lowmem_wsgi.memory import gc_runner as module
from lowmem_wsgi.memory.gc_runner import GcRunner, passes_after_requests
from lowmem_wsgi.system import malloc
from lowmem_wsgi.system.malloc import malloc_trim
from lowmem_wsgi.system.procfs import OwnRss


def make(clock: Clock | None = None, memory: Process | None = None, **options: Any) -> GcRunner:
    memory = memory or Process()
    return GcRunner(rss=memory.read, give_back=memory.give_back, now=clock or Clock(), **options)


def full_collections() -> int:
    return int(gc.get_stats()[2]["collections"])


def test_three_full_passes_follow_each_request() -> None:
    collector = make(freeze=False)
    gc.collect()  # what other tests have left, with finalizers of its own
    before = full_collections()
    for _ in range(5):
        collector.after_request()
    assert 15 <= full_collections() - before < 20
    assert collector.runs == 5


def test_the_number_of_passes_is_the_setting() -> None:
    before = full_collections()
    make(passes=0, freeze=False).after_request()
    make(passes=1, freeze=False).after_request()
    assert full_collections() - before == 1


@pytest.mark.parametrize(("gil", "passes"), [(True, 3), (False, 0)])
def test_without_a_gil_no_passes_follow_requests(gil: bool, passes: int) -> None:
    assert passes_after_requests(3, gil) == passes
    collector = make(passes=3, freeze=False, gil=gil)
    collector.demand(3, freeze=False, trim=False)
    before = full_collections()
    collector.after_request()
    assert full_collections() - before == passes


def test_without_a_gil_garbage_goes_once_memory_has_grown() -> None:
    clock, memory = Clock(), Process(50 * MB)
    collector = make(clock, memory, gil=False)
    collector.after_request()
    before = full_collections()
    clock.now += 10
    collector.maintain()
    assert full_collections() == before  # no growth, no collection
    memory.live = memory.rss = 70 * MB
    clock.now += 10
    collector.maintain()
    assert full_collections() > before


def test_what_is_alive_is_frozen_after_the_first_request_and_as_the_app_warms_up() -> None:
    collector = make()
    frozen = []
    kept: list[list[list[int]]] = []
    for _ in range(10):
        kept.append([[] for _ in range(1000)])
        collector.after_request()
        frozen.append(gc.get_freeze_count())
    steps = itertools.pairwise(frozen)
    grew = [run for run, (before, after) in enumerate(steps, 2) if after > before + 900]
    assert frozen[0] > 1000
    assert grew == [2, 4, 8]


def test_nothing_is_frozen_where_freezing_is_off() -> None:
    collector = make(freeze=False)
    before = gc.get_freeze_count()  # Python 3.12 freezes some objects of its own
    for _ in range(10):
        collector.after_request()
    collector.full_collect()
    assert gc.get_freeze_count() < before + 1000


def each_pass(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """What a pass does besides, as a finalizer would."""
    collect = gc.collect

    def and_more() -> int:
        do()
        return collect()

    monkeypatch.setattr(gc, "collect", and_more)


class Slow:
    """Passes that take so many seconds each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
        self.seconds = 0.0
        self._clock = clock
        gc.freeze()  # so that they are quick in truth
        each_pass(monkeypatch, self._take)

    def _take(self) -> None:
        self._clock.now += self.seconds


def test_survivors_that_make_a_run_slow_are_frozen_at_an_idle_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    slow = Slow(monkeypatch, clock)
    collector = make(clock, passes=1)
    collector.runs = 100  # warmed up
    freezes = []
    monkeypatch.setattr(gc, "freeze", lambda: freezes.append(collector.runs))
    slow.seconds = module.SLOW_RUN / 2
    collector.after_request()
    assert freezes == []
    slow.seconds = module.SLOW_RUN * 2
    clock.now += 1.01 * module.SHARED_WITHIN
    collector.after_request(lambda: 1)
    assert freezes == []
    collector.after_request()
    assert freezes == [103]


def test_under_steady_load_slow_runs_are_not_paid_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    slow = Slow(monkeypatch, clock)
    collector = make(clock, passes=1)
    collector.runs = 100
    freezes = []
    monkeypatch.setattr(gc, "freeze", lambda: freezes.append(collector.runs))
    slow.seconds = module.SLOW_BUDGET / 3.5
    for _ in range(8):
        clock.now += 1.01 * module.SHARED_WITHIN
        collector.after_request(lambda: 1)
    assert freezes == [104, 108]


class Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_garbage_frozen_by_accident_is_found_by_the_slow_clock() -> None:
    import weakref

    clock, memory = Clock(), Process()
    collector = make(clock, memory)
    cycle = Cycle()
    gone = weakref.ref(cycle)
    collector.after_request()  # frozen while alive
    del cycle
    memory.live += 5 * MB  # what it holds
    memory.rss = memory.live
    for _ in range(5):
        collector.after_request()
    assert gone() is not None
    clock.now += 599
    collector.after_request()
    assert gone() is None


def test_a_process_that_has_not_grown_is_not_thawed_and_keeps_its_pages_shared(
    monkeypatch: Any,
) -> None:
    thaws = []
    monkeypatch.setattr(gc, "unfreeze", lambda: thaws.append(1))
    clock = Clock()
    collector = make(clock)
    collector.after_fork()
    for _ in range(20):
        clock.now += 400
        collector.after_request()
    assert thaws == []


def test_frozen_garbage_is_found_without_any_growth_where_no_pages_are_shared() -> None:
    import weakref

    clock = Clock()
    collector = make(clock)
    cycle = Cycle()
    gone = weakref.ref(cycle)
    collector.after_request()
    del cycle
    clock.now += 599
    collector.after_request()
    assert gone() is None


def test_what_a_first_pass_lets_go_of_is_not_frozen_as_garbage() -> None:
    import weakref

    collector = make()
    table: weakref.WeakKeyDictionary[Cycle, Cycle] = weakref.WeakKeyDictionary()
    key, value = Cycle(), Cycle()
    table[key] = value
    gone = weakref.ref(value)
    collector.after_request()
    del key, value
    collector.full_collect()
    assert gone() is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_first_passes_of_a_forked_worker_copy_no_shared_page() -> None:
    ballast = [[n] for n in range(400_000)]  # 40 MB of tracked objects
    gc.disable()
    pid = fork()
    if pid == 0:
        code = 1
        try:
            import psutil

            collector = GcRunner()
            before = psutil.Process().memory_full_info().uss
            collector.after_request()
            grown = psutil.Process().memory_full_info().uss - before
            code = 0 if grown < 5 * MB else 2
        finally:
            os._exit(code)
    gc.enable()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    del ballast


def test_growth_that_giving_back_does_not_cure_is_looked_for_in_the_frozen_heap() -> None:
    import weakref

    clock, memory = Clock(), Process()
    collector = make(clock, memory)
    cycle = Cycle()
    gone = weakref.ref(cycle)
    collector.after_request()
    del cycle
    clock.now += 10
    memory.rss = memory.live = memory.rss + 20 * MB
    collector.after_request()
    assert gone() is None


def test_memory_is_given_back_when_it_grew_and_not_when_it_did_not() -> None:
    clock, memory = Clock(), Process()
    collector = make(clock, memory)
    for _ in range(10):
        clock.now += 1
        collector.after_request()
    assert memory.given_back == 0
    clock.now += 0.01
    memory.rss += 60 * MB
    collector.after_request()
    assert memory.given_back == 1
    assert collector.trimmer.freed_bytes == 60 * MB
    clock.now += 1
    collector.after_request()
    assert memory.given_back == 1


def test_growth_that_stays_is_not_given_back_again_and_again() -> None:
    clock, memory = Clock(), Process()
    collector = make(clock, memory, freeze=False, passes=0)
    memory.rss = memory.live = 90 * MB
    for _ in range(20):
        clock.now += 1
        collector.after_request()
    assert memory.given_back == 1


def test_small_growth_waits_while_giving_back_would_take_too_much_of_the_time() -> None:
    class Costly(Process):
        def give_back(self) -> None:
            clock.now += 0.010
            super().give_back()

    clock, memory = Clock(), Costly()
    collector = make(clock, memory, freeze=False, passes=0)
    calls = 0
    for _ in range(100):
        clock.now += 0.010
        memory.rss = memory.live + 5 * MB
        collector.after_request()
        calls = memory.given_back
    assert 3 <= calls <= 8  # 5 % of about a second, 10 ms each


def test_rss_is_read_seldom_while_others_are_in_flight_and_after_the_last() -> None:
    clock, reads = Clock(), []

    class Counted(Process):
        def read(self) -> int:
            reads.append(1)
            return super().read()

    collector = make(clock, Counted(), freeze=False, passes=0)
    reads.clear()
    for _ in range(100):
        clock.now += 0.001
        collector.after_request(lambda: 1)
    assert 3 <= len(reads) <= 6
    reads.clear()
    collector.after_request(lambda: 0)
    assert len(reads) == 1


def test_large_growth_is_given_back_at_once() -> None:
    clock, memory = Clock(), Process()
    collector = make(clock, memory, freeze=False, passes=0)
    for _ in range(5):
        clock.now += 0.01
        memory.rss = memory.live + 150 * MB
        collector.after_request()
    assert memory.given_back == 5


def test_what_a_request_in_flight_holds_is_given_back_when_it_leaves_it_behind() -> None:
    """Given back while another request held 80 MB, memory is not taken to need those 80 MB."""
    clock, memory = Clock(), Process()
    collector = make(clock, memory, freeze=False, passes=0)
    memory.rss = memory.live = 130 * MB
    collector.after_request(lambda: 1)
    memory.live = 50 * MB  # the other request has freed them, the system does not know yet
    for _ in range(3):
        clock.now += 1
        collector.after_request()
    assert memory.rss == 50 * MB


def test_nothing_is_given_back_where_trimming_is_off() -> None:
    memory = Process()
    collector = make(memory=memory, trim=False)
    memory.rss += 100 * MB
    collector.after_request()
    assert memory.given_back == 0


def test_a_request_that_ends_during_a_run_is_followed_by_a_run_that_began_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collector = make(freeze=False, passes=1)
    running, go_on = threading.Event(), threading.Event()
    runs: list[str] = []

    def begin() -> None:
        runs.append(threading.current_thread().name)
        if len(runs) == 1:
            running.set()
            assert go_on.wait(10)

    each_pass(monkeypatch, begin)
    first = threading.Thread(target=collector.after_request, name="first")
    first.start()
    assert running.wait(10)
    for _ in range(3):
        collector.after_request()  # returns at once: the thread that runs will see to it
    assert runs == ["first"]
    go_on.set()
    first.join(10)
    assert runs == ["first", "first"]


def test_requests_that_overlap_share_a_run_and_the_last_one_makes_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    collector = make(clock, freeze=False, passes=1)
    moments: list[float] = []  # of all runs
    each_pass(monkeypatch, lambda: moments.append(clock.now))
    for _ in range(20):
        clock.now += 0.0011
        collector.after_request(lambda: 2)
    # The first at once, then one each SHARED_WITHIN.
    gaps = [later - sooner for sooner, later in itertools.pairwise(moments)]
    assert gaps == pytest.approx([6 * 0.0011] * 3)
    collector.after_request(lambda: 0)
    assert len(moments) == 5


def test_requests_one_after_another_share_no_run() -> None:
    collector = make(freeze=False)
    for _ in range(5):
        collector.after_request(lambda: 0)
    assert collector.runs == 5


def test_a_run_left_to_a_request_that_does_not_come_is_caught_up_with() -> None:
    clock, owed = Clock(), []
    collector = make(clock, freeze=False, in_flight=lambda: 1, owes=lambda: not owed.append(1))  # type: ignore[func-returns-value]
    collector.after_request(lambda: 1)
    for _ in range(3):
        collector.after_request(lambda: 1)
    assert (collector.runs, owed, collector.owing) == (1, [1], True)
    collector.catch_up()  # not yet
    assert collector.runs == 1
    clock.now += 1.01 * module.SHARED_WITHIN
    collector.catch_up()
    assert (collector.runs, collector.owing) == (2, True)
    collector.catch_up()  # nothing is left to do
    assert (collector.runs, collector.owing) == (2, False)
    collector.after_request(lambda: 1)
    assert owed == [1, 1]


def test_a_request_that_ends_during_a_run_beside_others_leaves_the_next_to_be_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owed: list[int] = []
    collector = make(freeze=False, passes=1, owes=lambda: not owed.append(1))  # type: ignore[func-returns-value]

    def another_ends() -> None:
        if not owed:
            other = threading.Thread(target=collector.after_request, args=(lambda: 1,))
            other.start()
            other.join(10)

    each_pass(monkeypatch, another_ends)
    collector.after_request(lambda: 1)
    assert (collector.runs, owed, collector.owing) == (1, [1], True)


def test_a_thread_is_not_kept_for_ever_running_the_passes_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collector = make(freeze=False, passes=1)
    with monkeypatch.context() as patch:
        each_pass(patch, collector.after_request)  # others never cease to end
        collector.after_request()
    assert collector.runs == module.MOST_RUNS
    collector.maintain()  # and what is left is done
    assert collector.runs == module.MOST_RUNS + 1


def test_a_request_that_ends_during_a_thaw_is_followed_by_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collector = make(freeze=False, passes=1)
    ended: list[int] = []

    def one_ends() -> None:
        if not ended:
            ended.append(1)
            collector.after_request()

    each_pass(monkeypatch, one_ends)
    collector.full_collect()
    assert collector.runs == 1


def test_many_threads_lose_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each end of a request is followed by a run begun after it, whatever the interleaving."""
    gc.freeze()  # so that the passes are quick
    collector = make(freeze=False, passes=1)
    began = 0
    ended: list[int] = []

    def begin() -> None:
        nonlocal began
        began += 1

    each_pass(monkeypatch, begin)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def request() -> None:
        for _ in range(200):
            ended.append(began)
            collector.after_request()

    threads = [threading.Thread(target=request) for _ in range(8)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert began > max(ended)


def test_cleaning_up_from_within_a_run_does_not_wait_for_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a finalizer or a signal handler may."""
    collector = make(freeze=False, passes=1)

    def clean_up() -> None:
        collector.full_collect()
        collector.give_back()
        collector.maintain()

    each_pass(monkeypatch, clean_up)
    thread = threading.Thread(target=collector.after_request, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert collector.runs == 1


@pytest.mark.parametrize("generation", [1, 2])
def test_a_pass_that_another_threads_finalizer_kept_from_running_is_made_up_for(
    generation: int,
) -> None:
    collector = make(freeze=False)
    in_finalizer, go_on = threading.Event(), threading.Event()

    class Slow:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            in_finalizer.set()
            go_on.wait(10)

    gc.disable()
    try:
        Slow()
        other = threading.Thread(target=gc.collect, args=(generation,))
        other.start()
        assert in_finalizer.wait(10)
        assert gc.collect() == 0  # what the library must see through
        threading.Timer(0.02, go_on.set).start()
        before = full_collections()
        collector.after_request()
        go_on.set()
        other.join(10)
    finally:
        gc.enable()
    assert full_collections() - before >= 3


def test_malloc_trim_is_a_silent_no_op_where_there_is_none(monkeypatch: Any) -> None:
    import ctypes

    class NoTrim:
        def __init__(self, name: object) -> None:
            pass

    monkeypatch.setattr(ctypes, "CDLL", NoTrim)
    malloc._find_malloc_trim.cache_clear()
    try:
        assert malloc_trim() is False
    finally:
        malloc._find_malloc_trim.cache_clear()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_fast_reading_of_rss_agrees_with_psutil() -> None:
    import psutil

    rss = OwnRss()
    assert abs(rss() - psutil.Process().memory_info().rss) < 2 * MB
    before = rss()
    ballast = bytearray(50 * MB)
    assert 45 * MB < rss() - before < 55 * MB
    del ballast


@pytest.mark.parametrize("make_proc", ["absent", "empty", "garbage"])
def test_without_proc_rss_comes_from_psutil(tmp_path: Any, make_proc: str) -> None:
    if make_proc != "absent":
        (tmp_path / "self").mkdir()
        (tmp_path / "self" / "statm").write_text("" if make_proc == "empty" else "a b c")
    assert OwnRss(str(tmp_path))() > 5 * MB


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_reads_its_own_rss_not_the_parents() -> None:
    rss = OwnRss()
    rss()
    pid = fork()
    if pid == 0:
        code = 1
        try:
            rss.reopen()
            before = rss()
            ballast = mmap.mmap(-1, 50 * MB)  # a bytearray may get memory that others have freed
            for page in range(0, 50 * MB, mmap.PAGESIZE):
                ballast[page] = 1
            code = 0 if rss() - before > 45 * MB else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_what_an_app_drops_without_growing_again_is_given_back_by_and_by() -> None:
    clock, memory = Clock(), Process(150 * MB)
    collector = make(clock, memory)
    collector.after_request()
    clock.now += 10
    collector.maintain()
    memory.live = 50 * MB  # a cache is dropped: RSS stays, and the floor with it
    collector.after_request()
    assert memory.rss == 150 * MB
    clock.now += 10
    collector.maintain()
    assert memory.rss == 50 * MB
    before = memory.given_back
    for _ in range(5):  # nobody has asked for anything since
        clock.now += 10
        collector.maintain()
    assert memory.given_back == before


@pytest.mark.parametrize("in_flight", [0, 1])
def test_a_worker_that_shares_pages_is_thawed_at_rest_where_it_has_grown(in_flight: int) -> None:
    clock, memory = Clock(), Process(50 * MB)
    collector = make(clock, memory)
    collector.after_fork()
    collector.in_flight = lambda: in_flight
    collector.after_request(lambda: 1)
    memory.rss = memory.live = 90 * MB  # garbage that was frozen by accident, say
    collector.after_request(lambda: 1)
    assert collector.shares_pages
    clock.now += 10
    collector.maintain()
    assert collector.shares_pages is bool(in_flight)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_pages_of_files_that_a_forked_worker_touches_are_no_growth(tmp_path: Path) -> None:
    """A full collection would copy the pages that the worker shares with its master."""
    library = tmp_path / "library"
    library.write_bytes(bytes(50 * MB))

    def work() -> bool:
        clock = Clock()
        runner = GcRunner(now=clock, give_back=lambda: None)
        runner.after_fork()
        runner.after_request()
        with library.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        sum(mapped[page] for page in range(0, 50 * MB, mmap.PAGESIZE))
        for _ in range(3):
            clock.now += 301
            runner.after_request()
            runner.maintain()
        if not runner.shares_pages:
            return False
        ballast = mmap.mmap(-1, 50 * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for page in range(0, 50 * MB, mmap.PAGESIZE):
            ballast[page] = 1
        clock.now += 301
        runner.after_request()
        return not runner.shares_pages

    pid = fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if work() else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_what_is_weighed_is_one_thing_from_the_first_time_on() -> None:
    collector = GcRunner(freeze=False, passes=0)
    collector.in_flight = lambda: 1
    collector.rebase()  # an answer of ours, beside a request
    collector.attribution.ended("GET /", False)
    collector.in_flight = int
    collector.attribute()
    assert abs(collector.attribution.routes["GET /"].grown) < MB


def test_where_nobody_would_make_the_shared_run_a_request_makes_its_own() -> None:
    """The monitor has no thread, or is busy with a cleanup."""
    collector = make(freeze=False, owes=lambda: False)
    for _ in range(5):
        collector.after_request(lambda: 1)
    assert (collector.runs, collector.owing) == (5, False)


def test_a_run_that_fails_leaves_the_next_to_those_that_ended_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collector = make(freeze=False, in_flight=lambda: 1)

    def fail() -> int:
        other = threading.Thread(target=collector.after_request)
        other.start()
        other.join(10)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(gc, "collect", fail)
        with pytest.raises(MemoryError):
            collector.after_request()
    assert collector.owing
    collector.catch_up(at_once=True)
    assert (collector.runs, collector.owing) == (1, False)
