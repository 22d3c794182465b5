"""The library's logger, and how it keeps from flooding it.

Logging is left to the app to set up: nothing here adds a handler or sets a level. The logger has
one filter, which drops what is repeated.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable

# One line for each kind of event in this many seconds: enough to see it, too few to fill a disk.
EVERY = 10.0
ONCE = float("inf")


class RateLimit(logging.Filter):
    """Lets at most one line of a kind through in the seconds that the line asks for.

    The next line says how many were held back. Needs no lock: where two threads race, both lines
    come through.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[Hashable, tuple[float, int]] = {}  # kind -> (when last logged, held back)

    def filter(self, record: logging.LogRecord) -> bool:
        kind, every = getattr(record, "lowmem_kind", (None, 0.0))
        if kind is None:
            return True
        now = self._clock()
        last, held = self._seen.get((every, kind), (float("-inf"), 0))
        if now - last < every:
            self._seen[every, kind] = last, held + 1
            return False
        self._seen[every, kind] = now, 0
        if held:
            record.msg += f" ({held} more like it since the last such line)"
        return True

    def forget(self) -> None:
        """Log anew what was logged before."""
        self._seen.clear()


logger = logging.getLogger("lowmem_wsgi")
logger.addFilter(RateLimit())


def limited(
    level: int, kind: Hashable, message: str, *args: object, exc_info: bool = False
) -> None:
    """Log one line of this kind in EVERY seconds.

    A kind names an event ("413"), never anything that a client chose, so that there are few.
    """
    logger.log(level, message, *args, exc_info=exc_info, extra={"lowmem_kind": (kind, EVERY)})


def once(level: int, kind: Hashable, message: str, *args: object, exc_info: bool = False) -> None:
    """Log one line of this kind in the life of the process."""
    logger.log(level, message, *args, exc_info=exc_info, extra={"lowmem_kind": (kind, ONCE)})


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


def forget() -> None:
    """Log anew what was logged before."""
    for found in logger.filters:
        if isinstance(found, RateLimit):
            found.forget()
