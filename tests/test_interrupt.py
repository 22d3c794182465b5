"""What happens near the ceiling: who is interrupted, who stands by, and what still comes in."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import MB, Clock
from live import wait_for
from lowmem_wsgi.memory import interrupt as module
from lowmem_wsgi.memory.ceiling import Ceiling
from lowmem_wsgi.memory.governor import CRITICAL, LEVELS, OK, WARN
from lowmem_wsgi.memory.intake import PATIENCE, SMALL, Intake
from lowmem_wsgi.memory.interrupt import AGAIN, LEAST, SHARE, Interrupt, processor_seconds
from lowmem_wsgi.memory.reading import Usage
from lowmem_wsgi.memory.sentry import AT, AT_LEAST, FAST, NEAR, OFTEN, PROMPTLY, SELDOM, Sentry

# --- The suspect, over threads of a test's own


class Threads:
    """Requests in threads whose processor time a test sets, and an interrupt over them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.clock = Clock()
        self.struck: list[int] = []
        self.possible = True
        self.work = {name: 100 + number for number, name in enumerate(names)}
        self.spent: dict[int | None, float] = {ident + 1000: 5.0 for ident in self.work.values()}
        # Idents are not what the system calls them.
        known = [_Thread(ident, ident + 1000) for ident in self.work.values()]
        monkeypatch.setattr(module.threading, "enumerate", lambda: known)
        monkeypatch.setattr(module, "_raise_in", self._raise_in)
        self.interrupt = Interrupt(lambda: self.work, now=self.clock, spent=self.spent.get)

    def pass_by(self, seconds: float, **shares: float) -> object:
        """So much time goes by, of which each has had its share of the processor; the suspect."""
        self.interrupt.look()
        self.clock.now += seconds
        for name, share in shares.items():
            self.spent[self.work[name] + 1000] += share * seconds
        self.interrupt.look()
        return self.interrupt.suspect

    def _raise_in(self, ident: int, kind: type[BaseException] | None) -> bool:
        if kind is not None:
            self.struck.append(ident)
        return self.possible


class _Thread:
    def __init__(self, ident: int, native_id: int) -> None:
        self.ident, self.native_id = ident, native_id


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Threads]:
    def made(*names: str) -> Threads:
        return Threads(monkeypatch, *names)

    return made


@pytest.mark.parametrize(
    ("shares", "suspect"),
    [
        ({}, None),
        ({"one": 1.0}, "one"),
        ({"two": 1.1 * SHARE}, "two"),
        ({"two": 0.9 * SHARE}, None),
        ({"one": 0.3, "two": 0.6}, "two"),
        ({"one": 0.6, "two": 0.3}, "one"),
    ],
)
def test_the_suspect_is_who_computes_most_and_nobody_who_waits(
    threads: Callable[..., Threads], shares: dict[str, float], suspect: str | None
) -> None:
    assert threads("one", "two", "three").pass_by(0.1, **shares) == suspect


def test_what_a_thread_has_spent_before_does_not_make_it_one(
    threads: Callable[..., Threads],
) -> None:
    site = threads("old", "new")
    site.spent[1100] += 1000.0
    assert site.pass_by(0.1, new=0.5) == "new"


def test_nobody_is_suspected_at_first_sight(threads: Callable[..., Threads]) -> None:
    site = threads("one")
    assert site.pass_by(LEAST / 2, one=1.0) is None
    assert site.pass_by(LEAST, one=1.0) == "one"


def test_a_request_that_comes_to_rest_is_a_suspect_no_longer(
    threads: Callable[..., Threads],
) -> None:
    site = threads("one")
    assert site.pass_by(0.1, one=1.0) == "one"
    assert site.pass_by(0.9, one=0.0) is None


def test_the_next_request_in_the_same_thread_begins_anew(threads: Callable[..., Threads]) -> None:
    site = threads("first")
    assert site.pass_by(1.0, first=1.0) == "first"
    site.work = {"second": site.work["first"]}
    site.interrupt.look()
    assert site.interrupt.suspect is None


def test_a_thread_that_the_system_tells_nothing_of_is_no_suspect(
    threads: Callable[..., Threads],
) -> None:
    site = threads("gone", "here")
    del site.spent[1100]
    assert site.pass_by(0.1, here=0.5) == "here"
    del site.spent[1101]
    site.interrupt.look()
    assert site.interrupt.suspect is None
    assert not site.interrupt.strike()


def test_greenlets_that_are_no_threads_are_no_suspects(threads: Callable[..., Threads]) -> None:
    site = threads("one")
    site.work = {"greenlet": 139876543210}
    assert site.pass_by(0.1) is None
    assert not site.interrupt.strike()


def test_it_strikes_the_suspects_thread_and_not_again_at_once(
    threads: Callable[..., Threads],
) -> None:
    site = threads("one", "two")
    assert not site.interrupt.strike()
    site.pass_by(0.1, two=0.8)
    assert site.interrupt.strike()
    assert site.struck == [101]
    site.clock.now += AGAIN / 2
    assert not site.interrupt.strike()
    site.clock.now += AGAIN
    assert site.interrupt.strike()
    assert site.struck == [101, 101]


def test_another_suspect_is_struck_without_waiting(threads: Callable[..., Threads]) -> None:
    site = threads("one", "two")
    site.pass_by(0.1, one=0.8)
    assert site.interrupt.strike()
    site.pass_by(0.3, two=1.0)
    assert site.interrupt.strike()
    assert site.struck == [100, 101]


def test_a_request_that_has_ended_meanwhile_is_not_struck(threads: Callable[..., Threads]) -> None:
    """Its thread serves another by now."""
    site = threads("one")
    site.pass_by(0.1, one=1.0)
    site.work = {"next": site.work["one"]}
    assert not site.interrupt.strike()
    assert site.struck == []


def test_who_cannot_be_struck_was_not(threads: Callable[..., Threads]) -> None:
    site = threads("one")
    site.pass_by(0.1, one=1.0)
    site.possible = False
    assert not site.interrupt.strike()


def test_all_is_forgotten_when_memory_is_well_again(threads: Callable[..., Threads]) -> None:
    site = threads("one")
    assert not site.interrupt.knows()
    site.interrupt.look()
    assert not site.interrupt.knows()
    site.pass_by(2 * LEAST, one=1.0)
    assert site.interrupt.knows()
    assert site.interrupt.strike()
    site.interrupt.forget()
    assert not site.interrupt.knows()
    assert site.interrupt.suspect is None
    assert not site.interrupt.strike()
    # What was seen before counts no more.
    assert site.pass_by(LEAST / 2, one=1.0) is None


# --- Real threads


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """A loop lets the others go on sooner than after the usual 5 ms."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    yield
    sys.setswitchinterval(before)


class Loop:
    """A request that computes, and begins anew when it is interrupted."""

    def __init__(self) -> None:
        self.caught: list[BaseException] = []
        self.stop = False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self.stop:
            try:
                self._compute()
            except MemoryError as error:  # noqa: PERF203
                self.caught.append(error.with_traceback(None))

    def _compute(self) -> None:
        while not self.stop:
            pass

    def end(self) -> None:
        self.stop = True
        self.thread.join(10)
        assert not self.thread.is_alive()


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="a clock for each thread")


@on_linux
def test_a_loop_gets_the_memory_error_and_who_waits_does_not(quick_switches: None) -> None:
    busy, waiting = Loop(), threading.Event()
    waiter = threading.Thread(target=waiting.wait, daemon=True)
    waiter.start()
    work = {"waits": waiter.ident or 0, "computes": busy.thread.ident or 0}
    try:
        interrupt = Interrupt(lambda: work)

        def suspected() -> bool:
            interrupt.look()
            return interrupt.suspect is not None

        wait_for(suspected, "a suspect")
        assert interrupt.suspect == "computes"
        assert interrupt.strike()
        wait_for(lambda: busy.caught, "the loop to be interrupted")
        assert [type(error) for error in busy.caught] == [MemoryError]
        assert busy.thread.is_alive()
    finally:
        busy.end()
        waiting.set()
        waiter.join(10)


@on_linux
def test_the_time_a_thread_has_had_is_told_by_the_systems_number_for_it() -> None:
    own = threading.get_native_id()
    before = processor_seconds(own), time.thread_time()
    while time.thread_time() < before[1] + 0.02:
        pass
    after = processor_seconds(own), time.thread_time()
    assert after[0] is not None
    assert before[0] is not None
    assert after[0] - before[0] == pytest.approx(after[1] - before[1], abs=0.01)


def test_threads_that_are_gone_or_never_were_have_had_none_and_crash_nothing() -> None:
    """The stacks of so many are unmapped when they end, with all that the C library knew."""
    release, idents = threading.Event(), []
    threads = [threading.Thread(target=release.wait) for _ in range(30)]
    for thread in threads:
        thread.start()
        idents.append(thread.native_id)
    release.set()
    for thread in threads:
        thread.join()
    wait_for(lambda: all(processor_seconds(i) is None for i in idents), "them to end")
    for number in (None, 1, os.getppid(), 2**22):
        assert processor_seconds(number) is None


def test_a_thread_that_is_gone_cannot_be_interrupted() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    ident = thread.ident or 0
    thread.join()
    assert not module._raise_in(ident, MemoryError)


# --- The sentry


class Post:
    """A sentry, over a ceiling that a test moves."""

    def __init__(self, wanted: bool = True) -> None:
        self.needed = False
        self.looks = 0
        self.strikes = 0
        self.struck = True
        self.forgot = 0
        self.left: int | None = 200 * MB
        self.wanted = wanted
        self.trouble: Exception | None = None
        self.interval = 0.0
        self.clock = Clock()
        self.sentry = Sentry(self, self, lambda: self.needed, now=self.clock)  # type: ignore[arg-type]

    # As a ceiling

    def possible(self) -> bool:
        return self.wanted

    def keep(self) -> None:
        self.looks += 1
        self.interval = sys.getswitchinterval()
        if self.trouble is not None:
            raise self.trouble

    # As an interrupt

    def look(self) -> None:
        pass

    def strike(self) -> bool:
        self.strikes += 1
        return self.struck

    def forget(self) -> None:
        self.forgot += 1


@pytest.fixture
def post() -> Iterator[Post]:
    found = Post()
    yield found
    found.needed = False
    found.sentry.stop()
    wait_for(lambda: sentries() == 0, "the sentry to end")


def sentries() -> int:
    return sum(thread.name == "lowmem-sentry" for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("left", "pause"),
    [
        (None, SELDOM),
        (NEAR + 1, SELDOM),
        (NEAR, OFTEN),
        (AT, OFTEN),
        (0, OFTEN),
        (-5 * MB, OFTEN),
    ],
)
def test_it_looks_often_near_the_ceiling(left: int | None, pause: float) -> None:
    post = Post()
    post.left = left
    assert post.sentry.look() == pause
    assert post.looks == 1


@pytest.mark.parametrize(
    ("left", "strikes"), [(None, 0), (NEAR, 0), (AT + 1, 0), (AT, 1), (0, 1), (-MB, 1)]
)
def test_it_interrupts_at_the_ceiling_only(
    left: int | None, strikes: int, caplog: pytest.LogCaptureFixture
) -> None:
    post = Post()
    post.left = left
    post.sentry.look()
    assert post.strikes == strikes
    assert len(caplog.records) == strikes
    assert "LOWMEM_CEILING" in caplog.text or not strikes


def test_nothing_is_said_where_nobody_was_interrupted(caplog: pytest.LogCaptureFixture) -> None:
    post = Post()
    post.left, post.struck = 0, False
    post.sentry.look()
    assert post.strikes == 1
    assert not caplog.records


def test_it_stands_by_while_it_is_needed_and_comes_again_when_called(post: Post) -> None:
    post.sentry.start()
    post.sentry.start()
    assert sentries() == 1
    for _ in range(2):
        assert post.looks == 0
        post.needed = True
        post.sentry.call()
        post.clock.now += AT_LEAST
        wait_for(lambda: post.looks >= 3, "some looks")
        forgot = post.forgot
        post.needed = False
        wait_for(lambda forgot=forgot: post.forgot > forgot, "it to be done")
        post.looks = 0
    assert sentries() == 1


def test_a_call_that_turns_out_not_to_be_needed_is_over_soon(post: Post) -> None:
    post.sentry.start()
    post.sentry.call()
    wait_for(lambda: post.looks >= 3, "some looks")
    assert post.forgot == 0
    post.clock.now += AT_LEAST
    wait_for(lambda: post.forgot == 1, "it to be done")


def test_it_waits_for_nobody_while_it_is_at_work_and_not_longer(post: Post) -> None:
    usual = sys.getswitchinterval()
    post.sentry.start()
    assert sys.getswitchinterval() == usual
    post.sentry.call()
    wait_for(lambda: post.looks, "a look")
    assert post.interval == pytest.approx(PROMPTLY)
    post.clock.now += AT_LEAST
    wait_for(lambda: post.forgot, "it to be done")
    assert sys.getswitchinterval() == usual


def test_an_interval_that_is_shorter_already_is_kept(quick_switches: None, post: Post) -> None:
    sys.setswitchinterval(PROMPTLY / 10)
    post.sentry.start()
    post.sentry.call()
    wait_for(lambda: post.looks, "a look")
    assert post.interval == pytest.approx(PROMPTLY / 10, abs=2e-6)


def test_neither_a_child_nor_a_new_start_keeps_the_short_interval(
    quick_switches: None, post: Post
) -> None:
    sys.setswitchinterval(0.005)
    post.needed = True
    for _ in range(3):
        post.sentry.start()
        post.sentry.call()
        looks = post.looks
        wait_for(lambda looks=looks: post.looks > looks, "a look")
        post.sentry.stop()  # and the next begins while this one is still there
    wait_for(lambda: sentries() == 0, "them to end")
    assert sys.getswitchinterval() == pytest.approx(0.005)
    post.sentry._hurry()
    assert sys.getswitchinterval() == pytest.approx(PROMPTLY)
    post.sentry.after_fork()
    assert sys.getswitchinterval() == pytest.approx(0.005)


@pytest.mark.parametrize(
    ("readings", "called"),
    [
        ([200, 200, 190], False),
        ([200, 200 - FAST // MB + 1], False),
        ([200, 200 - FAST // MB], True),
        ([200, 250, 240], False),
        ([100, None, 100, 90], False),
        ([10], False),
    ],
)
def test_it_is_called_where_what_is_left_falls_fast(
    readings: list[int | None], called: bool
) -> None:
    post = Post()
    for reading in readings:
        post.left = None if reading is None else reading * MB
        post.sentry.watch()
    assert post.sentry._called.is_set() is called


def test_without_a_ceiling_there_is_no_sentry() -> None:
    post = Post(wanted=False)
    post.sentry.start()
    post.sentry.call()
    assert sentries() == 0
    assert not post.sentry._running


def test_where_no_limit_is_enforced_there_is_no_sentry() -> None:
    ceiling = Ceiling(None, lambda: Usage(100 * MB, 512 * MB, "process"))
    sentry = Sentry(ceiling, Interrupt(), lambda: True)
    sentry.start()
    assert sentries() == 0


def test_it_ends_when_it_is_stopped_also_in_the_middle_of_it(post: Post) -> None:
    post.needed = True
    post.sentry.start()
    post.sentry.call()
    wait_for(lambda: post.looks > 0, "a look")
    post.sentry.stop()
    wait_for(lambda: sentries() == 0, "the sentry to end")


def test_stopped_and_started_again_it_is_one(post: Post) -> None:
    post.needed = True
    for _ in range(20):
        post.sentry.start()
        post.sentry.call()
        post.sentry.stop()
    post.sentry.start()
    wait_for(lambda: sentries() == 1, "those that were stopped to end")


def test_trouble_is_logged_once_and_the_next_call_is_answered(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    post.trouble = ZeroDivisionError("oh")
    post.needed = True
    post.sentry.start()
    for times in (1, 2, 3):
        post.sentry.call()
        wait_for(lambda times=times: post.forgot == times, "it to fail")
    assert post.looks == 3
    assert sys.getswitchinterval() > PROMPTLY
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()[:10]) == (logging.ERROR, "The sentry")
    post.trouble = None
    post.sentry.call()
    wait_for(lambda: post.looks > 4, "it to stand by again")


def test_where_no_thread_can_be_had_it_says_so_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, post: Post
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            post.sentry.start()
    post.sentry.start()
    assert sentries() == 1


def test_in_a_new_child_it_starts_anew(post: Post) -> None:
    """Here the thread is still there, and ends by itself: it is not the one that is called."""
    post.sentry.start()
    before = post.sentry._called
    post.sentry.after_fork()
    before.set()
    wait_for(lambda: sentries() == 0, "the parent's to end")
    post.sentry.start()
    assert sentries() == 1


# --- The intake

CRITICAL_AT = 450 * MB


class Door:
    def __init__(self) -> None:
        self.clock = Clock()
        self.intake = Intake(now=self.clock)

    def look(self, used_mb: float, level: str, after: float = 0.0) -> Intake:
        self.clock.now += after
        usage = Usage(int(used_mb * MB), 512 * MB, "cgroup v2")
        self.intake.look(usage, level, CRITICAL_AT)
        return self.intake


def test_at_first_and_while_memory_is_ok_anything_comes_in() -> None:
    door = Door()
    assert (door.intake.closed, door.intake.largest) == (False, None)
    door.look(449, OK)
    assert (door.intake.closed, door.intake.largest) == (False, None)


@pytest.mark.parametrize(
    ("used", "largest"), [(50, 50 * MB), (410, 5 * MB), (442, MB), (450, SMALL), (600, SMALL)]
)
def test_at_warn_a_body_that_takes_up_what_room_there_is_does_not(used: int, largest: int) -> None:
    assert Door().look(used, WARN).largest == largest


@given(st.lists(st.integers(0, 1 << 40), min_size=2), st.sampled_from([WARN, CRITICAL]))
def test_what_comes_in_shrinks_as_memory_rises_but_small_bodies_always_do(
    readings: list[int], level: str
) -> None:
    intake, found = Intake(), []
    for used in sorted(readings):
        intake.look(Usage(used, 512 * MB, ""), level, CRITICAL_AT)
        found.append(intake.largest or 0)
    assert found == sorted(found, reverse=True)
    assert min(found) >= SMALL


def test_it_closes_when_critical_has_lasted_and_not_before() -> None:
    door = Door()
    assert not door.look(460, CRITICAL).closed
    assert not door.look(460, CRITICAL, after=PATIENCE - 0.1).closed
    assert door.look(460, CRITICAL, after=0.1).closed
    assert door.look(500, CRITICAL, after=100).closed


def test_it_opens_with_the_first_reading_that_is_not_critical() -> None:
    door = Door()
    door.look(460, CRITICAL)
    assert door.look(460, CRITICAL, after=PATIENCE).closed
    assert not door.look(420, WARN).closed
    assert not door.look(460, CRITICAL, after=PATIENCE).closed
    assert door.look(460, CRITICAL, after=PATIENCE).closed


@given(st.lists(st.tuples(st.sampled_from(LEVELS), st.floats(0, 10)), max_size=30))
def test_it_is_closed_only_after_an_unbroken_time_at_critical(
    looks: list[tuple[str, float]],
) -> None:
    door, since = Door(), None
    for level, after in looks:
        closed = door.look(460, level, after).closed
        since = None if level != CRITICAL else door.clock.now if since is None else since
        assert closed is (since is not None and door.clock.now - since >= PATIENCE)
        assert not closed or door.intake.largest is not None


def test_a_new_child_is_open() -> None:
    door = Door()
    door.look(460, CRITICAL)
    door.look(460, CRITICAL, after=PATIENCE)
    door.intake.forget()
    assert (door.intake.closed, door.intake.largest) == (False, None)
    assert not door.look(460, CRITICAL).closed
