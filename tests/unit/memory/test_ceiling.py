"""The ceiling: where it is put, over processes of a test's own, and that the kernel holds it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.fakes import MB, Clock
from lowmem_wsgi.memory import ceiling as module
from lowmem_wsgi.memory.ceiling import (
    JUST_NOW,
    LAST_SHARE,
    LATELY,
    MANY,
    OPEN,
    PACKAGE,
    RESERVE_SHARE,
    SLACK,
    START,
    STEP,
    USUAL_STACK,
    Ceiling,
    new_mappings,
    room_for,
)
from lowmem_wsgi.system.usage import Usage

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")

resource = pytest.importorskip("resource")
PAGE = os.sysconf("SC_PAGE_SIZE")
INFINITY = resource.RLIM_INFINITY
STACK = 8 * MB  # by RLIMIT_STACK
SIZES = st.integers(0, 4 << 30)


# --- How much room there is: pure functions


def reserve(limit: int, share: float = RESERVE_SHARE) -> int:
    return int(limit * (1 - share))


@given(SIZES, SIZES, st.integers(1, 40), st.sampled_from([RESERVE_SHARE, LAST_SHARE]))
def test_all_workers_that_use_their_room_up_leave_the_reserve_free(
    used: int, limit: int, workers: int, share: float
) -> None:
    room = room_for(Usage(used, limit, "cgroup v2"), workers, share)
    assert room >= 0
    assert used + workers * room <= max(used, reserve(limit, share))


@given(SIZES, SIZES, st.integers(1, 40))
def test_the_room_there_is_can_be_had_but_for_the_reserve(
    used: int, limit: int, workers: int
) -> None:
    """Up to what cannot be divided."""
    room = room_for(Usage(used, limit, "cgroup v2"), workers)
    assert 0 <= max(0, reserve(limit) - used) - workers * room < workers


@given(SIZES, SIZES, st.integers(1, 40), SIZES)
def test_it_never_rises_as_others_use_more(used: int, limit: int, workers: int, more: int) -> None:
    first = room_for(Usage(used, limit, ""), workers)
    assert room_for(Usage(used + more, limit, ""), workers) <= first
    assert room_for(Usage(used, limit, ""), workers + 1) <= first


@given(SIZES, SIZES, st.integers(1, 40))
def test_the_second_step_is_never_below_the_first(used: int, limit: int, workers: int) -> None:
    usage = Usage(used, limit, "")
    assert room_for(usage, 1, LAST_SHARE) >= room_for(usage, workers)


@pytest.mark.parametrize("workers", [0, -1])
def test_where_no_worker_is_counted_there_is_one(workers: int) -> None:
    usage = Usage(100 * MB, 512 * MB, "")
    assert room_for(usage, workers) == room_for(usage, 1) == reserve(512 * MB) - 100 * MB


@given(SIZES, SIZES)
def test_new_mappings_and_holes_exceed_the_room_by_the_slack_at_most(room: int, holes: int) -> None:
    new = new_mappings(room, holes)
    assert min(room, SLACK) <= new <= room
    assert new <= SLACK or new + holes <= room


@given(SIZES)
def test_without_holes_all_the_room_may_be_mapped_anew(room: int) -> None:
    assert new_mappings(room, 0) == room


@given(SIZES, SIZES, SIZES)
def test_more_room_or_fewer_holes_never_leave_less_to_map(room: int, holes: int, more: int) -> None:
    assert new_mappings(room + more, holes) >= new_mappings(room, holes)
    assert new_mappings(room, holes + more) <= new_mappings(room, holes)


# --- A process of the test's own


class Limits:
    """RLIMIT_DATA of this process, as it would be."""

    def __init__(self) -> None:
        self.now = (INFINITY, INFINITY)
        self.calls = 0

    def get(self, which: int) -> tuple[int, int]:
        return self.now if which == resource.RLIMIT_DATA else (STACK, INFINITY)

    def set(self, which: int, limits: tuple[int, int]) -> None:
        assert which == resource.RLIMIT_DATA
        # As the kernel does: the soft one is at most the hard one, which is not raised again.
        soft, hard = ((float("inf") if size == INFINITY else size) for size in limits)
        assert soft <= hard <= (float("inf") if self.now[1] == INFINITY else self.now[1])
        self.now = limits
        self.calls += 1


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    found = Limits()
    monkeypatch.setattr(resource, "getrlimit", found.get)
    monkeypatch.setattr(resource, "setrlimit", found.set)
    return found


class Site:
    """A ceiling over the figures of a process, and of a container, that a test sets."""

    def __init__(self, proc: Path, wanted: bool | None = None, **options: Any) -> None:
        self.usage = Usage(100 * MB, 512 * MB, "cgroup v2")
        self.workers = 1
        self.clock = Clock()
        self._folder = proc / "self"
        self._folder.mkdir(exist_ok=True)
        self.map()
        self.ceiling = Ceiling(
            wanted,
            lambda: self.usage,
            workers=lambda: self.workers,
            proc=str(proc),
            now=self.clock,
            **options,
        )

    def map(
        self, data: int = 120 * MB, rss: int = 90 * MB, shared: int = 0, threads: int = 1
    ) -> None:
        pages = [2 * data, rss, shared, 5 * MB, 0, data, 0]
        (self._folder / "statm").write_text(" ".join(str(size // PAGE) for size in pages))
        # A name that makes it as hard as it gets (proc(5)).
        before = " ".join(str(number) for number in range(4, 20))
        (self._folder / "stat").write_text(f"7 (a) R (b 9) S {before} {threads} 0 1234 5678\n")


ROOM = reserve(512 * MB) - 100 * MB  # at first, for one worker
SECOND = reserve(512 * MB, LAST_SHARE) - 100 * MB  # the same of the second step


def test_it_is_put_where_the_container_would_be_full_but_for_the_reserve(
    tmp_path: Path, limits: Limits
) -> None:
    site = Site(tmp_path)
    site.map(data=120 * MB, rss=100 * MB, shared=10 * MB)
    site.ceiling.arm()
    assert limits.now == (120 * MB + ROOM, INFINITY)
    assert site.ceiling.limit == 120 * MB + ROOM
    assert (site.ceiling.left, site.ceiling.room) == (ROOM, ROOM)
    assert (site.ceiling.anonymous, site.ceiling.holes) == (90 * MB, 0)
    assert site.ceiling.usage is site.usage


def test_what_was_mapped_and_unused_from_the_start_is_neither_used_nor_a_hole(
    tmp_path: Path, limits: Limits
) -> None:
    """Libraries keep that for themselves."""
    site = Site(tmp_path)
    site.map(data=120 * MB, rss=90 * MB)
    site.ceiling.arm()
    assert (site.ceiling.left, site.ceiling.holes) == (ROOM, 0)
    # Less of it than at first: a library has begun to use its own.
    site.map(data=120 * MB, rss=110 * MB)
    site.ceiling.arm()
    assert (site.ceiling.left, site.ceiling.holes) == (ROOM, 0)


def test_holes_that_come_later_are_filled_without_asking_and_take_from_what_may_be_mapped(
    tmp_path: Path, limits: Limits
) -> None:
    site = Site(tmp_path)
    site.ceiling.arm()
    site.usage = site.usage._replace(used=site.usage.used + 10 * MB)
    site.map(data=200 * MB, rss=100 * MB)
    site.ceiling.arm()
    assert site.ceiling.holes == 70 * MB
    assert site.ceiling.room == ROOM - 10 * MB
    assert site.ceiling.left == ROOM - 80 * MB
    assert limits.now[0] == 200 * MB + ROOM - 80 * MB


@pytest.mark.parametrize(("room", "new"), [(100, SLACK), (40, 40 * MB), (0, 0)])
def test_however_many_holes_there_are_something_may_be_mapped_anew(
    tmp_path: Path, limits: Limits, room: int, new: int
) -> None:
    """One allocator's holes are no use to another's arenas."""
    site = Site(tmp_path)
    site.ceiling.arm()
    site.usage = site.usage._replace(used=reserve(512 * MB) - room * MB)
    site.map(data=400 * MB, rss=100 * MB)
    site.ceiling.arm()
    assert site.ceiling.holes == 270 * MB
    assert (site.ceiling.room, site.ceiling.left) == (room * MB, new)
    assert limits.now[0] == 400 * MB + new


def test_a_limit_of_the_container_that_is_lifted_takes_the_ceiling_with_it(
    tmp_path: Path, limits: Limits
) -> None:
    site = Site(tmp_path)
    before = limits.now
    site.ceiling.arm()
    assert limits.now != before
    site.usage = site.usage._replace(source="process")
    site.ceiling.arm()
    assert limits.now == before
    assert (site.ceiling.limit, site.ceiling.left, site.ceiling.room) == (None, None, None)
    assert site.ceiling.usage is None  # so nobody blames a ceiling that is not there
    site.ceiling.open_reserve()  # there is none
    assert limits.now == before
    site.usage = site.usage._replace(source="cgroup v2")
    site.ceiling.arm()
    assert limits.now != before


def test_the_stacks_of_threads_are_no_holes(tmp_path: Path, limits: Limits) -> None:
    """They are mapped and hardly used."""
    site = Site(tmp_path)
    site.map(data=300 * MB, rss=90 * MB, threads=11)
    site.ceiling.arm()
    assert limits.now[0] == 300 * MB + ROOM
    site.map(data=300 * MB + 10 * STACK, rss=90 * MB, threads=21)
    site.ceiling.arm()
    assert (site.ceiling.holes, site.ceiling.left) == (0, ROOM)
    assert limits.now[0] == 300 * MB + 10 * STACK + ROOM
    # At a glance there are as many of them as before.
    site.map(data=300 * MB + 10 * STACK, rss=90 * MB, threads=1)
    site.ceiling.keep()
    assert site.ceiling.holes == 0
    site.ceiling.arm()
    assert site.ceiling.holes == 20 * STACK


def test_stacks_never_make_up_more_than_what_is_mapped_and_not_in_use(
    tmp_path: Path, limits: Limits
) -> None:
    """Small stacks, of threads that said so themselves."""
    site = Site(tmp_path)
    for data in (95 * MB, 150 * MB):
        site.map(data=data, rss=90 * MB, threads=100)
        site.ceiling.arm()
        assert (site.ceiling.holes, site.ceiling.left) == (0, ROOM)
        assert limits.now[0] == data + ROOM


def test_workers_share_the_room(tmp_path: Path, limits: Limits) -> None:
    site = Site(tmp_path)
    site.workers = 4
    site.ceiling.arm()
    assert limits.now[0] == 120 * MB + ROOM // 4
    assert (site.ceiling.left, site.ceiling.room) == (ROOM // 4, ROOM // 4)


def test_it_comes_down_as_others_grow_and_goes_up_again(tmp_path: Path, limits: Limits) -> None:
    site = Site(tmp_path)
    seen = []
    for used in (100, 300, 100):
        site.usage = Usage(used * MB, 512 * MB, "cgroup v2")
        site.ceiling.arm()
        seen.append(limits.now[0])
    assert seen[0] == seen[2] == seen[1] + 200 * MB


def test_small_changes_are_left_for_later(tmp_path: Path, limits: Limits) -> None:
    site = Site(tmp_path)
    site.ceiling.arm()
    site.usage = site.usage._replace(used=site.usage.used + STEP - 1)
    site.ceiling.arm()
    assert limits.calls == 1
    site.usage = site.usage._replace(used=site.usage.used + 1)
    site.ceiling.arm()
    assert limits.calls == 2


def test_a_new_worker_in_a_full_container_has_something_to_start_with(
    tmp_path: Path, limits: Limits
) -> None:
    site = Site(tmp_path)
    site.usage = Usage(512 * MB, 512 * MB, "cgroup v2")
    site.map(data=40 * MB, rss=30 * MB)
    site.ceiling.arm()
    assert limits.now[0] == 40 * MB + START
    assert (site.ceiling.left, site.ceiling.room) == (0, 0)
    # The second step is not lower.
    site.ceiling.open_reserve()
    assert limits.now[0] == 40 * MB + START
    # That is once, and not each time it is looked.
    site.map(data=45 * MB, rss=40 * MB)
    site.ceiling.arm()
    assert limits.now[0] == 40 * MB + START
    site.map(data=60 * MB, rss=60 * MB)
    site.ceiling.arm()
    assert limits.now[0] == 60 * MB


def test_threads_that_are_about_to_start_have_room_for_their_stacks(
    tmp_path: Path, limits: Limits
) -> None:
    site = Site(tmp_path)
    site.usage = Usage(512 * MB, 512 * MB, "cgroup v2")
    site.ceiling.arm(coming=3)
    assert limits.now[0] == 120 * MB + 3 * STACK


def test_the_size_of_a_stack_is_what_a_thread_would_get(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "stack_size", lambda: 0)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (16 * MB, INFINITY))
    assert module._stack_size() == 16 * MB
    monkeypatch.setattr(resource, "getrlimit", lambda _: (128 * MB, INFINITY))
    assert module._stack_size() == 128 * MB
    monkeypatch.setattr(resource, "getrlimit", lambda _: (INFINITY, INFINITY))
    assert module._stack_size() == USUAL_STACK
    monkeypatch.setattr(threading, "stack_size", lambda: MB)
    assert module._stack_size() == MB


# --- What was there before


def unlimited(size: int) -> int:
    return sys.maxsize if size == INFINITY else size


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ((INFINITY, INFINITY), None),
        ((150 * MB, 150 * MB), 150 * MB),
        ((200 * MB, INFINITY), 200 * MB),
        ((200 * MB, 300 * MB), 200 * MB),
        ((2000 * MB, 3000 * MB), None),
    ],
)
def test_a_lower_limit_of_the_users_own_is_kept(
    tmp_path: Path, limits: Limits, before: tuple[int, int], expected: int | None
) -> None:
    limits.now = before
    site = Site(tmp_path)
    site.ceiling.arm()
    ours = 120 * MB + ROOM
    assert limits.now == (expected or ours, before[1])
    site.ceiling.open_reserve()
    assert limits.now == (expected or 120 * MB + SECOND, before[1])
    site.clock.now += OPEN
    site.ceiling.load_begins()
    assert limits.now == (min(unlimited(size) for size in before), before[1])
    site.ceiling.load_ends()
    assert limits.now == (expected or ours, before[1])
    site.usage = Usage(0, 512 * MB, "cgroup v2")
    site.ceiling.arm()
    assert limits.now == (expected or ours + 100 * MB, before[1])
    site.ceiling.lift()
    assert limits.now == before
    assert (site.ceiling.limit, site.ceiling.left) == (None, None)


def test_lifting_what_was_never_armed_changes_nothing(tmp_path: Path, limits: Limits) -> None:
    Site(tmp_path).ceiling.lift()
    assert limits.calls == 0


def test_once_lifted_it_stays_lifted_whoever_still_looks(tmp_path: Path, limits: Limits) -> None:
    """The monitor may be in the middle of a look when the last app closes."""
    site = Site(tmp_path)
    before = limits.now
    site.ceiling.arm()
    site.ceiling.lift()
    calls = limits.calls
    site.usage = site.usage._replace(used=500 * MB)
    for late in (site.ceiling.arm, site.ceiling.keep, site.ceiling.open_reserve):
        late()
        assert (site.ceiling.limit, site.ceiling.left) == (None, None)
    site.ceiling.load_begins()
    site.ceiling.load_ends()
    assert limits.now == before
    assert limits.calls == calls
    assert not site.ceiling.possible()


def test_a_child_begins_anew_and_lifts_to_what_was_before_its_parent(
    tmp_path: Path, limits: Limits
) -> None:
    limits.now = (900 * MB, 900 * MB)
    site = Site(tmp_path)
    site.ceiling.arm()
    site.ceiling.hit()
    site.ceiling.load_begins()  # of a thread that the child has not
    site.ceiling.after_fork()
    assert (site.ceiling.limit, site.ceiling.left, site.ceiling.room) == (None, None, None)
    assert (site.ceiling.anonymous, site.ceiling.holes, site.ceiling.usage) == (0, 0, None)
    assert not site.ceiling.met_by_one()
    assert site.ceiling.hit_since() is None
    calls = limits.calls
    site.ceiling.open_reserve()  # its parent's figures are none of its own
    assert limits.calls == calls
    # Larger than its parent was at first: its floor is its own.
    site.usage = Usage(512 * MB, 512 * MB, "cgroup v2")
    (tmp_path / "self" / "statm").unlink()  # what is open is the parent's
    site.map(data=200 * MB, rss=190 * MB)
    site.ceiling.arm()
    assert limits.now == (200 * MB + START, 900 * MB)
    site.ceiling.lift()
    assert limits.now == (900 * MB, 900 * MB)


# --- The second step


def test_the_reserve_is_opened_for_who_handles_an_error_and_closes_by_itself(
    tmp_path: Path, limits: Limits
) -> None:
    site = Site(tmp_path)
    site.ceiling.open_reserve()  # there is none yet
    assert limits.calls == 0
    site.ceiling.arm()
    first = limits.now
    site.ceiling.open_reserve()
    assert limits.now == (120 * MB + SECOND, INFINITY)
    # What is told is the working limit.
    assert site.ceiling.limit == first[0]
    for look in (site.ceiling.keep, site.ceiling.arm):
        site.clock.now += OPEN / 3
        look()
        assert limits.now == (120 * MB + SECOND, INFINITY)
        assert (site.ceiling.limit, site.ceiling.left) == (first[0], ROOM)
    site.clock.now += OPEN / 3 + 0.001
    site.ceiling.keep()
    assert limits.now == first


def test_who_opens_it_again_has_it_for_longer(tmp_path: Path, limits: Limits) -> None:
    site = Site(tmp_path)
    site.ceiling.arm()
    for _ in range(3):
        site.ceiling.open_reserve()
        site.clock.now += 0.9 * OPEN
        site.ceiling.keep()
        assert limits.now[0] == 120 * MB + SECOND


def test_of_the_second_step_all_workers_may_have_the_whole(tmp_path: Path, limits: Limits) -> None:
    """They seldom meet their ceilings together."""
    site = Site(tmp_path)
    site.workers = 4
    site.ceiling.arm()
    assert limits.now[0] == 120 * MB + ROOM // 4
    site.ceiling.open_reserve()
    assert limits.now[0] == 120 * MB + SECOND


def test_the_reserve_is_really_free_when_the_working_limit_is_met(
    tmp_path: Path, limits: Limits
) -> None:
    site = Site(tmp_path)
    site.usage = site.usage._replace(used=reserve(512 * MB))
    site.map(data=459 * MB, rss=459 * MB)
    site.ceiling.arm()
    site.map(data=459 * MB + START, rss=459 * MB + START)
    site.usage = site.usage._replace(used=site.usage.used + START)
    site.ceiling.arm()
    assert site.ceiling.left == 0
    before = limits.now[0]
    site.ceiling.open_reserve()
    assert limits.now[0] - before == reserve(512 * MB, LAST_SHARE) - reserve(512 * MB) - START
    assert limits.now[0] > before


# --- While a package loads


def test_while_a_heavy_package_loads_it_may_map_freely(tmp_path: Path, limits: Limits) -> None:
    site = Site(tmp_path)
    site.ceiling.arm()
    site.ceiling.load_begins()
    free = (sys.maxsize, INFINITY)
    assert limits.now == free
    for look in (site.ceiling.keep, site.ceiling.arm, site.ceiling.open_reserve):
        look()
        assert limits.now == free
    # What it has mapped and not touched (OpenBLAS) is no hole; what it uses, is used.
    site.map(data=320 * MB, rss=110 * MB)
    site.usage = site.usage._replace(used=site.usage.used + 20 * MB)
    site.ceiling.keep()
    assert limits.now == free
    site.clock.now += OPEN
    site.ceiling.load_ends()
    assert (site.ceiling.holes, site.ceiling.left) == (0, ROOM - 20 * MB)
    assert limits.now == (320 * MB + ROOM - 20 * MB, INFINITY)


def test_what_comes_after_the_load_is_a_hole_again(tmp_path: Path, limits: Limits) -> None:
    site = Site(tmp_path)
    site.ceiling.arm()
    site.ceiling.load_begins()
    site.map(data=320 * MB, rss=110 * MB, threads=3)  # it has started two
    site.ceiling.load_ends()
    assert site.ceiling.holes == 0
    site.map(data=330 * MB, rss=110 * MB, threads=3)
    site.ceiling.arm()
    assert site.ceiling.holes == 10 * MB


def test_what_others_give_back_while_a_package_loads_are_holes(
    tmp_path: Path, limits: Limits
) -> None:
    """A request that ends beside it gives 250 MB back; the package maps 40 that it does not use."""
    site = Site(tmp_path)
    site.map(data=370 * MB, rss=340 * MB)
    site.ceiling.arm()
    site.ceiling.load_begins()
    site.map(data=410 * MB, rss=90 * MB)
    site.ceiling.load_ends()
    assert site.ceiling.holes == 250 * MB
    assert limits.now[0] == 410 * MB + ROOM - 250 * MB


def test_what_two_loads_at_once_map_and_do_not_use_counts_once(
    tmp_path: Path, limits: Limits
) -> None:
    site = Site(tmp_path)
    site.ceiling.arm()
    site.ceiling.load_begins()
    ends = threading.Event()

    def load() -> None:
        site.ceiling.load_begins()
        began.set()
        ends.wait(10)
        site.ceiling.load_ends()

    began, other = threading.Event(), threading.Thread(target=load)
    other.start()
    began.wait(10)
    site.map(data=160 * MB, rss=90 * MB)
    site.ceiling.load_ends()
    ends.set()
    other.join()
    site.map(data=200 * MB, rss=90 * MB)
    site.ceiling.arm()
    assert site.ceiling.holes == 40 * MB


def test_a_load_that_gives_back_what_was_unused_takes_nothing_from_the_rest(
    tmp_path: Path, limits: Limits
) -> None:
    site = Site(tmp_path)
    site.ceiling.arm()
    site.ceiling.load_begins()
    site.map(data=120 * MB, rss=110 * MB)
    site.ceiling.load_ends()
    site.map(data=120 * MB, rss=90 * MB)
    site.ceiling.arm()
    assert site.ceiling.holes == 0


def test_of_two_that_load_the_last_one_ends_it(tmp_path: Path, limits: Limits) -> None:
    site = Site(tmp_path)
    site.ceiling.arm()
    began, end = threading.Event(), threading.Event()

    def load() -> None:
        site.ceiling.load_begins()
        began.set()
        end.wait(10)
        site.ceiling.load_ends()

    other = threading.Thread(target=load)
    other.start()
    assert began.wait(10)
    site.ceiling.load_begins()
    site.ceiling.load_ends()
    site.ceiling.load_ends()  # harmless when repeated
    assert limits.now[0] == sys.maxsize
    end.set()
    other.join(10)
    assert limits.now[0] == 120 * MB + ROOM


@pytest.mark.parametrize(("left", "refused"), [(PACKAGE - 1, True), (PACKAGE, False)])
def test_a_package_that_there_is_no_room_for_is_refused_before_it_begins(
    tmp_path: Path, limits: Limits, left: int, refused: bool
) -> None:
    site = Site(tmp_path)
    site.ceiling.arm()
    before = limits.now
    site.usage = site.usage._replace(used=512 * MB - left)
    if refused:
        with pytest.raises(MemoryError, match="too little memory"):
            site.ceiling.load_begins()
        assert limits.now == before
        site.ceiling.keep()
        assert limits.now[0] != sys.maxsize
    else:
        site.ceiling.load_begins()
        assert limits.now[0] == sys.maxsize


def test_without_a_ceiling_nothing_is_refused(tmp_path: Path, limits: Limits) -> None:
    site = Site(tmp_path, False)
    site.usage = site.usage._replace(used=512 * MB)
    site.ceiling.arm()
    site.ceiling.load_begins()
    site.ceiling.load_ends()
    assert limits.calls == 0


def test_a_system_that_stops_telling_lets_a_load_begin_and_end(
    tmp_path: Path, limits: Limits
) -> None:
    site = Site(tmp_path)
    site.ceiling.arm()
    (tmp_path / "self" / "stat").write_text("")
    (tmp_path / "self" / "statm").write_text("")
    site.ceiling.load_begins()
    assert limits.now[0] == sys.maxsize
    site.ceiling.load_ends()
    site.map()
    site.ceiling.arm()
    assert limits.now[0] == 120 * MB + ROOM


# --- Where there is one


@pytest.mark.parametrize("source", ["cgroup v1", "cgroup v2", "machine", "process"])
@pytest.mark.parametrize("wanted", [None, True, False])
def test_there_is_one_where_it_is_asked_for_or_where_a_limit_is_enforced(
    tmp_path: Path, limits: Limits, source: str, wanted: bool | None
) -> None:
    site = Site(tmp_path, wanted)
    site.usage = site.usage._replace(source=source)
    site.ceiling.arm()
    expected = wanted if wanted is not None else source != "process"
    assert (limits.calls == 1) is expected
    assert (site.ceiling.limit is not None) is expected
    assert site.ceiling.possible() is expected


@pytest.mark.parametrize("wanted", [None, True])
@pytest.mark.parametrize("platform", ["darwin", "win32", "freebsd14"])
def test_other_systems_have_none(
    tmp_path: Path,
    limits: Limits,
    monkeypatch: pytest.MonkeyPatch,
    wanted: bool | None,
    platform: str,
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    site = Site(tmp_path, wanted)
    site.ceiling.arm()
    site.ceiling.keep()
    assert limits.calls == 0
    assert not site.ceiling.possible()


@pytest.mark.parametrize(
    ("statm", "stat"),
    [(None, None), ("", ""), (None, "7 (a) S 1"), ("1 2", "7 (a) S"), ("garbage", "(")],
)
def test_a_system_that_does_not_tell_what_is_mapped_has_none(
    tmp_path: Path, limits: Limits, statm: str | None, stat: str | None
) -> None:
    """A chroot without /proc, say: the monitor starts all the same."""
    site = Site(tmp_path)
    for name, text in (("statm", statm), ("stat", stat)):
        (tmp_path / "self" / name).unlink()
        if text is not None:
            (tmp_path / "self" / name).write_text(text)
    site.ceiling.arm()
    site.ceiling.keep()
    assert limits.calls == 0
    assert (site.ceiling.limit, site.ceiling.left) == (None, None)


# --- Who meets it


@pytest.mark.parametrize(
    ("hits", "ago", "by_one", "by_all"),
    [
        (0, 0.0, False, False),
        (1, 0.0, True, False),
        (1, JUST_NOW / 2, True, False),
        (1, JUST_NOW, False, False),
        (MANY - 1, 0.0, True, False),
        (MANY, 0.0, False, True),
        (3 * MANY, 0.0, False, True),
        (3 * MANY, 2 * JUST_NOW, False, False),
    ],
)
def test_a_few_that_meet_it_just_now_are_told_from_all_that_come(
    tmp_path: Path, hits: int, ago: float, by_one: bool, by_all: bool
) -> None:
    site = Site(tmp_path)
    for _ in range(hits):
        site.ceiling.hit()
    site.clock.now += ago
    assert site.ceiling.met_by_one() is by_one
    assert site.ceiling.met_by_all() is by_all


def test_a_single_hit_long_after_many_is_a_single_one(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for _ in range(MANY):
        site.ceiling.hit()
    site.clock.now += 2 * JUST_NOW
    site.ceiling.hit()
    assert site.ceiling.met_by_one()
    assert not site.ceiling.met_by_all()


@pytest.mark.parametrize(
    ("hits", "since"),
    [
        ([], None),
        ([0], 0.0),
        ([5], 5.0),
        ([LATELY], LATELY),
        ([LATELY + 0.1], None),
        # Time and again, never more than LATELY apart: since the first of them.
        ([3 * LATELY, 2 * LATELY, LATELY, 1], 3 * LATELY),
        # Apart by more: since the first of the last ones.
        ([3 * LATELY, LATELY + 3, 2, 1], 2.0),
    ],
)
def test_it_is_told_since_when_requests_meet_it(
    tmp_path: Path, hits: list[float], since: float | None
) -> None:
    site = Site(tmp_path)
    began = site.clock.now
    for ago in hits:
        site.clock.now = began + 1000 - ago
        site.ceiling.hit()
    site.clock.now = began + 1000
    found = site.ceiling.hit_since()
    assert found == (None if since is None else pytest.approx(since))


# --- And for real

PROGRAM = """
import resource, threading
from lowmem_wsgi.memory.ceiling import Ceiling
from lowmem_wsgi.memory.reading import OwnRss, Usage

MB = 1 << 20
before = resource.getrlimit(resource.RLIMIT_DATA)
rss = OwnRss()
limit = 120 * MB
ceiling = Ceiling(True, lambda: Usage(rss(), limit, "process"))
ceiling.arm(coming=4)
after = resource.getrlimit(resource.RLIMIT_DATA)
assert after == (ceiling.limit, before[1]), after

try:
    bytearray(limit)
except MemoryError:
    print("large: MemoryError")

release = threading.Event()
threads = [threading.Thread(target=release.wait) for _ in range(4)]
for thread in threads:
    thread.start()
ceiling.arm()
kept = []
try:
    while rss() < 2 * limit:
        kept.append(b"x" * 65536)
        kept[-1] += b"y"
except MemoryError:
    ceiling.open_reserve()  # a third of which is had while the heap is full
    room = bytearray(limit // 72)
    held = len(kept)
    del kept[:]
    print("small: MemoryError")
assert held * 65536 > limit / 3, held
assert ceiling.limit < limit + 5 * 8 * MB, ceiling.limit
release.set()
for thread in threads:
    thread.join()

ceiling.lift()
assert resource.getrlimit(resource.RLIMIT_DATA) == before
print("lifted:", len(bytearray(2 * limit)) // MB)
"""


def test_the_kernel_holds_it_and_lifting_it_restores_what_was() -> None:
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert found.stderr == ""
    assert found.stdout.splitlines() == ["large: MemoryError", "small: MemoryError", "lifted: 240"]
