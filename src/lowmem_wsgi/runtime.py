"""Build the objects that a process has one of, however many apps the process serves.

Thresholds, intervals and the other settings of `OF_THE_FIRST` come from the first app. The GC
runner takes the most thorough settings of all apps. When the last app leaves, LowMemory restores
the interpreter's settings.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Collection
from types import CodeType
from typing import Any, Protocol, TypeVar

from . import log, metrics
from .http.route_names import by_path
from .memory import pressure
from .memory.admission import AdmissionPolicy
from .memory.ceiling import Ceiling
from .memory.cleanup import Cleanup
from .memory.gc_runner import GcRunner
from .memory.in_flight import Counters, InFlight
from .memory.interrupt import Interrupt
from .memory.levels import Levels
from .memory.monitor import Monitor, thresholds_for
from .memory.reading import Memory
from .memory.watchdog import Watchdog
from .settings import Settings
from .system.malloc import use_system_malloc
from .system.native import has_gil
from .system.usage import Usage
from .workers.lifecycle import Worker
from .workers.pages import Pages

# Settings with one value for the whole process: the first app's.
OF_THE_FIRST = (
    *("memory_limit", "warn_at", "critical_at", "cleanup_interval", "check_interval"),
    *("heavy_modules", "purge_modules", "gc_threshold", "recursion_limit"),
    *("ceiling", "recycle", "system_malloc"),
)

C = TypeVar("C", bound=pressure.Callback)


class Runtime:
    """The object graph of a process.

    `inside`: code objects; while an app runs, the thread of the request runs one of them.
    `through`: code objects that may run between `inside` and the app. `heavy`: return the heavy
    modules that this process has loaded, as text for the log.
    """

    def __init__(
        self,
        settings: Settings,
        inside: Collection[CodeType] = (),
        through: Collection[CodeType] = (),
        heavy: Callable[[], str] = str,
    ) -> None:
        self.in_flight: InFlight = InFlight()
        self.counters: Counters = Counters(*metrics.NAMES)
        self.memory: Memory = Memory(settings.memory_limit)
        self.gc_runner: GcRunner = GcRunner(
            passes=0,
            freeze=False,
            trim=False,
            in_flight=self.in_flight.count,
            noticed=self._nudge,
            owes=self._runs_owed,
            gil=has_gil(),
        )
        self.cleanups: Cleanup = Cleanup(
            self.gc_runner,
            settings.heavy_modules if settings.purge_modules else (),
            callbacks=_callbacks,
            record=self._note_cleanup,
        )
        self.levels: Levels = Levels(*thresholds_for(settings, self.memory.read().limit))
        self.ceiling: Ceiling = Ceiling(
            settings.ceiling, self.memory.glance, workers=self._count_workers
        )
        self.interrupt: Interrupt = Interrupt(self.in_flight.threads, inside, through)
        self.admission: AdmissionPolicy = AdmissionPolicy()
        self.worker: Worker = Worker(
            settings,
            pages,
            levels=self.levels,
            ceiling=self.ceiling,
            interrupt=self.interrupt,
            in_flight=self.in_flight,
            gc_runner=self.gc_runner,
            counts=self.counts,
            kills=self.memory.kills,
            heavy=heavy,
        )
        self.monitor: Monitor = Monitor(
            settings,
            self.memory,
            self.levels,
            self.cleanups,
            self.gc_runner,
            # Run after each reading, in this order.
            duties=(("The ceiling", self._keep_ceiling), ("The worker", self.worker.look)),
            may_act=lambda: not self.worker.retiring,
        )
        self.watchdog: Watchdog = Watchdog(self.ceiling, self.interrupt)
        self._settings = settings
        self.users: int = 0
        # Whether the C library holds the objects made from the start on.
        self.system_malloc: bool = False
        self._pid = os.getpid()
        self._starting = threading.Lock()
        self._undo: list[Callable[[], object]] = []

    def join(self, settings: Settings) -> None:
        self.users += 1
        others = [
            name for name in OF_THE_FIRST if vars(settings)[name] != vars(self._settings)[name]
        ]
        if others:
            log.limited(
                logging.WARNING,
                "settings of a second app",
                "Another app of this process was wrapped before, with other values for %s. "
                "LowMemory uses those values.",
                ", ".join(others),
            )
        self.gc_runner.demand(settings.gc_passes, freeze=settings.gc_freeze, trim=settings.trim)

    def notice_fork(self) -> None:
        """Detect a fork that ran none of Python's hooks (uWSGI forks so). Call this first."""
        if self._pid != os.getpid():
            _after_fork()

    def start(self) -> None:
        """Apply the interpreter's settings, once; arm the ceiling and start the monitor.

        LowMemory calls this at an app's first request in the process.
        """
        with self._starting:  # the first requests come together
            if not self._undo:
                self._apply(self._settings)
        self._start_watchdog()
        self.ceiling.arm(coming=1)  # before any request goes on; one thread is to come: the monitor
        self.monitor.start()

    def _apply(self, settings: Settings) -> None:
        self._undo.append(gc.unfreeze)
        self._undo.append(self.ceiling.lift)
        if settings.gc_threshold is not None:
            before = gc.get_threshold()
            self._undo.append(lambda: gc.set_threshold(*before))
            gc.set_threshold(*settings.gc_threshold)
        if settings.recursion_limit is not None:
            depth = sys.getrecursionlimit()
            self._undo.append(lambda: sys.setrecursionlimit(depth))
            sys.setrecursionlimit(settings.recursion_limit)
        if settings.trim and settings.system_malloc:
            undo = use_system_malloc()
            if undo is not None:
                self._undo.append(undo)
                self.gc_runner.leave_pymalloc()
                self.system_malloc = True

    def _start_watchdog(self) -> None:
        try:
            self.watchdog.start()
        except RuntimeError:  # no thread can start now; tried again at the monitor's next reading
            pass

    def load_begins(self) -> None:
        """Prepare to load a heavy package in this thread. Raise MemoryError if there is no room."""
        try:
            self.ceiling.load_begins()
            self.gc_runner.attribution.load_begins()
        except BaseException:
            self.load_ends()
            raise

    def load_ends(self) -> None:
        """Note that this thread has loaded the heavy package, or failed to load it."""
        try:
            self.ceiling.load_ends()
        finally:
            self.gc_runner.attribution.load_ends()

    def where(self) -> str | None:
        """Return the route that this thread serves, of any app; None for no request."""
        doing = self.in_flight.here()
        return None if doing is None else by_path(*doing)

    def on_leave(self, undo: Callable[[], object]) -> None:
        """Register `undo`, to be called when the last app leaves. Call this after `start`."""
        self._undo.append(undo)

    def counts(self) -> dict[str, float]:
        """Return this process's counters: the apps' requests, runs of the collector, cleanups."""
        return {
            **self.counters.read(),
            "requests": self.in_flight.total,
            "gc_runs": self.gc_runner.runs,
            "gc_collected": self.gc_runner.collected,
            "gc_seconds": self.gc_runner.total_seconds,
            "gc_freed_bytes": self.gc_runner.trimmer.freed_bytes,
            "gc_gave_back": self.gc_runner.trimmer.count,
            "cleanups": self.cleanups.count,
            **{f"freed_{kind}": freed for kind, freed in self.cleanups.freed.items()},
        }

    def _keep_ceiling(self, usage: Usage, level: str) -> None:
        """Adjust the ceiling and the admission policy after a reading."""
        if self.ceiling.holds_for(usage):
            self._start_watchdog()
        self.ceiling.arm()  # which reads the container anew, after this process
        self.admission.look(usage, level, self.levels.critical, lambda: self._may_fall(usage))

    # Objects built earlier call objects built later through these methods.

    def _note_cleanup(self, result: dict[str, Any], why: str) -> None:
        self.worker.note_cleanup(result, why)

    def _count_workers(self) -> int:
        return self.worker.count()

    def _nudge(self, rss: int) -> None:
        self.monitor.nudge(rss)

    def _runs_owed(self) -> bool:
        return self.monitor.runs_owed()

    def _may_fall(self, usage: Usage) -> bool:
        """Return whether a worker is ending, or one request holds all the memory above warn."""
        return self.worker.ending() or 0 < usage.used - self.levels.warn <= self.interrupt.grown

    def leave(self) -> None:
        """Remove one app. With the last app, stop the monitor and undo what `start` did."""
        with _lock:
            self.users -= 1
            if self.users > 0:
                return
            self.monitor.stop()
            self.watchdog.stop()
            self.admission.forget()
            while self._undo:
                self._undo.pop()()

    def after_fork(self) -> None:
        self._pid = os.getpid()
        self._starting = threading.Lock()
        self.in_flight.forget()
        self.gc_runner.after_fork()
        self.cleanups.after_fork()
        self.ceiling.after_fork()
        self.interrupt.forget()
        self.admission.forget()
        self.watchdog.after_fork()
        self.monitor.after_fork()
        self.worker.after_fork()


class App(Protocol):
    """The part of an app that the runtime calls."""

    def after_fork(self) -> None: ...


_lock = threading.RLock()
_callbacks = pressure.Callbacks()
pages: Pages = Pages()
_apps: tuple[weakref.ref[App], ...] = ()  # replaced whole: threads read it without the lock
_current: list[Runtime] = []  # at most one; kept when the last app leaves, as its worker's slot is


def join(
    settings: Settings,
    app: App,
    inside: Collection[CodeType] = (),
    through: Collection[CodeType] = (),
    heavy: Callable[[], str] = str,
) -> Runtime:
    """Add an app to the runtime of this process, and return that runtime. Thread-safe."""
    global _apps  # noqa: PLW0603
    before: list[Runtime] = []
    with _lock:
        _apps = (*(ref for ref in _apps if ref() is not None), weakref.ref(app))
        if current() is None:
            before = list(_current)
            _current[:] = [Runtime(settings, inside, through, heavy)]
            _watch_process()
        found = _current[0]
        found.join(settings)
    # Not with the lock held: this waits for a flush, in which a finalizer may wait for the lock.
    for ended in before:
        ended.worker.give_up()
    return found


def _served() -> list[App]:
    return [app for ref in _apps if (app := ref()) is not None]


def on_pressure(callback: C) -> C:
    """Call `callback(level)` when memory turns "warn" or "critical": drop a cache, close a figure.

    Returns `callback`, so you can use `on_pressure` as a decorator. LowMemory holds a bound method
    weakly: the callback ends with its object. A callback that you register twice is called once.
    LowMemory runs each callback in a thread of its own, waits at most a second, and does not call
    the callback again before the last call has returned. LowMemory logs an exception of a callback
    and goes on to the next. Raises TypeError if `callback` is not callable. Thread-safe.
    """
    _callbacks.register(callback)
    return callback


def current() -> Runtime | None:
    """Return the runtime of this process; None while no app uses it."""
    return _current[0] if _current and _current[0].users else None


def forget() -> None:
    """Return to the state before the first app, for the next test.

    Forgets apps and callbacks, ends the threads, and lifts the ceiling.
    """
    global _apps  # noqa: PLW0603
    for engine in _current:  # not with the lock held, see `join`
        with contextlib.suppress(ValueError):  # its page is closed already
            engine.worker.give_up()  # its thread may be in the middle of a look
        engine.monitor.stop()
        engine.watchdog.stop()
        engine.ceiling.lift()
    with _lock:
        _current.clear()
        _callbacks.clear()
        _apps = ()


@functools.cache  # once a process: these hooks cannot be removed
def _watch_process() -> None:
    atexit.register(_leave)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)


def _leave() -> None:
    for engine in _current:
        engine.worker.leave()


def _after_fork() -> None:
    """Reset in a new child process: a lock may be held by a thread that the child does not have."""
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()
    _callbacks.after_fork()
    for app in _served():
        app.after_fork()
    for engine in _current:
        engine.after_fork()
