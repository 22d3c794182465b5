"""The ceiling: where it is put, over processes of a test's own, and that the kernel holds it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import MB, Clock
from lowmem_wsgi.memory import ceiling as module
from lowmem_wsgi.memory.ceiling import (
    JUST_NOW,
    MANY,
    RESERVE_SHARE,
    START,
    STEP,
    USUAL_STACK,
    Ceiling,
    data_limit,
)
from lowmem_wsgi.memory.reading import Usage

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")

resource = pytest.importorskip("resource")
PAGE = os.sysconf("SC_PAGE_SIZE")
INFINITY = resource.RLIM_INFINITY
SIZES = st.integers(0, 4 << 30)


# --- Where it is put: a pure function


def reserve(limit: int) -> int:
    return int(limit * (1 - RESERVE_SHARE))


@given(SIZES, SIZES, SIZES, SIZES, SIZES, st.integers(1, 40))
def test_all_workers_at_their_ceilings_leave_the_reserve_free(
    used: int, limit: int, data: int, anonymous: int, stacks: int, workers: int
) -> None:
    found = data_limit(Usage(used, limit, "cgroup v2"), data, anonymous, stacks, workers)
    more = found - anonymous - stacks
    assert found == data or used + workers * more <= max(used, reserve(limit))


@given(SIZES, SIZES, SIZES, SIZES, SIZES, st.integers(0, 40))
def test_it_is_never_put_under_what_is_mapped_already(
    used: int, limit: int, data: int, anonymous: int, stacks: int, workers: int
) -> None:
    assert data_limit(Usage(used, limit, "cgroup v2"), data, anonymous, stacks, workers) >= data


@given(SIZES, SIZES, SIZES, st.integers(1, 40))
def test_the_room_there_is_can_be_had_but_for_the_reserve(
    limit: int, anonymous: int, stacks: int, workers: int
) -> None:
    """Of an otherwise empty container, up to what cannot be divided."""
    usage = Usage(anonymous * workers, limit, "cgroup v2")
    found = data_limit(usage, anonymous + stacks, anonymous, stacks, workers)
    room = reserve(limit) - anonymous * workers
    if room >= 0:
        assert 0 <= room - workers * (found - anonymous - stacks) < workers


@given(SIZES, SIZES, st.integers(1, 40), SIZES)
def test_it_never_rises_as_others_use_more(used: int, limit: int, workers: int, more: int) -> None:
    first = data_limit(Usage(used, limit, ""), 0, 0, 0, workers)
    assert data_limit(Usage(used + more, limit, ""), 0, 0, 0, workers) <= first
    assert data_limit(Usage(used, limit, ""), 0, 0, 0, workers + 1) <= first


# --- A process of the test's own


class Limits:
    """RLIMIT_DATA of this process, as it would be."""

    def __init__(self) -> None:
        self.now = (INFINITY, INFINITY)
        self.calls = 0

    def get(self, which: int) -> tuple[int, int]:
        return self.now if which == resource.RLIMIT_DATA else (USUAL_STACK, INFINITY)

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


def test_it_is_put_where_the_container_would_be_full_but_for_the_reserve(
    tmp_path: Path, limits: Limits
) -> None:
    site = Site(tmp_path)
    site.map(data=120 * MB, rss=100 * MB, shared=10 * MB)
    site.ceiling.arm()
    room = reserve(512 * MB) - 100 * MB
    assert limits.now == (90 * MB + room, INFINITY)
    assert site.ceiling.limit == 90 * MB + room


def test_what_is_left_does_not_count_what_was_mapped_and_unused_from_the_start(
    tmp_path: Path, limits: Limits
) -> None:
    """Libraries keep that for themselves."""
    site = Site(tmp_path)
    site.map(data=120 * MB, rss=90 * MB)
    site.ceiling.arm()
    room = reserve(512 * MB) - 100 * MB
    assert site.ceiling.left == room - 30 * MB
    # Holes that come later are filled again without asking: they are room.
    site.usage.used += 10 * MB
    site.map(data=200 * MB, rss=100 * MB)
    site.ceiling.arm()
    assert site.ceiling.left == room - 40 * MB


def test_a_limit_of_the_container_that_is_lifted_takes_the_ceiling_with_it(
    tmp_path: Path, limits: Limits
) -> None:
    site = Site(tmp_path)
    before = limits.now
    site.ceiling.arm()
    assert limits.now != before
    site.usage.source = "process"
    site.ceiling.arm()
    assert limits.now == before
    assert site.ceiling.limit is None
    site.usage.source = "cgroup v2"
    site.ceiling.arm()
    assert limits.now != before


def test_the_stacks_of_threads_that_are_mapped_and_not_used_do_not_count(
    tmp_path: Path, limits: Limits
) -> None:
    site = Site(tmp_path)
    site.map(data=300 * MB, rss=90 * MB, threads=11)
    site.ceiling.arm()
    room = reserve(512 * MB) - 100 * MB
    assert limits.now[0] == 90 * MB + 10 * USUAL_STACK + room
    assert site.ceiling.left == room - (300 - 90 - 80) * MB
    # At a glance there are as many of them as before.
    site.map(data=300 * MB, rss=90 * MB, threads=1)
    site.ceiling.keep()
    assert limits.now[0] == 90 * MB + 10 * USUAL_STACK + room
    site.ceiling.arm()
    assert limits.now[0] == 90 * MB + room


def test_stacks_never_make_up_more_than_what_is_mapped_and_not_in_use(
    tmp_path: Path, limits: Limits
) -> None:
    """Small stacks, of threads that said so themselves."""
    site = Site(tmp_path)
    site.map(data=95 * MB, rss=90 * MB, threads=100)
    site.ceiling.arm()
    assert limits.now[0] == 95 * MB + reserve(512 * MB) - 100 * MB


def test_workers_share_the_room(tmp_path: Path, limits: Limits) -> None:
    site = Site(tmp_path)
    site.workers = 4
    site.ceiling.arm()
    assert limits.now[0] == 90 * MB + (reserve(512 * MB) - 100 * MB) // 4


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
    site.usage.used += STEP - 1
    site.ceiling.arm()
    assert limits.calls == 1
    site.usage.used += 1
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
    assert limits.now[0] == 120 * MB + 3 * USUAL_STACK


def test_the_size_of_a_stack_is_what_a_thread_would_get(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.threading, "stack_size", lambda: 0)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (16 * MB, INFINITY))
    assert module._stack_size() == 16 * MB
    monkeypatch.setattr(resource, "getrlimit", lambda _: (INFINITY, INFINITY))
    assert module._stack_size() == USUAL_STACK
    monkeypatch.setattr(module.threading, "stack_size", lambda: MB)
    assert module._stack_size() == MB


# --- What was there before


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
    ours = 90 * MB + reserve(512 * MB) - 100 * MB
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


def test_a_child_begins_anew_and_lifts_to_what_was_before_its_parent(
    tmp_path: Path, limits: Limits
) -> None:
    limits.now = (900 * MB, 900 * MB)
    site = Site(tmp_path)
    site.ceiling.arm()
    site.ceiling.hit()
    site.ceiling.after_fork()
    assert (site.ceiling.limit, site.ceiling.left) == (None, None)
    assert not site.ceiling.met_by_one()
    # Larger than its parent was at first: its floor is its own.
    site.usage = Usage(512 * MB, 512 * MB, "cgroup v2")
    (tmp_path / "self" / "statm").unlink()  # what is open is the parent's
    site.map(data=200 * MB, rss=190 * MB)
    site.ceiling.arm()
    assert limits.now == (200 * MB + START, 900 * MB)
    site.ceiling.lift()
    assert limits.now == (900 * MB, 900 * MB)


# --- Where there is one


@pytest.mark.parametrize("source", ["cgroup v1", "cgroup v2", "machine", "process"])
@pytest.mark.parametrize("wanted", [None, True, False])
def test_there_is_one_where_it_is_asked_for_or_where_a_limit_is_enforced(
    tmp_path: Path, limits: Limits, source: str, wanted: bool | None
) -> None:
    site = Site(tmp_path, wanted)
    site.usage.source = source
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
