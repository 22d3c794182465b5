"""Who wants to be told when memory runs short."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

Callback = Callable[[str], object]
C = TypeVar("C", bound=Callback)

_lock = threading.RLock()  # a finalizer that it sets off may register or forget
_callbacks: list[tuple[str, Callable[[], Callback | None]]] = []


def on_pressure(callback: C) -> C:
    """Call `callback(level)` when memory turns "warn" or "critical": drop a cache, close a figure.

    Also a decorator. A bound method is held weakly: it goes with its object. Registered twice, it
    is called once. What it raises is logged and does not stop the next. It runs in the monitor's
    thread, or in that of who forces a cleanup. Raises TypeError where it cannot be called.
    """
    if not callable(callback):
        raise TypeError(f"on_pressure wants something to call, not {callback!r}")
    bound = getattr(callback, "__self__", None) is not None and hasattr(callback, "__func__")
    held: Callable[[], Any] = weakref.WeakMethod(callback) if bound else lambda: callback
    with _lock:
        if all(get() != callback for _, get in _callbacks):
            _callbacks.append((_name(callback), held))
    return callback


def callbacks() -> list[tuple[str, Callback]]:
    """Name and callback of all that are still there, in the order of their coming."""
    with _lock:
        _callbacks[:] = [pair for pair in _callbacks if pair[1]() is not None]
        found = [(name, get()) for name, get in _callbacks]
    return [(name, callback) for name, callback in found if callback is not None]


def forget(callback: Callback) -> None:
    """Call it no more. Harmless where it was not registered."""
    with _lock:
        _callbacks[:] = [pair for pair in _callbacks if pair[1]() != callback]


def _name(callback: Callback) -> str:
    inner = getattr(callback, "func", callback)  # of a functools.partial
    name = getattr(inner, "__qualname__", type(inner).__qualname__)
    return f"{getattr(inner, '__module__', None) or type(inner).__module__}.{name}"


def after_fork() -> None:
    """In a new child: the lock may have been held by a thread that is not there any more."""
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()
