"""The library's logger, with a rate limit.

The app sets up logging: LowMemory adds no handler and sets no level here. The logger has one
filter, which drops repeated lines.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable

# Log one line for each kind of event in so many seconds: often enough to notice the event, too
# seldom to fill a disk.
EVERY = 10.0
ONCE = float("inf")


class RateLimit(logging.Filter):
    """Let at most one line of a kind through in the seconds that the line asks for.

    The next line says how many were dropped. Thread-safe without a lock: if two threads race, both
    lines are logged. `clock`: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[Hashable, tuple[float, int]] = {}  # kind -> (when last logged, dropped)

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
        """Forget all lines so far, so that each kind is logged again."""
        self._seen.clear()


logger: logging.Logger = logging.getLogger("lowmem_wsgi")
logger.addFilter(RateLimit())


def limited(
    level: int, kind: Hashable, message: str, *args: object, exc_info: bool = False
) -> None:
    """Log at most one line of this kind in EVERY seconds.

    `kind` names an event ("413"), never a text from a client, so that there are few kinds.
    """
    logger.log(level, message, *args, exc_info=exc_info, extra={"lowmem_kind": (kind, EVERY)})


def once(level: int, kind: Hashable, message: str, *args: object, exc_info: bool = False) -> None:
    """Log at most one line of this kind in the life of the process."""
    logger.log(level, message, *args, exc_info=exc_info, extra={"lowmem_kind": (kind, ONCE)})


def failure(where: str, so: str = "requests go on without it") -> None:
    """Log the exception being handled, a fault of LowMemory's own. Log once for each `where`.

    `so`: the consequence, for the log. Never raises MemoryError: if no memory is left for the line,
    LowMemory drops the line.
    """
    try:
        once(logging.ERROR, ("failure", where), "%s failed; %s", where, so, exc_info=True)
    except MemoryError:
        pass


def printable(text: str) -> str:
    """Return a request's text for the log: in ASCII, on one line, at most 200 characters of it."""
    return ascii(text[:200])[1:-1]


def forget() -> None:
    """Forget all lines so far, so that each kind is logged again."""
    for found in logger.filters:
        if isinstance(found, RateLimit):
            found.forget()
