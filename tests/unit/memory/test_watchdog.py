"""The watchdog: how often it looks, when it interrupts, and the thread that does it."""

from __future__ import annotations

import _thread
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.fakes import MB
from helpers.servers import wait_for
from lowmem_wsgi.memory import watchdog as module
from lowmem_wsgi.memory.ceiling import Ceiling
from lowmem_wsgi.memory.interrupt import Interrupt
from lowmem_wsgi.memory.watchdog import (
    AT,
    FILLED_AT,
    LAST,
    NEAR,
    OFTEN,
    PROMPTLY,
    SELDOM,
    Watchdog,
    is_time,
    next_look,
)
from lowmem_wsgi.system.usage import Usage

BYTES = st.integers(0, 8 << 30)

# --- When: pure functions


@pytest.mark.parametrize(
    ("left", "seconds"),
    [
        (None, SELDOM),
        (8192 * MB, SELDOM),
        (int(FILLED_AT * SELDOM) + MB, SELDOM),
        (int(FILLED_AT * SELDOM / 2), SELDOM / 2),
        (int(FILLED_AT * OFTEN), OFTEN),
        (0, OFTEN),
        (-5 * MB, OFTEN),
    ],
)
def test_it_looks_the_more_often_the_less_is_left(left: int | None, seconds: float) -> None:
    assert next_look(left) == pytest.approx(seconds)


@given(BYTES, BYTES)
def test_with_less_left_it_never_looks_later(left: int, less: int) -> None:
    assert OFTEN <= next_look(left - less) <= next_look(left) <= SELDOM


@given(BYTES)
def test_at_the_next_look_half_of_it_is_left(left: int) -> None:
    """Memory is filled at 4 GB/s at most; and it looks no more often than OFTEN."""
    assert left - 4096 * MB * next_look(left) >= left / 2 - 1 or next_look(left) == OFTEN


@pytest.mark.parametrize(
    ("whole", "limit", "expected"),
    [
        (AT, 512 * MB, True),
        (AT + 1, 512 * MB, False),
        (0, 512 * MB, True),
        (24 * MB, 96 * MB, True),
        (24 * MB + 1, 96 * MB, False),
        (AT, 4096 * MB, True),
        (AT + 1, 4096 * MB, False),
        (1, 0, False),
    ],
)
def test_it_is_time_near_the_ceiling_only(whole: int, limit: int, expected: bool) -> None:
    assert is_time(whole, whole, limit, 400 * MB) is expected


@pytest.mark.parametrize(
    ("whole", "left", "expected"),
    [
        (180 * MB, 45 * MB, False),  # of four workers: the share grows as it is used
        (64 * MB + 3, 16 * MB, True),
        (64 * MB + 3, 16 * MB + 1, False),
        (100 * MB, 0, True),  # holes that no new mapping can use
    ],
)
def test_a_workers_share_may_come_down_further_than_the_whole(
    whole: int, left: int, expected: bool
) -> None:
    assert is_time(whole, left, 512 * MB, 400 * MB) is expected


@pytest.mark.parametrize(
    ("whole", "grown", "expected"),
    [
        (AT, AT // 2, True),
        (AT, AT // 2 - 1, False),
        (20 * MB, 10 * MB, True),
        (20 * MB, 10 * MB - 1, False),
        (0, MB, True),
        (0, MB - 1, False),
    ],
)
def test_who_has_taken_little_of_what_is_left_is_let_be(
    whole: int, grown: int, expected: bool
) -> None:
    assert is_time(whole, whole, 512 * MB, grown) is expected


@given(BYTES, BYTES, BYTES, BYTES, BYTES)
def test_with_more_left_it_is_never_sooner(
    whole: int, left: int, limit: int, grown: int, more: int
) -> None:
    if is_time(whole, left, limit, grown):
        assert is_time(whole, left, limit, grown + more)
        assert is_time(max(0, whole - more), left, limit, grown)
        assert is_time(whole, left - more, limit, grown)


# --- A look


class Counted(Watchdog):
    """One that knows how many threads it has."""

    threads: list[object]

    def __init__(self, ceiling: object, interrupt: object) -> None:
        self.threads = []
        super().__init__(ceiling, interrupt)  # type: ignore[arg-type]

    def _run(self, post: object) -> None:
        self.threads.append(post)
        try:
            super()._run(post)
        finally:
            self.threads.remove(post)


class Post:
    """A watchdog, over a ceiling that a test moves and requests that it lets in."""

    def __init__(self, wanted: bool = True) -> None:
        self.wanted = wanted
        # As a ceiling
        self.left: int | None = 200 * MB
        self.limit: int | None = 512 * MB
        self.usage: Usage | None = Usage(300 * MB, 512 * MB, "cgroup v2")
        self.anonymous = 123 * MB
        # As an interrupt
        self.grown = 100 * MB
        self.in_flight = False
        self.running = True  # where all are greenlets: the one that runs is a request
        # What has become of it
        self.looks = 0
        self.begun = 0
        self.forgot = 0
        self.done: list[str] = []
        self.intervals: list[float] = []
        self.trouble: BaseException | None = None
        self.too_late = False  # a request comes as it falls asleep
        self.watchdog = Counted(self, self)

    @property
    def whole(self) -> int:
        return self.left or 0

    def wait(self, threads: int) -> None:
        """Until there are as many."""
        wait_for(lambda: len(self.watchdog.threads) == threads, f"{threads} threads")

    # As a ceiling

    def possible(self) -> bool:
        return self.wanted

    def keep(self) -> None:
        self.looks += 1
        self.intervals.append(sys.getswitchinterval())
        if self.trouble is not None:
            raise self.trouble

    def open_reserve(self) -> None:
        self.done.append("open the reserve")

    # As an interrupt

    def begin(self) -> None:
        self.begun = threading.get_ident()

    def look(self, size: int) -> bool:
        assert size == self.anonymous
        return self.in_flight and self.running

    def work(self) -> dict[object, int]:
        return {"request": 7} if self.in_flight else {}

    def strike(self, *, spare_imports: bool) -> bool:
        self.done.append("strike" + (", sparing imports" if spare_imports else ""))
        return True

    def forget(self) -> None:
        self.forgot += 1
        if self.too_late:
            self.too_late, self.in_flight = False, True


@pytest.fixture(autouse=True)
def interval() -> Iterator[float]:
    """The interpreter's, which is left as it was."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.005)
    yield sys.getswitchinterval()
    sys.setswitchinterval(before)


@pytest.fixture
def post() -> Iterator[Post]:
    """One that is ended."""
    found = Post()
    yield found
    found.in_flight = False
    found.watchdog.stop()
    found.wait(0)


def busy(**changes: object) -> Post:
    found = Post()
    found.in_flight = True
    for name, change in changes.items():
        setattr(found, name, change)
    return found


def test_with_nothing_in_flight_there_is_no_next_look() -> None:
    post = Post()
    assert post.watchdog.look() is None
    assert (post.looks, post.done) == (1, [])


def test_the_limit_is_kept_once_more_after_the_request_that_was_looked_at(post: Post) -> None:
    """A look in the midst of its growth has counted that twice: the next one would be refused."""
    post.in_flight = True
    post.watchdog.start()
    wait_for(lambda: post.looks > 1, "looks")
    post.in_flight = False
    looks = post.looks
    wait_for(lambda: post.watchdog.asleep, "it to sleep")
    assert post.looks > looks


def test_while_greenlets_wait_it_looks_on() -> None:
    assert busy(running=False).watchdog.look() is not None


@pytest.mark.parametrize("left", [None, 0, AT, NEAR, 2048 * MB])
def test_the_next_look_is_as_soon_as_little_is_left(left: int | None) -> None:
    post = busy(left=left)
    assert post.watchdog.look() == next_look(left)
    assert post.looks == 1


def test_without_a_ceiling_it_waits_for_one() -> None:
    post = busy(left=0, usage=None)
    assert post.watchdog.look() == SELDOM
    assert post.done == []


STRUCK = ["open the reserve", "strike, sparing imports"]


@pytest.mark.parametrize(
    ("left", "grown", "struck"),
    [
        (None, 100 * MB, False),
        (AT + 1, 100 * MB, False),
        (AT, 100 * MB, True),
        (AT, AT // 2, True),
        (AT, AT // 2 - 1, False),
        # The less is left, the less it must have grown.
        (4 * MB, 2 * MB, True),
        (4 * MB, 2 * MB - 1, False),
        (0, MB, True),
        (0, MB - 1, False),
        (0, -100 * MB, False),
    ],
)
def test_it_interrupts_who_has_grown_near_the_ceiling_with_the_reserve_open(
    left: int | None, grown: int, struck: bool
) -> None:
    post = busy(left=left, grown=grown)
    post.watchdog.look()
    assert post.done == (STRUCK if struck else [])


@pytest.mark.parametrize(
    ("free", "spared"), [(100 * MB, True), (LAST + 1, True), (LAST, False), (-MB, False)]
)
def test_a_thread_that_imports_is_interrupted_only_where_the_container_itself_is_full(
    free: int, spared: bool
) -> None:
    post = busy(left=0, usage=Usage(512 * MB - free, 512 * MB, "cgroup v2"))
    post.watchdog.look()
    assert post.done == ["open the reserve", "strike" + ", sparing imports" * spared]


def test_without_memory_for_a_look_it_opens_the_reserve_and_looks_again_soon() -> None:
    post = busy(trouble=MemoryError())
    assert post.watchdog.look() == OFTEN
    assert post.done == ["open the reserve"]


def test_near_the_ceiling_the_interpreter_hands_its_lock_over_promptly(interval: float) -> None:
    post = busy(left=NEAR + 1)
    post.watchdog.look()
    assert sys.getswitchinterval() == interval
    post.left = NEAR
    for _ in range(2):
        post.watchdog.look()
        assert sys.getswitchinterval() == pytest.approx(PROMPTLY)
    post.left = NEAR + 1
    post.watchdog.look()
    assert sys.getswitchinterval() == interval


def test_an_interval_that_is_shorter_already_is_kept() -> None:
    sys.setswitchinterval(PROMPTLY / 10)
    post = busy(left=0)
    post.watchdog.look()
    assert sys.getswitchinterval() == pytest.approx(PROMPTLY / 10, abs=2e-6)


def test_a_new_child_has_the_usual_interval(interval: float) -> None:
    post = busy(left=0)
    post.watchdog.look()
    post.watchdog.after_fork()
    assert sys.getswitchinterval() == interval


# --- Its thread


def has_looked(post: Post, times: int) -> None:
    wait_for(lambda: post.looks >= times, "a look")


def is_done(post: Post, times: int) -> None:
    wait_for(lambda: post.forgot >= times, "it to be done")


def test_it_sleeps_until_a_request_wakes_it_and_watches_while_any_is_in_flight(
    post: Post, interval: float
) -> None:
    post.left = 0
    post.watchdog.start()
    post.watchdog.start()
    post.wait(1)
    assert post.begun == threading.get_ident()
    for _ in range(2):
        wait_for(lambda: post.watchdog.asleep, "it to sleep")
        assert sys.getswitchinterval() == interval
        looks, forgot = post.looks, post.forgot
        post.in_flight = True
        post.watchdog.wake()
        assert not post.watchdog.asleep
        has_looked(post, looks + 3)
        assert (post.forgot, post.watchdog.asleep) == (forgot, False)
        post.in_flight = False
        is_done(post, forgot + 1)
        assert post.forgot == forgot + 1
    assert len(post.watchdog.threads) == 1


def test_a_request_that_is_over_soon_is_never_looked_at(post: Post) -> None:
    post.watchdog.start()
    for times in (1, 2, 3):
        is_done(post, times)
        wait_for(lambda: post.watchdog.asleep, "it to sleep")
        post.watchdog.wake()
    assert post.looks == 0


@pytest.mark.parametrize(("left", "at_once"), [(NEAR, True), (None, False), (NEAR + 1, False)])
def test_where_memory_is_nearly_full_it_looks_at_once(
    post: Post, monkeypatch: pytest.MonkeyPatch, left: int | None, at_once: bool
) -> None:
    pauses: list[float] = []

    class Lock:
        def __init__(self) -> None:
            self._lock = _thread.allocate_lock()
            self.release = self._lock.release

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            if timeout >= 0:
                pauses.append(timeout)
            return self._lock.acquire(blocking, timeout)

    def original(of: str, name: str) -> object:
        return Lock if name == "allocate_lock" else getattr(_thread, name)

    monkeypatch.setattr(module, "original", original)
    post.left = left
    post.watchdog.start()
    wait_for(lambda: pauses, "it to begin")
    assert pauses[0] == (0.0 if at_once else module.FIRST)


def test_a_request_that_comes_as_it_falls_asleep_is_watched_all_the_same(post: Post) -> None:
    """It has come too late to be seen, and too early to see that it must wake somebody."""
    post.too_late = True
    post.watchdog.start()
    wait_for(lambda: post.looks >= 3, "some looks")
    assert not post.watchdog.asleep


def test_waking_more_often_than_it_sleeps_does_no_harm(post: Post) -> None:
    post.watchdog.wake()  # there is none yet
    post.watchdog.start()
    post.in_flight = True
    for _ in range(100):
        post.watchdog.wake()
    wait_for(lambda: post.looks >= 3, "some looks")
    post.in_flight = False
    wait_for(lambda: post.watchdog.asleep, "it to sleep")


def test_without_a_ceiling_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(_thread, "start_new_thread", lambda *args: started.append(args))
    post = Post(wanted=False)
    post.watchdog.start()
    post.watchdog.wake()
    post.watchdog.stop()
    # No limit that anything enforces:
    ceiling = Ceiling(None, lambda: Usage(100 * MB, 512 * MB, "process"))
    Watchdog(ceiling, Interrupt()).start()
    assert (started, post.begun) == ([], 0)


@pytest.mark.parametrize("at", ["asleep", "between two looks", "at the first"])
def test_it_ends_when_it_is_stopped_wherever_it_is(
    post: Post, monkeypatch: pytest.MonkeyPatch, at: str, interval: float
) -> None:
    if at == "at the first":
        monkeypatch.setattr(module, "FIRST", 60.0)
    if at == "between two looks":
        monkeypatch.setattr(module, "next_look", lambda left: 60.0)
        post.left = 0
    post.watchdog.start()
    if at == "asleep":
        wait_for(lambda: post.watchdog.asleep, "it to sleep")
    else:
        post.in_flight = True
        post.watchdog.wake()
    if at == "between two looks":
        wait_for(lambda: post.looks, "a look")
    post.watchdog.stop()
    post.watchdog.stop()
    post.wait(0)
    assert sys.getswitchinterval() == interval


def test_stopped_and_started_again_it_is_one(post: Post) -> None:
    post.in_flight = True
    for _ in range(20):
        post.watchdog.start()
        post.watchdog.wake()
        post.watchdog.stop()
    post.watchdog.start()
    looks = post.looks
    post.wait(1)
    wait_for(lambda: post.looks >= looks + 3, "some looks")


def test_neither_a_stop_nor_a_new_start_keeps_the_short_interval(
    post: Post, interval: float
) -> None:
    post.in_flight, post.left = True, 0
    for _ in range(3):
        post.watchdog.start()
        looks = post.looks
        has_looked(post, looks + 1)
        post.watchdog.stop()  # and the next begins while this one is still there
    post.wait(0)
    assert sys.getswitchinterval() == interval
    assert min(post.intervals) == pytest.approx(PROMPTLY)


def test_trouble_ends_it_without_a_word_and_it_can_be_started_again(
    post: Post, interval: float, capfd: pytest.CaptureFixture[str]
) -> None:
    """It waits for no lock, so it does not log."""
    post.in_flight, post.left = True, 0
    for trouble in (ZeroDivisionError("oh"), SystemExit()):
        post.trouble = None
        post.watchdog.start()
        looks = post.looks
        has_looked(post, looks + 1)
        post.trouble = trouble
        post.wait(0)
        assert sys.getswitchinterval() == interval
    post.trouble = None
    post.watchdog.start()
    post.wait(1)
    assert capfd.readouterr() == ("", "")


def test_where_no_thread_can_be_had_it_says_so_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, post: Post
) -> None:

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            post.watchdog.start()
    assert post.watchdog.threads == []
    post.watchdog.start()
    post.wait(1)


def test_in_a_new_child_it_starts_anew(post: Post) -> None:
    """Here the thread is still there, and ends by itself: it is not the one that is woken."""
    post.watchdog.start()
    wait_for(lambda: post.watchdog.asleep, "it to sleep")
    parents = post.watchdog._post
    post.watchdog.after_fork()
    assert not post.watchdog.asleep
    post.watchdog.wake()
    assert post.watchdog.threads == [parents]
    parents.release()
    post.wait(0)
    post.watchdog.start()
    post.wait(1)


# --- And for real


class Wall(Post):
    """A ceiling that a process comes nearer to with each look, until it is interrupted."""

    def keep(self) -> None:
        super().keep()
        self.anonymous += 0 if self.done else MB
        self.left = max(0, AT + 10 * MB - self.looks * MB)


@pytest.mark.skipif(sys.platform != "linux", reason="a clock for each thread")
def test_a_request_that_computes_while_memory_fills_gets_a_memory_error() -> None:
    caught: list[str] = []
    ready, stop = threading.Event(), False

    def compute() -> None:
        while not stop:
            pass

    def request() -> None:
        ready.set()
        try:
            compute()  # Python 3.13 has the jump of a loop outside of the try that it stands in
        except MemoryError:
            flights.pop("computes")
            caught.append("MemoryError")

    flights: dict[str, int] = {}
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    assert ready.wait(10)
    waits = threading.Event()
    waiter = threading.Thread(target=waits.wait, daemon=True)
    waiter.start()
    flights |= {"computes": thread.ident or 0, "waits": waiter.ident or 0}
    wall = Wall()
    watchdog = Counted(wall, Interrupt(lambda: dict(flights)))
    watchdog.start()
    watchdog.wake()
    try:
        wait_for(lambda: caught, "the request to be interrupted")
        assert wall.left is not None
        assert wall.left <= AT
        assert wall.done[0] == "open the reserve"
        assert waiter.is_alive()
    finally:
        stop = True
        waits.set()
        watchdog.stop()
    wait_for(lambda: not watchdog.threads, "it to end")
    thread.join(10)
    waiter.join(10)
    assert not thread.is_alive()


OF_GREENLETS = """
from gevent import monkey
monkey.patch_all()
import sys, threading, time
sys.path[:0] = sys.argv[1:]
from lowmem_wsgi.memory.interrupt import Interrupt
from lowmem_wsgi.memory.watchdog import Watchdog
from test_watchdog import Wall

wall = Wall()

def app():
    while True:
        pass

def serve():
    try:
        app()
    except MemoryError:
        print("interrupted")

greenlet = threading.Thread(target=serve)
waiting = threading.Event()
waits = threading.Thread(target=waiting.wait)
waits.start()
watchdog = Watchdog(wall, Interrupt(lambda: {"computes": greenlet.ident, "waits": waits.ident},
                                    [app.__code__]))
watchdog.start()
watchdog.wake()
greenlet.start()
greenlet.join()
waiting.set()
waits.join()
watchdog.stop()
print("the other goes on")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a clock for each thread")
def test_under_gevent_it_runs_while_a_greenlet_computes() -> None:
    pytest.importorskip("gevent")
    found = subprocess.run(
        [sys.executable, "-c", OF_GREENLETS, str(Path(__file__).parent), *sys.path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.stderr == ""
    assert found.stdout.splitlines() == ["interrupted", "the other goes on"]
