"""Who wants to be told when memory runs short."""

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

# LowMemory waits so long (seconds) for the callbacks of one cleanup together, and for each at most
# half of what is left of that, but no less than LEAST: a second for the first that is late, half a
# second for the next.
DEADLINE, LEAST = 2.0, 0.05


class Registered(NamedTuple):
    """One callback; `find` gives None once its object is gone."""

    name: str
    find: Callable[[], Callback | None]
    running: dict[int, float]  # the ident of the thread that runs it, and since when (monotonic)


class Callbacks:
    """The callbacks of a process. For all threads."""

    def __init__(self) -> None:
        self._registered: tuple[Registered, ...] = ()  # replaced whole
        self.after_fork()

    def after_fork(self) -> None:
        """In a new child: the threads that held the lock, or ran a callback, are not there."""
        self._lock = threading.RLock()  # a finalizer that it sets off may register or forget
        for one in self._registered:
            one.running.clear()

    def register(self, callback: Callback) -> None:
        """Raises TypeError for what cannot be called. Registered twice, it is called once."""
        if not callable(callback):
            raise TypeError(f"on_pressure wants something to call, not {callback!r}")
        bound = getattr(callback, "__self__", None) is not None and hasattr(callback, "__func__")
        held: Callable[[], Any] = weakref.WeakMethod(callback) if bound else lambda: callback
        with self._lock:
            if all(one.find() != callback for one in self._registered):
                self._registered = (*self.all(), Registered(_name(callback), held, {}))

    def forget(self, callback: Callback) -> None:
        """Call it no more. Harmless where it was not registered."""
        with self._lock:
            self._registered = tuple(one for one in self.all() if one.find() != callback)

    def clear(self) -> None:
        """Call none of them any more."""
        with self._lock:
            self._registered = ()

    def all(self) -> tuple[Registered, ...]:
        """Those that are still there, in the order of their coming."""
        return tuple(one for one in self._registered if one.find() is not None)

    def here(self) -> bool:
        """Whether this thread runs a callback."""
        ident = threading.get_ident()
        return any(ident in one.running for one in self._registered)


def tell(one: Registered, level: str, left: list[float]) -> str | None:
    """Run the callback in a thread of its own, and wait at most half of the seconds in `left[0]`.

    Take what was waited from `left[0]`: one such list serves all callbacks of a cleanup. Return a
    note where the callback did not run, or did not return in time. Raise what it raised in time.
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
        if _since(one) is not None:  # this thread began so late that another has been started since
            return
        ident = threading.get_ident()
        one.running[ident] = time.monotonic()
        try:
            callback(level)
        except BaseException as error:  # SystemExit ends the callback and nothing else
            raised.append(error)
            if late:
                failed(f"callback {one.name}")
                raised.clear()  # its traceback holds what the callback holds
        finally:
            one.running.pop(ident, None)  # a fork may have forgotten it
            done.set()

    try:
        # Without threading.Thread, whose `start` waits for the new thread: for ever, if that has
        # no memory to begin with.
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
    for found in raised[:1]:  # the callback's thread may empty it meanwhile
        raised.clear()
        raise found
    return None


def failed(step: str) -> None:
    """Log the exception being handled."""
    log.limited(logging.ERROR, ("step", step), "🧹 %s failed", step, exc_info=True)


def _since(one: Registered) -> float | None:
    """Since when a thread has been running the callback (monotonic), if one does."""
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
