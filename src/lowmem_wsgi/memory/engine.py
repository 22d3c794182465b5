"""The memory engine of a process: one, however many apps it serves.

The first app's settings hold for what there can be only one of (thresholds, intervals); the
collector takes the most thorough of all. The last app to leave puts the interpreter back as it
was.
"""

from __future__ import annotations

import functools
import gc
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Protocol

from .. import log
from ..settings import Settings
from . import pressure
from .cleanup import Ladder
from .collector import Collector
from .monitor import Monitor
from .reading import Memory

# There is one of each in a process, and the first app says what it is.
OF_THE_FIRST = (
    *("memory_limit", "warn_at", "critical_at", "cleanup_interval", "check_interval"),
    *("heavy_modules", "purge_modules", "gc_threshold", "recursion_limit"),
)


class Engine:
    """Collector, ladder and monitor, made for each other."""

    def __init__(self, rules: Settings) -> None:
        self.collector = Collector(passes=0, freeze=False, trim=False)
        self.ladder = Ladder(self.collector, rules.heavy_modules if rules.purge_modules else ())
        self.memory = Memory(rules.memory_limit)
        self.monitor = Monitor(rules, self.memory, self.ladder, self.collector)
        self._rules = rules
        self._users = 0
        self._undo: list[Callable[[], object]] = []

    def join(self, rules: Settings) -> None:
        self._users += 1
        others = [name for name in OF_THE_FIRST if vars(rules)[name] != vars(self._rules)[name]]
        if others:
            log.limited(
                logging.WARNING,
                "settings of a second app",
                "An app wrapped before in this process has other values for %s: its values hold.",
                ", ".join(others),
            )
        self.collector.passes = max(self.collector.passes, rules.gc_passes)
        self.collector.freezing = self.collector.freezing or rules.gc_freeze
        self.collector.trimming = self.collector.trimming or rules.trim

    def start(self) -> None:
        """At the first request: the interpreter's own settings, once, and the monitor."""
        rules = self._rules
        if not self._undo:
            self._undo.append(gc.unfreeze)
            if rules.gc_threshold is not None:
                before = gc.get_threshold()
                self._undo.append(lambda: gc.set_threshold(*before))
                gc.set_threshold(*rules.gc_threshold)
            if rules.recursion_limit is not None:
                depth = sys.getrecursionlimit()
                self._undo.append(lambda: sys.setrecursionlimit(depth))
                sys.setrecursionlimit(rules.recursion_limit)
        self.monitor.start()

    def leave(self) -> None:
        """One app less. The last one ends the monitor and undoes what `start` did."""
        with _lock:
            self._users -= 1
            if self._users > 0:
                return
            self.monitor.stop()
            while self._undo:
                self._undo.pop()()
            _current.clear()

    def after_fork(self) -> None:
        self.collector.after_fork()
        self.ladder.after_fork()
        self.monitor.after_fork()


class Forked(Protocol):
    """What wants to be told of a fork."""

    def after_fork(self) -> None: ...


_lock = threading.RLock()
_apps: weakref.WeakSet[Forked] = weakref.WeakSet()
_current: list[Engine] = []  # none or one


def join(rules: Settings, app: Forked) -> Engine:
    """The process's engine, with one more app to serve."""
    with _lock:
        _apps.add(app)
        if not _current:
            _current.append(Engine(rules))
            _watch_forks()
        _current[0].join(rules)
        return _current[0]


def current() -> Engine | None:
    """The process's engine, if an app has joined it."""
    return _current[0] if _current else None


@functools.cache  # once a process: it cannot be undone
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    """In a new child: no lock may stay held by a thread that is not there any more."""
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()
    for limiter in (log.limited, log.once):  # first: what follows may log
        limiter.after_fork()
    pressure.after_fork()
    for app in list(_apps):
        app.after_fork()
    for engine in _current:
        engine.after_fork()
