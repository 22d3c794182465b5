"""A cleanup: one step after another that frees memory, each with the bytes that it freed.

Giving back comes first and after every step: only then does a step's figure, the fall of the
process's RSS, say what that step freed, and not what an earlier one had left lying about.
"""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .. import log
from ..system.procfs import OwnRss
from . import pressure
from .gc_runner import GcRunner
from .levels import CRITICAL
from .purge import purge

# (module, function): caches of the standard library that fill again by themselves. A module
# that is not loaded has no cache.
_CACHES = (
    # From Python 3.13 on the second is deprecated for the first.
    ("sys", "_clear_internal_caches" if sys.version_info >= (3, 13) else "_clear_type_cache"),
    ("re", "purge"),
    ("linecache", "clearcache"),
    ("importlib", "invalidate_caches"),
    ("urllib.parse", "clear_cache"),
    ("struct", "_clearcache"),
)

# Seconds to wait for the end of a run that somebody else has asked for.
PATIENCE = 5.0

# The kinds of steps; the name of one begins with it.
KINDS = ("trim", "caches", "callback", "purge", "collect")

# A step: its name, and what to call. What it returns, if anything, is told with the figures.
Step = tuple[str, Callable[[], object]]


class Cleanup:
    """Runs the steps and keeps the figures of the last run. Thread-safe.

    `heavy`: packages to drop at critical (see purge.py).
    """

    def __init__(
        self,
        collector: GcRunner,
        heavy: Sequence[str] = (),
        *,
        callbacks: pressure.Callbacks | None = None,
        rss: Callable[[], int] | None = None,
        record: Callable[[dict[str, Any], str], object] = lambda result, why: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._gc_runner = collector
        self.heavy = tuple(heavy)
        self._rss = OwnRss() if rss is None else rss
        self._now = now
        self._lock = threading.RLock()
        self._running = False
        self.count = 0
        self.last: dict[str, Any] | None = None
        # Bytes freed so far, by kind of step.
        self.freed = dict.fromkeys(KINDS, 0)
        # Told of each run: its result, and why it was.
        self._record = record
        self._callbacks = callbacks or pressure.Callbacks()

    def run(
        self,
        level: str = CRITICAL,
        *,
        tell: bool = True,
        leave_shared: Callable[[], bool] = lambda: False,
        why: str | None = None,
    ) -> dict[str, Any]:
        """The steps for `level`, now. With `tell`, the `on_pressure` callbacks among them.

        The last step, `collect`, looks at the whole heap, and so takes copies of the pages that a
        forked worker shares with its master: there it is left out where `leave_shared` says so.

        Gives `at` (Unix seconds), `level`, `before_bytes`, `after_bytes`, `freed_bytes` and
        `steps`, each with its `step`, `freed_bytes`, `seconds` and, where it has one, `note`.
        """
        # A callback that asks for a cleanup would wait for the run that waits for it.
        if not self._lock.acquire(timeout=0 if self._callbacks.here() else PATIENCE):
            return self.last or self._result(level, self._rss(), self._rss(), [])
        try:
            if self._running:  # asked for by a signal handler
                return self.last or self._result(level, self._rss(), self._rss(), [])
            self._running = True
            try:
                self.last = self._run_steps(level, tell, leave_shared)
                self.count += 1
                self._report(self.last, why or level)
                return self.last
            finally:
                self._running = False
        finally:
            self._lock.release()

    def _report(self, result: dict[str, Any], why: str) -> None:
        for step in result["steps"]:
            self.freed[step["step"].partition(" ")[0]] += max(0, step["freed_bytes"])
        try:
            self._record(result, why)
        except Exception:
            log.failure("Noting a cleanup")

    def _run_steps(
        self, level: str, tell: bool, leave_shared: Callable[[], bool]
    ) -> dict[str, Any]:
        before = left = self._rss()
        steps = []
        for name, action in self._steps(level, tell):
            if (
                action == self._gc_runner.full_collect
                and self._gc_runner.shares_pages
                and leave_shared()
            ):
                continue
            began = time.perf_counter()
            note = self._attempt(name, action)
            self._gc_runner.give_back()
            was, left = left, self._rss()
            step = {"step": name, "freed_bytes": was - left}
            step["seconds"] = round(time.perf_counter() - began, 6)
            steps.append(step if note is None else {**step, "note": note})
        return self._result(level, before, left, steps)

    def _result(
        self, level: str, before: int, after: int, steps: list[dict[str, Any]]
    ) -> dict[str, Any]:
        figures = {"before_bytes": before, "after_bytes": after, "freed_bytes": before - after}
        return {"at": self._now(), "level": level, **figures, "steps": steps}

    def _steps(self, level: str, tell: bool) -> list[Step]:
        steps: list[Step] = [("trim", _nothing), ("caches", clear_caches)]
        if tell:
            left = [pressure.DEADLINE]
            steps += [
                (f"callback {one.name}", partial(pressure.tell, one, level, left))
                for one in self._callbacks.all()
            ]
        if level == CRITICAL:
            steps += [(f"purge {name}", partial(purge, name)) for name in self.heavy]
        return [*steps, ("collect", self._gc_runner.full_collect)]

    def _attempt(self, name: str, action: Callable[[], object]) -> str | None:
        try:
            note = action()
        except BaseException as error:  # a callback's SystemExit is no reason to stop caring
            pressure.failed(name)
            return f"{type(error).__name__}: {error}"
        return note if isinstance(note, str) else None

    def after_fork(self) -> None:
        """In a new child: forget the parent's threads and figures."""
        self._lock = threading.RLock()
        self._running = False
        if isinstance(self._rss, OwnRss):
            self._rss.reopen()
        self.count, self.last = 0, None
        self.freed = dict.fromkeys(KINDS, 0)


def _nothing() -> None:
    """The trim itself: it follows every step."""


def clear_caches() -> None:
    """Empty the standard library's caches."""
    for module, function in _CACHES:
        if module in sys.modules:
            clear = getattr(importlib.import_module(module), function, None)
            if clear is not None:
                clear()
