"""Ctrl-C that leaves nothing behind: noted when it comes, obeyed where all can be cleared away."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
LOOK = 0.02  # seconds between two looks
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Stop:
    """Note that the command is to stop, and stop it at the next look."""

    def __init__(self) -> None:
        self._asked = False

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Note SIGINT, SIGTERM and SIGHUP until the block ends, those that are not ignored."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        for number in SIGNALS:
            if before[number] != signal.SIG_IGN:  # as nohup sets it
                signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt if the command is to stop."""
        if self._asked:
            raise KeyboardInterrupt

    def wait(self, done: Callable[[], bool], seconds: float) -> bool:
        """Wait for `done()`, so many seconds. Return whether it came. Raises KeyboardInterrupt."""
        ends = time.monotonic() + seconds
        while not done():
            self.check()
            if time.monotonic() > ends:
                return False
            time.sleep(LOOK)
        self.check()
        return True

    def _note(self, *_: object) -> None:
        self._asked = True


class Background(Generic[T]):
    """A call in a thread of its own, so that waiting for an answer never holds up Ctrl-C.

    The thread does not keep the command from ending.
    """

    def __init__(self, function: Callable[..., T], *arguments: Any) -> None:
        self._function, self._arguments = function, arguments
        self._result: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> T:
        """Return what the call has returned, or raise what it has raised. Only when `done`."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def _run(self) -> None:
        try:
            self._result = self._function(*self._arguments)
        except BaseException as error:
            self._error = error
