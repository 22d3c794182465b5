"""Who is interrupted near the ceiling: the request that has been computing while memory grew."""

from __future__ import annotations

import _thread
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, SimpleNamespace

import pytest

from helpers.fakes import MB, Clock
from helpers.forks import asked
from helpers.servers import wait_for
from lowmem_wsgi.memory import interrupt as module
from lowmem_wsgi.memory.interrupt import (
    AGAIN,
    FORGET,
    FURTHER,
    LEAST,
    SHARE,
    Interrupt,
    processor_seconds,
)

# --- The suspect, over threads of a test's own


class Threads:
    """Requests in threads whose processor time a test sets, and an interrupt over them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.clock = Clock()
        self.struck: list[int] = []
        self.taken_back: list[int] = []
        self.possible = True
        self.meanwhile: Callable[[], object] = bool  # as it strikes
        self.of_all = 50.0  # processor seconds of the process
        self.size = 100 * MB
        self.work = {name: 100 + number for number, name in enumerate(names)}
        self.spent: dict[int | None, float] = {ident + 1000: 5.0 for ident in self.work.values()}
        # Idents are not what the system calls them.
        known = [_Thread(ident, ident + 1000) for ident in self.work.values()]
        monkeypatch.setattr(threading, "enumerate", lambda: known)
        self.interrupt = self.over()

    def over(self, *inside: CodeType) -> Interrupt:
        """An interrupt over them. `inside`: code of which one runs as long as an app does."""
        return Interrupt(
            lambda: self.work,
            inside,
            now=self.clock,
            spent=self.spent.get,
            spent_by_all=lambda: self.of_all,
            raise_in=self._raise_in,
        )

    def look(self) -> bool:
        return self.interrupt.look(self.size)

    def pass_by(self, seconds: float, rest: float = 0.0, **shares: float) -> object:
        """So much time goes by, of which each has had its share of the processor, and the rest of
        the process has had its own; the suspect."""
        self.look()
        self.clock.now += seconds
        self.of_all += (rest + sum(shares.values())) * seconds
        for name, share in shares.items():
            self.spent[self.work[name] + 1000] += share * seconds
        self.look()
        return self.interrupt.suspect

    def _raise_in(self, ident: int, kind: type[BaseException] | None) -> bool:
        (self.taken_back if kind is None else self.struck).append(ident)
        if kind is not None:
            self.meanwhile()
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
        ({"two": 1.1 * SHARE, "rest": 1 - 1.1 * SHARE}, "two"),
        ({"two": 0.9 * SHARE, "rest": 1 - 0.9 * SHARE}, None),
        ({"one": 0.3, "two": 0.6}, "two"),
        ({"one": 0.6, "two": 0.3}, "one"),
        # Two have each too little of it, and together enough.
        ({"one": 0.8 * SHARE, "two": 0.7 * SHARE, "rest": 1 - 1.5 * SHARE}, None),
        # In a container with a tenth of a processor, or with four.
        ({"two": 0.1}, "two"),
        ({"two": 0.02, "one": 0.01, "rest": 0.07}, "two"),
        ({"two": 0.5, "rest": 3.5}, None),
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


def test_it_is_told_by_how_much_the_process_has_grown_since_the_suspect_came(
    threads: Callable[..., Threads],
) -> None:
    site = threads("waits", "computes")
    site.look()
    site.size += 100 * MB  # before the suspect was seen to compute, while it was there
    site.pass_by(0.1, computes=1.0)
    assert (site.interrupt.suspect, site.interrupt.grown) == ("computes", 100 * MB)
    site.size += 5 * MB
    site.look()
    assert site.interrupt.grown == 105 * MB
    # Where the process falls below that, what has grown is gone, and the account begins anew.
    site.size -= 150 * MB
    site.look()
    assert (site.interrupt.suspect, site.interrupt.grown) == (None, 0)


def test_what_a_request_has_done_is_forgotten_in_time(threads: Callable[..., Threads]) -> None:
    """A stream is not blamed for all that has come since it began."""
    site = threads("stream")
    site.pass_by(FORGET, stream=0.3)
    site.size += 100 * MB
    site.look()
    assert site.interrupt.grown == 100 * MB
    site.pass_by(1.0, stream=0.3)
    site.pass_by(1.0, stream=0.3)
    assert (site.interrupt.suspect, site.interrupt.grown) == ("stream", 0)


@pytest.mark.parametrize(("of_the_younger", "suspect"), [(0.79, "old"), (0.81, "new")])
def test_of_two_that_compute_alike_the_younger_is_the_suspect(
    threads: Callable[..., Threads], of_the_younger: float, suspect: str
) -> None:
    site = threads("old", "new")
    assert site.pass_by(1.0, old=1.0, new=of_the_younger) == suspect


def test_what_had_come_before_the_suspect_is_not_its_doing(
    threads: Callable[..., Threads],
) -> None:
    site = threads("old", "new")
    new = {"new": site.work.pop("new")}
    site.pass_by(1.0, old=0.5)
    site.size += 100 * MB
    site.work |= new
    site.pass_by(0.1, new=1.0, old=0.1)
    assert site.interrupt.suspect == "old"  # so far it has had more time
    site.pass_by(0.4, new=1.0)
    assert (site.interrupt.suspect, site.interrupt.grown) == ("new", 0)


def test_without_a_suspect_nobody_has_grown(threads: Callable[..., Threads]) -> None:
    site = threads("one")
    site.pass_by(0.1, one=1.0)
    site.size += 50 * MB
    site.look()
    assert site.interrupt.grown == 50 * MB
    site.pass_by(10, rest=1.0)
    assert (site.interrupt.suspect, site.interrupt.grown) == (None, 0)


def test_it_is_told_whether_anything_is_in_flight(threads: Callable[..., Threads]) -> None:
    site = threads("one")
    assert site.look() is True
    del site.spent[1100]  # of which the system tells nothing
    assert site.look() is True
    site.work = {}
    assert site.look() is False


def test_nobody_is_suspected_at_first_sight(threads: Callable[..., Threads]) -> None:
    site = threads("one")
    assert site.pass_by(LEAST / 2, one=1.0) is None
    assert site.pass_by(LEAST, one=1.0) == "one"


def test_a_request_that_comes_to_rest_is_a_suspect_no_longer(
    threads: Callable[..., Threads],
) -> None:
    site = threads("one")
    assert site.pass_by(0.1, one=1.0) == "one"
    assert site.pass_by(0.9, one=0.0, rest=1.0) is None


def test_the_next_request_in_the_same_thread_begins_anew(threads: Callable[..., Threads]) -> None:
    site = threads("first")
    assert site.pass_by(1.0, first=1.0) == "first"
    site.work = {"second": site.work["first"]}
    site.look()
    assert site.interrupt.suspect is None


def test_a_thread_that_the_system_tells_nothing_of_is_no_suspect(
    threads: Callable[..., Threads],
) -> None:
    site = threads("gone", "here")
    del site.spent[1100]
    assert site.pass_by(0.1, here=0.5) == "here"
    del site.spent[1101]
    site.look()
    assert site.interrupt.suspect is None
    assert not site.interrupt.strike()


def test_work_without_a_thread_is_no_suspect(threads: Callable[..., Threads]) -> None:
    site = threads("one")
    site.work = {"other": 139876543210}
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


def test_who_catches_the_error_and_grows_on_is_struck_again_at_once(
    threads: Callable[..., Threads],
) -> None:
    site = threads("one")
    site.pass_by(0.1, one=0.8)
    assert site.interrupt.strike()
    before = site.size
    site.size = before + FURTHER - 1
    site.look()
    assert not site.interrupt.strike()
    site.size = before + FURTHER
    site.look()
    assert site.interrupt.strike()
    assert site.struck == [100, 100]


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


def test_a_request_that_ends_as_it_is_struck_leaves_the_error_to_nobody(
    threads: Callable[..., Threads],
) -> None:
    site = threads("one")
    site.pass_by(0.1, one=1.0)
    site.meanwhile = site.work.clear
    assert not site.interrupt.strike()
    assert (site.struck, site.taken_back) == ([100], [100])


def test_who_cannot_be_struck_was_not(threads: Callable[..., Threads]) -> None:
    site = threads("one")
    site.pass_by(0.1, one=1.0)
    site.possible = False
    assert not site.interrupt.strike()


def test_all_is_forgotten_when_nothing_is_in_flight(threads: Callable[..., Threads]) -> None:
    site = threads("one")
    site.size += 20 * MB
    site.pass_by(2 * LEAST, one=1.0)
    site.size += 20 * MB
    site.look()
    assert site.interrupt.grown == 20 * MB
    assert site.interrupt.strike()
    site.interrupt.forget()
    assert (site.interrupt.suspect, site.interrupt.grown) == (None, 0)
    assert not site.interrupt.strike()
    # What was seen before counts no more.
    assert site.pass_by(LEAST / 2, one=1.0) is None
    # Nor whom it has struck.
    assert site.pass_by(LEAST, one=1.0) == "one"
    assert site.interrupt.strike()


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
            except MemoryError as error:
                self.caught.append(error.with_traceback(None))

    def _compute(self) -> None:
        while not self.stop:
            pass

    def end(self) -> None:
        self.stop = True
        self.thread.join(10)
        assert not self.thread.is_alive()


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="a clock for each thread")


def suspected(interrupt: Interrupt) -> object:
    """The suspect, when there is one."""

    def found() -> bool:
        interrupt.look()
        return interrupt.suspect is not None

    wait_for(found, "a suspect")
    return interrupt.suspect


@pytest.fixture
def busy(quick_switches: None) -> Iterator[Loop]:
    found = Loop()
    yield found
    found.end()


def ident_of(thread: threading.Thread) -> int:
    assert thread.ident is not None
    return thread.ident


@on_linux
def test_a_loop_gets_the_memory_error_and_who_waits_does_not(busy: Loop) -> None:
    waiting = threading.Event()
    waiter = threading.Thread(target=waiting.wait, daemon=True)
    waiter.start()
    work = {"waits": ident_of(waiter), "computes": ident_of(busy.thread)}
    try:
        interrupt = Interrupt(lambda: work)
        assert suspected(interrupt) == "computes"
        assert interrupt.strike()
        wait_for(lambda: busy.caught, "the loop to be interrupted")
        assert [type(error) for error in busy.caught] == [MemoryError]
        assert busy.thread.is_alive()
    finally:
        waiting.set()
        waiter.join(10)


def somewhere_else() -> None: ...


@on_linux
@pytest.mark.parametrize(
    ("inside", "struck"),
    [
        ([], True),
        ([Loop._compute.__code__], True),
        ([somewhere_else.__code__, Loop._run.__code__], True),
        ([somewhere_else.__code__], False),
    ],
)
def test_a_thread_is_struck_only_inside_an_app(
    busy: Loop, inside: list[CodeType], struck: bool
) -> None:
    """Before and after it, the error would end the server's thread."""
    interrupt = Interrupt(lambda: {"it": ident_of(busy.thread)}, inside)
    assert suspected(interrupt) == "it"
    assert interrupt.strike() is struck
    if struck:
        wait_for(lambda: busy.caught, "the loop to be interrupted")
    else:
        assert busy.caught == []


@pytest.fixture
def imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Callable[[], object]], None]]:
    """Import a module that does something."""
    (tmp_path / "imports_and_works.py").write_text("import sys\nsys.work()\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def do(work: Callable[[], object]) -> None:
        monkeypatch.setattr(sys, "work", work, raising=False)
        importlib.import_module("imports_and_works")

    yield do
    sys.modules.pop("imports_and_works", None)


class Importing(Loop):
    """A request that is in the middle of an import."""

    def __init__(self, do: Callable[[Callable[[], object]], None]) -> None:
        self._import = do
        super().__init__()

    def _compute(self) -> None:
        self._import(super()._compute)


@on_linux
@pytest.mark.parametrize("inside", [(), (Importing._compute.__code__,)])
def test_a_thread_that_imports_is_spared_as_long_as_that_is_wanted(
    quick_switches: None,
    imported: Callable[[Callable[[], object]], None],
    inside: tuple[CodeType, ...],
) -> None:
    importing = Importing(imported)
    try:
        interrupt = Interrupt(lambda: {"it": ident_of(importing.thread)}, inside)
        wait_for(lambda: "imports_and_works" in sys.modules, "the import")
        assert suspected(interrupt) == "it"
        assert not interrupt.strike(spare_imports=True)
        assert importing.caught == []
        assert interrupt.strike()
        wait_for(lambda: importing.caught, "it to be interrupted")
    finally:
        importing.end()


@on_linux
def test_an_app_that_a_module_serves_as_it_is_imported_is_not_spared(
    quick_switches: None, imported: Callable[[Callable[[], object]], None]
) -> None:
    """`import site` that runs a server: no request of its own imports anything."""
    serving = Importing(imported)
    try:
        wait_for(lambda: "imports_and_works" in sys.modules, "the import")
        inside = [Loop._compute.__code__]
        interrupt = Interrupt(lambda: {"it": ident_of(serving.thread)}, inside)
        assert suspected(interrupt) == "it"
        wait_for(lambda: interrupt.strike(spare_imports=True), "it to be struck")
        wait_for(lambda: serving.caught, "it to be interrupted")
    finally:
        serving.end()


@on_linux
def test_a_main_thread_that_is_another_than_the_processs_first_is_told_as_any(
    busy: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Python is embedded (mod_wsgi), it is the thread that has imported `threading`."""
    monkeypatch.setattr(threading, "main_thread", lambda: busy.thread)
    interrupt = Interrupt(lambda: {"it": ident_of(busy.thread)})
    assert interrupt._native_ids()[busy.thread.ident] == busy.thread.native_id
    assert suspected(interrupt) == "it"


@on_linux
def test_a_thread_that_threading_does_not_know_is_suspected_as_any() -> None:
    """As those of mod_wsgi, which are made in C."""
    idents: list[int] = []
    end = threading.Event()

    def compute() -> None:
        idents.append(threading.get_ident())
        while not end.is_set():
            pass

    _thread.start_new_thread(compute, ())
    try:
        wait_for(lambda: idents, "the thread")
        assert suspected(Interrupt(lambda: {"it": idents[0]})) == "it"
    finally:
        end.set()


@on_linux
def test_the_main_thread_of_a_forked_worker_is_suspected_as_any() -> None:
    def suspects_itself() -> bool:
        interrupt = Interrupt(lambda: {"it": threading.get_ident()})
        end = time.monotonic() + 10
        while interrupt.suspect is None and time.monotonic() < end:
            interrupt.look()
        return interrupt.suspect == "it"

    assert asked(suspects_itself)
    # Also where the thread that forks is not the main one, and will be.
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(asked(suspects_itself)))
    thread.start()
    thread.join(30)
    assert found == [True]


# --- Greenlets: all in one thread of the system's


@pytest.fixture
def greenlets(monkeypatch: pytest.MonkeyPatch) -> Threads:
    patched = SimpleNamespace(
        is_module_patched=lambda name: name == "threading",
        get_original=lambda module, name: getattr(importlib.import_module(module), name),
    )
    monkeypatch.setitem(sys.modules, "gevent.monkey", patched)
    site = Threads(monkeypatch)
    site.spent[threading.get_native_id()] = 5.0
    site.interrupt = site.over(inside_the_app.__code__)
    site.interrupt.begin()
    return site


def inside_the_app(do: Callable[[], object]) -> object:
    return do()


def computes(site: Threads) -> object:
    """The one thread has computed for a while, all the process's time; the suspect."""
    site.look()
    site.clock.now += 0.1
    site.of_all += 0.1
    site.spent[threading.get_native_id()] += 0.1
    site.look()
    return site.interrupt.suspect


def test_the_greenlet_that_runs_is_the_suspect(greenlets: Threads) -> None:
    greenlets.work = {"waits": 139876543210, "runs": 139876543211}

    def app() -> None:
        assert computes(greenlets) is not None
        # From another thread, as it is: this one is then inside the app, and not in code of ours.
        striking = threading.Thread(target=lambda: struck.append(greenlets.interrupt.strike()))
        striking.start()
        striking.join(30)

    struck: list[bool] = []
    inside_the_app(app)
    assert struck == [True]
    assert greenlets.struck == [threading.get_ident()]


def test_greenlets_that_wait_are_no_suspects(greenlets: Threads) -> None:
    """The loop computes, or what is no app's; or nothing is in flight at all."""
    greenlets.work = {"waits": 139876543210}
    assert computes(greenlets) is None
    assert greenlets.look() is False
    assert not greenlets.interrupt.strike()
    greenlets.work = {}
    assert inside_the_app(lambda: computes(greenlets)) is None
    assert greenlets.struck == []


def test_the_greenlet_that_runs_next_is_another(greenlets: Threads) -> None:
    greenlets.work = {"first": 139876543210, "second": 139876543211}
    assert inside_the_app(lambda: computes(greenlets)) is not None
    both: list[object] = []
    # Nested, so that both are there, as both are where they are switched.
    inside_the_app(
        lambda: both.extend(
            [computes(greenlets), inside_the_app(lambda: (greenlets.look(), suspect(greenlets))[1])]
        )
    )
    assert both[0] is not None
    assert both[1] is None


def suspect(site: Threads) -> object:
    return site.interrupt.suspect


# --- What the system tells


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
