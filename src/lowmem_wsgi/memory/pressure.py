"""Keep and run the `on_pressure` callbacks, which LowMemory calls when memory runs short."""

from __future__ import annotations

import _thread
import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from .. import log

Callback = Callable[[str], object]

# LowMemory waits DEADLINE seconds for all callbacks of one cleanup. For each callback LowMemory
# waits at most half of the seconds left, but at least LEAST: a second for the first late callback,
# half a second for the next.
DEADLINE, LEAST = 2.0, 0.05


class Registered(NamedTuple):
    """One callback. `find` returns the callback, or None once its object is gone."""

    name: str
    find: Callable[[], Callback | None]
    running: dict[int, float]  # ident of a thread that runs the callback -> start (monotonic)


class Callbacks:
    """The callbacks of a process. Thread-safe."""

    def __init__(self) -> None:
        self._registered: tuple[Registered, ...] = ()  # replaced whole
        self.after_fork()

    def after_fork(self) -> None:
        """Reset in a new child process: no thread there holds the lock or runs a callback."""
        self._lock = threading.RLock()  # re-entrant: a finalizer may call register or forget
        for one in self._registered:
            one.running.clear()

    def register(self, callback: Callback) -> None:
        """Add a callback. Idempotent. Raise TypeError if `callback` is not callable."""
        if not callable(callback):
            raise TypeError(f"on_pressure wants something to call, not {callback!r}")
        bound = getattr(callback, "__self__", None) is not None and hasattr(callback, "__func__")
        held: Callable[[], Any] = weakref.WeakMethod(callback) if bound else lambda: callback
        with self._lock:
            if all(one.find() != callback for one in self._registered):
                self._registered = (*self.all(), Registered(_name(callback), held, {}))

    def forget(self, callback: Callback) -> None:
        """Remove a callback. Harmless if the callback is not registered."""
        with self._lock:
            self._registered = tuple(one for one in self.all() if one.find() != callback)

    def clear(self) -> None:
        """Call none of them any more."""
        with self._lock:
            self._registered = ()

    def all(self) -> tuple[Registered, ...]:
        """Return the callbacks whose objects still exist, in the order of registration."""
        return tuple(one for one in self._registered if one.find() is not None)

    def here(self) -> bool:
        """Return whether this thread runs a callback."""
        ident = threading.get_ident()
        return any(ident in one.running for one in self._registered)


def tell(one: Registered, level: str, left: list[float]) -> str | None:
    """Run the callback in a thread of its own, and wait at most half of the seconds in `left[0]`.

    Subtract the seconds waited from `left[0]`: all callbacks of a cleanup share one list. Return a
    note if the callback did not run, or did not return in time. Raise the exception that the
    callback raised in time.
    """
    callback = one.find()
    if callback is None:
        return None
    if (since := _since(one)) is not None:
        return _late(one, since)
    done = threading.Event()
    raised: list[BaseException] = []
    late: list[bool] = []

    def work() -> None:
        if _since(one) is not None:  # this thread began late, and another runs the callback now
            return
        ident = threading.get_ident()
        one.running[ident] = time.monotonic()
        try:
            callback(level)
        except BaseException as error:  # SystemExit ends the callback and nothing else
            raised.append(error)
            if late:
                failed(f"callback {one.name}")
                raised.clear()  # the traceback holds the callback's objects
        finally:
            one.running.pop(ident, None)  # absent if a fork has cleared `running`
            done.set()

    try:
        # Not threading.Thread: its `start` waits for the new thread, for ever if that thread has no
        # memory to begin.
        _thread.start_new_thread(work, ())
    except RuntimeError as error:
        log.limited(
            logging.WARNING,
            ("no thread", one.name),
            "🧹 on_pressure: %s was not called, because no thread can be started (%s). It may "
            "still keep memory. Allow the process more threads or more memory.",
            one.name,
            error,
        )
        return f"not called: {error}"
    began, patience = time.monotonic(), max(left[0] / 2, LEAST)
    in_time = done.wait(patience)
    left[0] -= min(time.monotonic() - began, patience)
    if not in_time:
        late.append(True)
        if (since := _since(one)) is not None:
            return _late(one, since)
        if not done.is_set():
            return f"not begun after {patience:.1f} s"
    for found in raised[:1]:  # the callback's thread may empty the list meanwhile
        raised.clear()
        raise found
    return None


def failed(step: str) -> None:
    """Log the exception being handled."""
    log.limited(logging.ERROR, ("step", step), "🧹 %s failed", step, exc_info=True)


def _since(one: Registered) -> float | None:
    """Return when a thread began to run the callback (monotonic seconds); None if none runs it."""
    return min(list(one.running.values()), default=None)


def _late(one: Registered, since: float) -> str:
    seconds = time.monotonic() - since
    log.limited(
        logging.WARNING,
        ("late", one.name),
        "🧹 on_pressure: %s has not returned after %.1f s. LowMemory goes on without it, and calls "
        "it again only once it has returned. Have it drop memory only, and move whatever waits (a "
        "lock, a connection) out of it.",
        one.name,
        seconds,
    )
    return f"still running after {seconds:.1f} s"


def _name(callback: Callback) -> str:
    inner = getattr(callback, "func", callback)  # of a functools.partial
    name = getattr(inner, "__qualname__", type(inner).__qualname__)
    return f"{getattr(inner, '__module__', None) or type(inner).__module__}.{name}"
