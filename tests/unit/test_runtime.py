"""Ladder, callbacks, purge, monitor and engine, with injected clocks and memories."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from helpers.fakes import MB, Clock, Process
from helpers.forks import asked, fork
from helpers.servers import wait_for
from helpers.wsgi import call, make_environ
from lowmem_wsgi import LowMemory, log, on_pressure, runtime
from lowmem_wsgi.memory.cleanup import Cleanup, clear_caches
from lowmem_wsgi.memory.gc_runner import GcRunner
from lowmem_wsgi.memory.levels import CRITICAL, OK, WARN, Levels
from lowmem_wsgi.memory.monitor import (
    CONFIRM,
    REST,
    RETRY,
    SHORTEST,
    Monitor,
    next_look,
    thresholds_for,
)
from lowmem_wsgi.memory.purge import purge
from lowmem_wsgi.memory.reading import Memory
from lowmem_wsgi.settings import Settings
from lowmem_wsgi.system.usage import Usage


class Limited(Memory):
    """The memory of a process whose limit a test sets."""

    limit = 512 * MB

    def read(self) -> Usage:
        return super().read()._replace(limit=self.limit)

    def glance(self) -> Usage:
        return super().glance()._replace(limit=self.limit)


class Site:
    """A monitor and all that belongs to it, around one process of a test's own."""

    def __init__(
        self, used_mb: int = 100, *, duties: Sequence[tuple[str, Any]] = (), **settings: Any
    ) -> None:
        self.clock = Clock()
        self.process = Process(used_mb * MB)
        self.rules = Settings.load(settings, {})
        self.gc_runner = GcRunner(
            rss=self.process.read, give_back=self.process.give_back, now=self.clock
        )
        heavy = self.rules.heavy_modules if self.rules.purge_modules else ()
        self.cleanups = Cleanup(
            self.gc_runner,
            heavy,
            callbacks=runtime._callbacks,
            rss=self.process.read,
            now=self.clock,
        )
        # A root without anything: so the figures are the process's own.
        self.memory = Limited(root="/nonexistent", rss=self.process.read)
        self.levels = Levels(*thresholds_for(self.rules, 512 * MB))
        self.monitor = Monitor(
            self.rules,
            self.memory,
            self.levels,
            self.cleanups,
            self.gc_runner,
            now=self.clock,
            duties=duties,
        )

    def use(self, mb: float) -> None:
        self.process.rss = self.process.live = int(mb * MB)

    def run(self, seconds: float) -> list[str]:
        """Tick as the thread does; the levels seen."""
        end, seen = self.clock.now + seconds, []
        while self.clock.now < end:
            self.clock.now += self.monitor.tick()
            seen.append(self.levels.level)
        return seen


# --- Callbacks


def test_a_callback_is_called_once_for_a_crossing_with_the_level() -> None:
    site = Site()
    told: list[str] = []
    on_pressure(told.append)
    site.use(410)
    site.run(30)
    assert told == [WARN]
    site.use(460)
    site.run(30)
    assert told == [WARN, CRITICAL]


def test_a_callback_frees_and_the_level_returns_to_ok() -> None:
    site = Site()
    site.use(420)

    @on_pressure
    def drop_cache(level: str) -> None:
        site.process.live -= 100 * MB

    assert site.run(20)[-1] == OK
    last = site.cleanups.last
    assert last is not None
    (step,) = [step for step in last["steps"] if "drop_cache" in step["step"]]
    assert step["freed_bytes"] == 100 * MB
    assert last["freed_bytes"] == 100 * MB


def test_a_callback_that_raises_is_logged_and_does_not_stop_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    told: list[str] = []

    @on_pressure
    def broken(level: str) -> None:
        raise ZeroDivisionError("oh")

    on_pressure(told.append)
    result = site.cleanups.run(WARN)
    assert told == [WARN]
    (step,) = [step for step in result["steps"] if "broken" in step["step"]]
    assert step["note"] == "ZeroDivisionError: oh"
    assert "broken failed" in caplog.text


def test_a_bound_method_goes_with_its_object() -> None:
    told = []

    class Cache:
        def drop(self, level: str) -> None:
            told.append(level)

    cache = Cache()
    on_pressure(cache.drop)
    assert runtime._callbacks.all()[0].name.endswith("Cache.drop")
    gone = weakref.ref(cache)
    del cache
    assert gone() is None
    assert runtime._callbacks.all() == ()


def test_a_callback_registered_twice_is_called_once() -> None:
    told: list[str] = []
    callback = told.append
    on_pressure(callback)
    on_pressure(callback)
    Site().cleanups.run(WARN)
    assert told == [WARN]


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="something to call"):
        on_pressure("drop")  # type: ignore[type-var]


def test_a_callback_that_exits_does_not_end_the_monitor() -> None:
    site = Site()
    told: list[str] = []

    @on_pressure
    def leave(level: str) -> None:
        told.append(level)
        sys.exit(3)

    site.use(410)
    site.run(1)
    site.use(100)
    assert site.run(10)[-1] == OK
    assert told == [WARN]


def test_a_monitor_that_ended_is_started_again_by_the_next_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    wrapped = LowMemory(ok)
    monitor = wrapped.runtime.monitor

    def fatal() -> float:
        raise SystemExit

    monitor.tick = fatal  # type: ignore[method-assign]
    call(wrapped, make_environ())
    wait_for(lambda: not monitor.running and monitors() == 0, "the thread to end")
    del monitor.tick
    call(wrapped, make_environ())
    assert monitor.running


def test_a_request_after_close_starts_nothing_again() -> None:
    wrapped = LowMemory(ok, preset="ultra")
    before = sys.getrecursionlimit()
    call(wrapped, make_environ())
    wrapped.close()
    assert call(wrapped, make_environ()).body == b"ok"
    assert sys.getrecursionlimit() == before
    assert not wrapped.runtime.monitor.running


def test_an_app_that_is_thrown_away_leaves_the_engine() -> None:
    wrapped = LowMemory(ok)
    call(wrapped, make_environ())
    monitor = wrapped.runtime.monitor
    collector = wrapped.runtime.gc_runner
    del wrapped
    collector.full_collect()  # it is frozen, and goes with the slow clock
    assert not monitor.running
    assert runtime.current() is None


def test_a_callback_may_ask_for_a_cleanup_itself() -> None:
    site = Site()

    @on_pressure
    def eager(level: str) -> None:
        site.cleanups.run(WARN)

    thread = threading.Thread(target=site.cleanups.run, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert site.cleanups.count == 1


# --- Ladder


def test_each_step_says_what_it_freed_and_not_what_another_left() -> None:
    site = Site()
    site.process.rss += 30 * MB  # freed before, not given back

    @on_pressure
    def drop(level: str) -> None:
        site.process.live -= 20 * MB

    result = site.cleanups.run(WARN)
    freed = {step["step"]: step["freed_bytes"] // MB for step in result["steps"]}
    (callback,) = [name for name in freed if name.startswith("callback")]
    assert freed == {"trim": 30, "caches": 0, callback: 20, "collect": 0}
    assert result["freed_bytes"] == 50 * MB


@pytest.mark.parametrize("shares", [False, True])
def test_pages_that_are_shared_are_not_looked_through_where_less_was_enough(shares: bool) -> None:
    site = Site()
    site.gc_runner.shares_pages = shares
    on_pressure(lambda level: site.use(200))
    site.use(420)
    site.run(1)
    last = site.cleanups.last
    assert last is not None
    assert ("collect" in [step["step"] for step in last["steps"]]) is not shares


def test_caches_of_the_standard_library_are_emptied() -> None:
    import linecache
    import re
    from urllib.parse import urlsplit

    re.compile("emptied (by|for) the ladder")
    urlsplit("http://example.org/emptied")
    linecache.getline(__file__, 1)
    assert linecache.cache
    clear_caches()
    assert not linecache.cache
    assert not re._cache  # type: ignore[attr-defined]


def test_garbage_in_a_frozen_heap_is_gone_within_one_cleanup_at_warn() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.itself = self
            self.ballast = bytearray(1000)

    site = Site()
    garbage = [Cycle() for _ in range(100)]
    gone = [weakref.ref(cycle) for cycle in garbage]
    site.gc_runner.after_request()  # frozen while alive
    garbage.clear()
    site.gc_runner.after_request()
    assert all(ref() is not None for ref in gone)
    site.use(410)
    site.run(1)
    assert all(ref() is None for ref in gone)


def test_without_pressure_it_is_gone_within_ten_minutes() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.itself = self

    site = Site()
    cycle = Cycle()
    gone = weakref.ref(cycle)
    site.gc_runner.after_request()
    del cycle
    site.use(150)  # the 50 MB that such garbage holds
    site.run(599)
    assert gone() is None


# --- Purge


def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("from . import part\nclass Thing: pass\n")
    (folder / "part.py").write_text("data = list(range(1000))\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_pure_package_that_nobody_uses_is_dropped_and_can_be_imported_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, monkeypatch, "purgeable")
    __import__("purgeable")
    assert purge("purgeable") is None
    assert not [name for name in sys.modules if name.startswith("purgeable")]
    __import__("purgeable.part")


def test_a_package_that_is_still_used_stays_and_says_by_whom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, monkeypatch, "inuse")
    monkeypatch.setattr(sys.modules[__name__], "held", __import__("inuse").Thing, raising=False)
    reason = purge("inuse")
    assert reason == f"{__name__} still uses it"
    assert "inuse.part" in sys.modules


def test_a_package_whose_things_are_held_in_the_depth_of_another_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, monkeypatch, "deep")
    registry = {"things": [{"one": __import__("deep").Thing()}]}
    monkeypatch.setattr(sys.modules[__name__], "registry", registry, raising=False)
    assert purge("deep") == f"{__name__} still uses it"


def test_a_package_that_a_running_request_uses_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, monkeypatch, "running")

    def request() -> str | None:
        thing = __import__("running").Thing()
        reason = purge("running")
        del thing
        return reason

    assert request() == "request() still uses it"


def test_a_package_that_is_being_imported_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "arriving.py").write_text(
        "from lowmem_wsgi.memory.purge import purge\nreason = purge('arriving')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert __import__("arriving").reason == "arriving is being imported"


def test_looking_for_users_wakes_no_lazy_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lazy:
        def __getattribute__(self, name: str) -> object:
            raise AssertionError(f"asked for {name}")

    package(tmp_path, monkeypatch, "sleeping")
    monkeypatch.setattr(sys.modules[__name__], "lazy", Lazy(), raising=False)
    __import__("sleeping")
    assert purge("sleeping") is None


def test_a_compiled_package_stays_and_says_why() -> None:
    import psutil  # noqa: F401

    reason = purge("psutil")
    assert reason is not None
    assert "compiled" in reason
    assert "psutil" in sys.modules


def test_a_package_that_is_not_loaded_is_no_error() -> None:
    assert purge("never_imported") == "not loaded"


def test_heavy_modules_are_purged_at_critical_only_and_only_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, monkeypatch, "heavyweight")
    __import__("heavyweight")
    Site(heavy_modules="heavyweight").cleanups.run(CRITICAL)
    site = Site(heavy_modules="heavyweight,psutil", purge_modules="on")
    site.cleanups.run(WARN)
    assert "heavyweight" in sys.modules
    result = site.cleanups.run(CRITICAL)
    assert "heavyweight" not in sys.modules
    notes = {step["step"]: step.get("note") for step in result["steps"]}
    assert notes["purge heavyweight"] is None
    assert "compiled" in notes["purge psutil"]


# --- Monitor


def test_the_thresholds_scale_with_the_limit() -> None:
    site = Site()
    assert (site.levels.warn, site.levels.critical) == (400 * MB, 450 * MB)
    assert thresholds_for(site.rules, 256 * MB) == (200 * MB, 225 * MB)


def test_it_looks_seldom_at_rest_and_often_near_a_threshold() -> None:
    assert next_look(400 * MB, 0) == REST
    assert next_look(0, 0) == SHORTEST
    assert next_look(100 * MB, 100 * MB) == pytest.approx(0.25)
    assert next_look(100 * MB, 1000 * MB) == pytest.approx(0.025)


@pytest.mark.parametrize("rate", [100, 300])
def test_a_threshold_is_acted_on_within_50_ms_of_a_steady_growth(rate: int) -> None:
    site = Site(100)
    crossed: dict[str, float] = {}
    acted: dict[str, float] = {}
    start = site.clock.now
    on_pressure(lambda level: acted.setdefault(level, site.clock.now))
    while site.process.rss < 512 * MB and len(acted) < 2:
        site.use(100 + rate * (site.clock.now - start))
        site.clock.now += site.monitor.tick()
    for level, threshold in ((WARN, 400), (CRITICAL, 450)):
        crossed[level] = start + (threshold - 100) / rate
        assert acted[level] - crossed[level] <= 0.05


def test_a_reading_over_a_threshold_is_confirmed_at_once() -> None:
    site = Site()
    site.use(410)
    assert site.monitor.tick() == CONFIRM


def test_pressure_that_stays_is_acted_on_each_cleanup_interval_and_tells_nobody_again() -> None:
    site = Site()
    told: list[str] = []
    on_pressure(told.append)
    site.use(410)
    site.run(61)
    assert site.cleanups.count == 7
    assert told == [WARN]


def test_a_reading_is_logged_each_30_seconds_and_a_cleanup_with_its_steps(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "lowmem_wsgi")
    site = Site()
    site.run(95)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["🔍 100 MB of 512 MB (20 %, process), ok"] * 3
    caplog.clear()
    site.use(410)
    site.run(1)
    site.use(460)
    site.run(1)
    warn, critical = (record.getMessage() for record in caplog.records)
    assert warn.startswith("🧹 warn at 410 MB of 512 MB (80 %, process): freed 0 bytes (trim")
    assert critical.startswith("🚨 critical at 460 MB")


def test_growth_that_no_request_gave_back_is_given_back_by_the_next_cleanup() -> None:
    site = Site(100)
    site.run(5)
    site.process.rss = 160 * MB  # freed by a thread of the app's own
    site.run(11)
    assert site.process.rss == 100 * MB


def test_a_limit_that_changes_moves_the_thresholds() -> None:
    site = Site()
    site.memory.limit = 256 * MB
    site.monitor.tick()
    assert (site.levels.warn, site.levels.critical) == (200 * MB, 225 * MB)


def test_a_limit_that_changes_leaves_the_level_as_it_is() -> None:
    site = Site()
    site.use(410)
    site.run(1)
    site.memory.limit = 500 * MB
    site.monitor.tick()
    assert site.levels.level == WARN


def test_thresholds_that_do_not_fit_the_limit_found_give_way_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site(warn_at="400MB", critical_at="450MB")
    assert not caplog.records
    site.memory.limit = 256 * MB
    site.monitor.tick()
    assert (site.levels.warn, site.levels.critical) == (200 * MB, 225 * MB)
    assert "LOWMEM_CRITICAL_AT (450 MB) do not fit the limit of 256 MB" in caplog.text


@pytest.mark.parametrize(
    ("error", "pause", "lines"),
    [(None, REST, 0), (MemoryError(), SHORTEST, 0), (OSError(), REST, 1)],
)
def test_a_follower_that_has_no_memory_is_told_again_soon_and_one_that_fails_is_logged(
    caplog: pytest.LogCaptureFixture, error: Exception | None, pause: float, lines: int
) -> None:
    told: list[tuple[int, str]] = []

    def duty(usage: Usage, level: str) -> None:
        if error is not None:
            raise error

    def other(usage: Usage, level: str) -> None:
        told.append((usage.used, level))

    site = Site(duties=[("The one", duty), ("The other", other)])
    assert site.monitor.tick() == pytest.approx(min(pause, next_look(300 * MB, 0)))
    assert told == [(100 * MB, OK)]
    assert len(caplog.records) == lines


def test_what_breaks_in_a_tick_is_logged_once_and_the_thread_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, ticks = Site(), []

    def broken() -> float:
        ticks.append(1)
        raise ZeroDivisionError

    monkeypatch.setattr(site.monitor, "tick", broken)
    monkeypatch.setattr("lowmem_wsgi.memory.monitor.REST", 0.001)
    site.monitor.start()
    wait_for(lambda: len(ticks) > 3, "more ticks")
    site.monitor.stop()
    assert len(caplog.records) == 1


# --- Engine


def ok(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [environ["lowmem.level"].encode()]


def monitors() -> int:
    return sum(thread.name == "lowmem-monitor" for thread in threading.enumerate())


def test_the_first_request_starts_the_one_thread_of_the_process() -> None:
    wait_for(lambda: monitors() == 0, "the threads of other tests to end")
    one, two = LowMemory(ok), LowMemory(ok)
    assert monitors() == 0
    for wrapped in (one, two, one):
        call(wrapped, make_environ())
    assert monitors() == 1
    one.close()
    assert one.runtime.monitor.running
    two.close()
    two.close()
    wait_for(lambda: monitors() == 0, "the thread to end")


def test_stopped_and_started_at_once_there_is_still_one_thread() -> None:
    wrapped = LowMemory(ok)
    for _ in range(5):
        call(wrapped, make_environ())
        wrapped.runtime.monitor.stop()
    call(wrapped, make_environ())
    wait_for(lambda: monitors() == 1, "all but one to end")


def test_apps_of_one_process_share_a_collector_of_the_most_thorough_settings() -> None:
    LowMemory(ok, gc_passes=1, gc_freeze="off")
    two = LowMemory(ok, gc_passes=2, trim="off")
    collector = two.runtime.gc_runner
    assert (collector.passes, collector.freezing, collector.trimmer.on) == (2, True, True)


def test_a_second_app_of_other_thresholds_is_told_whose_hold(
    caplog: pytest.LogCaptureFixture,
) -> None:
    apps = [LowMemory(ok), LowMemory(ok)]  # kept: one that is thrown away leaves
    assert not caplog.records
    apps.append(LowMemory(ok, warn_at="50%", memory_limit="300MB"))
    assert "memory_limit, warn_at. LowMemory uses those values" in caplog.text


def test_the_level_reaches_apps() -> None:
    wrapped = LowMemory(ok)
    monitor = wrapped.runtime.monitor
    monitor.running = True  # and so not begun by the request: its readings would change the level
    assert call(wrapped, make_environ()).body == b"ok"
    wrapped.runtime.levels.level = WARN
    assert call(wrapped, make_environ()).body == b"warn"


def test_ultra_is_applied_once_and_undone_by_the_last_close() -> None:
    before = gc.get_threshold(), sys.getrecursionlimit(), gc.get_freeze_count()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [repr((gc.get_threshold(), sys.getrecursionlimit())).encode()]

    one, two = LowMemory(app, preset="ultra"), LowMemory(app, preset="ultra")
    assert (gc.get_threshold(), sys.getrecursionlimit()) == before[:2]
    assert call(one, make_environ()).body == b"((25, 1, 1), 200)"
    call(two, make_environ())
    one.close()
    assert sys.getrecursionlimit() == 200
    two.close()
    assert (gc.get_threshold(), sys.getrecursionlimit()) == before[:2]
    assert gc.get_freeze_count() <= before[2] + 1000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_an_engine_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked in the worst moment: all locks held by threads that the child does not have."""
    wrapped = LowMemory(ok)
    call(wrapped, make_environ())
    running = wrapped.runtime
    sessions = wrapped.pipeline.sessions
    assert sessions is not None
    locks: list[AbstractContextManager[object]] = [
        *(running.gc_runner._running, running.cleanups._lock, running.monitor._lock),
        *(runtime._callbacks._lock, runtime._lock, wrapped._lock, sessions._lock),
    ]
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with contextlib.ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            held.set()
            go_on.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    pid = fork()
    if pid == 0:
        code = 1
        try:
            assert not running.monitor.running
            call(wrapped, make_environ())
            assert running.monitor.running
            assert threading.active_count() == 2
            assert wrapped.cleanup()["steps"]
            assert running.gc_runner.runs == 1
            log.limited(logging.ERROR, "x", "x")
            LowMemory(ok)
            code = 0
        finally:
            os._exit(code)
    go_on.set()
    thread.join(10)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_thread_that_cannot_be_started_is_logged_and_requests_go_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    wrapped = LowMemory(ok)
    monkeypatch.setattr(threading.Thread, "start", cannot)
    monkeypatch.setattr("lowmem_wsgi.memory.monitor.RETRY", 0.2)
    for _ in range(3):
        assert call(wrapped, make_environ()).body == b"ok"
    assert len(caplog.records) == 1
    monkeypatch.undo()

    def started() -> bool:
        assert call(wrapped, make_environ()).body == b"ok"
        return wrapped.runtime.monitor.running

    wait_for(started, "the thread")


def test_a_thread_that_cannot_be_started_is_tried_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[threading.Thread] = []

    def cannot(self: threading.Thread) -> None:
        tries.append(self)
        raise RuntimeError("can't start new thread")

    site = Site()
    monkeypatch.setattr(threading.Thread, "start", cannot)
    for moments in (1, 2):
        with pytest.raises(RuntimeError):
            site.monitor.start()
        site.monitor.start()  # not yet again
        assert len(tries) == moments
        site.clock.now += RETRY


@pytest.mark.parametrize("gevent", [False, True])
def test_the_interpreter_exits_without_noise(gevent: bool) -> None:
    import subprocess

    if gevent:
        pytest.importorskip("gevent", reason="gevent is not installed")
    code = """
from lowmem_wsgi import LowMemory
app = LowMemory(lambda e, s: (s("200 OK", []), [b"x"])[1])
result = app({"PATH_INFO": "/"}, lambda *a: None)
list(result); result.close()
import threading
import time
assert any(t.name == "lowmem-monitor" for t in threading.enumerate())
"""
    if gevent:
        code = "from gevent import monkey; monkey.patch_all()\n" + code
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- The engine's watchdog, and what loads heavy packages

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")


@on_linux
def test_the_first_request_starts_the_watchdog_each_wakes_it_and_the_last_close_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[bool] = []
    go_on = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append(watchdog.asleep)
        assert go_on.wait(30)
        start_response("200 OK", [])
        return [b"ok"]

    wrapped = LowMemory(app, ceiling="on", memory_limit="64GB")
    watchdog = wrapped.runtime.watchdog
    assert watchdog._post is None
    go_on.set()
    for _ in range(3):
        assert call(wrapped, make_environ()).body == b"ok"
        wait_for(lambda: watchdog.asleep, "it to sleep")
        assert watchdog._post is not None
    # It is woken by what comes while it sleeps, and stays awake for as long as that takes.
    go_on.clear()
    thread = threading.Thread(target=call, args=(wrapped, make_environ()))
    thread.start()
    looks: list[int] = []
    keep = wrapped.runtime.ceiling.keep

    def counted() -> None:
        looks.append(1)
        keep()

    monkeypatch.setattr(wrapped.runtime.ceiling, "keep", counted)
    wait_for(lambda: len(looks) >= 3, "some looks")
    assert not watchdog.asleep
    go_on.set()
    thread.join(30)
    wait_for(lambda: watchdog.asleep, "it to sleep")
    assert seen[1:] == [False] * 3
    wrapped.close()
    assert watchdog._post is None


def test_without_a_ceiling_there_is_no_watchdog() -> None:
    wrapped = LowMemory(ok, ceiling="off")
    call(wrapped, make_environ())
    assert (wrapped.runtime.watchdog._post, wrapped.runtime.watchdog.asleep) == (None, False)


@on_linux
def test_a_forked_child_has_a_watchdog_of_its_own() -> None:
    wrapped = LowMemory(ok, ceiling="on", memory_limit="64GB")
    call(wrapped, make_environ())
    watchdog = wrapped.runtime.watchdog
    wait_for(lambda: watchdog.asleep, "it to sleep")

    def begins_anew() -> bool:
        before = (watchdog._post, watchdog.asleep)
        call(wrapped, make_environ())
        wait_for(lambda: watchdog.asleep, "the child's to sleep")
        return before == (None, False) and watchdog._post is not None

    assert asked(begins_anew)
    wrapped.close()


def test_a_watchdog_that_cannot_be_started_is_tried_again_by_the_monitor(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrapped = LowMemory(ok, ceiling="on", memory_limit="64GB")
    tried: list[bool] = []

    def start() -> None:
        tried.append(True)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(wrapped.runtime.watchdog, "start", start)
    assert call(wrapped, make_environ()).body == b"ok"
    wait_for(lambda: len(tried) >= 2, "another try")
    wrapped.close()
    assert not caplog.records


class Loads:
    """As much of a ceiling, or of the routes' growth, as is told of loads."""

    def __init__(self, begins: Exception | None = None, ends: Exception | None = None) -> None:
        self.open = 0
        self._begins, self._ends = begins, ends

    def load_begins(self) -> None:
        self.open = 1
        if self._begins is not None:
            raise self._begins

    def load_ends(self) -> None:
        self.open = 0
        if self._ends is not None:
            raise self._ends


@pytest.mark.parametrize(
    ("ceiling", "growth", "begins"),
    [
        (Loads(), Loads(), True),
        (Loads(begins=MemoryError()), Loads(), False),
        (Loads(), Loads(begins=MemoryError()), False),
        (Loads(ends=MemoryError()), Loads(), True),
    ],
)
def test_a_load_leaves_nothing_open_however_it_ends(
    monkeypatch: pytest.MonkeyPatch, ceiling: Loads, growth: Loads, begins: bool
) -> None:
    found = runtime.Runtime(Settings.load({}, {}))
    monkeypatch.setattr(found, "ceiling", ceiling)
    monkeypatch.setattr(found.gc_runner, "attribution", growth)
    if begins:
        found.load_begins()
        assert (ceiling.open, growth.open) == (1, 1)
        with contextlib.suppress(MemoryError):
            found.load_ends()
    else:
        with pytest.raises(MemoryError):
            found.load_begins()
    assert (ceiling.open, growth.open) == (0, 0)


def test_a_failure_of_the_shared_passes_does_not_end_the_monitor(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrapped = LowMemory(ok)
    call(wrapped, make_environ())
    failed: list[bool] = []

    def fail(*, at_once: bool = False) -> None:
        failed.append(at_once)
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(wrapped.runtime.gc_runner, "catch_up", fail)
        wait_for(lambda: len(failed) >= 2, "two ends of a rest")
        assert wrapped.runtime.monitor.running
    wrapped.close()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "The GC passes that requests share failed" in caplog.text


def test_an_app_that_is_dropped_while_figures_are_written_blocks_no_app_that_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The collector may drop it in any thread: also in the one that the next app waits for."""
    first = LowMemory(ok)
    call(first, make_environ())
    first.close()
    before, flushing = first.runtime, threading.Event()
    before.monitor.stop()

    def dropped() -> None:
        flushing.set()
        time.sleep(0.2)  # the next app comes
        before.leave()

    monkeypatch.setattr(before.gc_runner, "attribute", dropped)
    writes = threading.Thread(target=before.worker.flush, args=(5.0,), daemon=True)
    writes.start()
    assert flushing.wait(10)
    comes = threading.Thread(target=LowMemory, args=(ok,), daemon=True)
    comes.start()
    for thread in (comes, writes):
        thread.join(10)
        assert not thread.is_alive()
