"""The library's logger, and how it keeps from flooding it.

Logging is left to the app to set up: nothing here adds a handler or sets a level.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable

logger = logging.getLogger("lowmem_wsgi")

# One line for each kind of event in this many seconds: enough to see it, too few to fill a disk.
EVERY = 10.0


class RateLimited:
    """Logs at most one line for a key in `every` seconds, and says how many it held back.

    Keys name kinds of events ("413"), never anything a client chose, so that there are few.
    """

    def __init__(self, every: float = EVERY, clock: Callable[[], float] = time.monotonic) -> None:
        self._every = every
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[Hashable, tuple[float, int]] = {}  # key -> (when last logged, held back)

    def __call__(
        self, level: int, key: Hashable, message: str, *args: object, exc_info: bool = False
    ) -> None:
        now = self._clock()
        with self._lock:
            last, held = self._seen.get(key, (float("-inf"), 0))
            if now - last < self._every:
                self._seen[key] = (last, held + 1)
                return
            self._seen[key] = (now, 0)
        if held:
            message += f" ({held} more like it since the last such line)"
        logger.log(level, message, *args, exc_info=exc_info)

    def after_fork(self) -> None:
        """In a new child: the lock may have been held by a thread that is not there any more."""
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Log anew what was logged before."""
        with self._lock:
            self._seen.clear()


limited = RateLimited()
once = RateLimited(every=float("inf"))


def failure(where: str, so: str = "requests go on without it") -> None:
    """Log the exception being handled, a fault of LowMemory's own, and what follows (`so`).

    Logs once for each place.

    Never raises MemoryError: a line that no memory is left for is dropped.
    """
    try:
        once(logging.ERROR, ("failure", where), "%s failed; %s", where, so, exc_info=True)
    except MemoryError:
        pass


def printable(text: str) -> str:
    """Text that came with a request, on one line and of bounded length."""
    return ascii(text[:200])[1:-1]
