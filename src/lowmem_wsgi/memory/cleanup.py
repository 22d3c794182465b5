"""Run a cleanup: steps that free memory, each with the bytes that the step freed.

LowMemory gives memory back first, and after every step. Only then does the fall of the process's
RSS show what that step freed, without what an earlier step had freed but not given back.
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
    # Python 3.13 deprecates `_clear_type_cache` in favour of `_clear_internal_caches`.
    ("sys", "_clear_internal_caches" if sys.version_info >= (3, 13) else "_clear_type_cache"),
    ("re", "purge"),
    ("linecache", "clearcache"),
    ("importlib", "invalidate_caches"),
    ("urllib.parse", "clear_cache"),
    ("struct", "_clearcache"),
)

# Seconds to wait for the end of a cleanup that another thread runs.
PATIENCE = 5.0

# The kinds of steps. The name of a step begins with its kind.
KINDS = ("trim", "caches", "callback", "purge", "collect")

# A step: its name, and the function to call. A text that the function returns is the step's note.
Step = tuple[str, Callable[[], object]]


class Cleanup:
    """Run the steps of a cleanup and keep the figures of the last run. Thread-safe.

    `heavy`: packages to drop at critical (see purge.py). `callbacks`: the `on_pressure` callbacks.
    `rss`: return the process's RSS in bytes. `record`: called after each run with its result and
    its reason. `now`: Unix time in seconds.
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
        self.heavy: tuple[str, ...] = tuple(heavy)
        self._rss = OwnRss() if rss is None else rss
        self._now = now
        self._lock = threading.RLock()
        self._running = False
        self.count: int = 0
        self.last: dict[str, Any] | None = None
        # Bytes freed so far, by kind of step.
        self.freed: dict[str, int] = dict.fromkeys(KINDS, 0)
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
        """Run the steps for `level` now. With `tell`, also call the `on_pressure` callbacks.

        The last step, `collect`, reads the whole heap. In a forked worker this copies the pages
        shared with the master, so LowMemory skips the step there if `leave_shared()` is true.
        `why`: the reason for the record; the level if None.

        Return `at` (Unix seconds), `level`, `before_bytes`, `after_bytes`, `freed_bytes` and
        `steps`. Each step has its `step`, `freed_bytes`, `seconds` and perhaps a `note`. While
        another run goes on for more than PATIENCE seconds, return the last result.
        """
        # Do not wait in a callback: the run that called the callback waits for its end.
        if not self._lock.acquire(timeout=0 if self._callbacks.here() else PATIENCE):
            return self.last or self._result(level, self._rss(), self._rss(), [])
        try:
            if self._running:  # called by a signal handler during a run of this thread
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
        except BaseException as error:  # a callback's SystemExit must not end the cleanup
            pressure.failed(name)
            return f"{type(error).__name__}: {error}"
        return note if isinstance(note, str) else None

    def after_fork(self) -> None:
        """Forget the parent's threads and figures in a new child process."""
        self._lock = threading.RLock()
        self._running = False
        if isinstance(self._rss, OwnRss):
            self._rss.reopen()
        self.count, self.last = 0, None
        self.freed = dict.fromkeys(KINDS, 0)


def _nothing() -> None:
    """Do nothing: the trim itself follows every step."""


def clear_caches() -> None:
    """Empty the standard library's caches."""
    for module, function in _CACHES:
        if module in sys.modules:
            clear = getattr(importlib.import_module(module), function, None)
            if clear is not None:
                clear()
