"""What may still come in: less and less, as memory runs out.

At warn, large bodies are turned away, larger ones first. At critical, when cleanups and a fresh
worker have not helped, everything is, for as long as that lasts. While memory is about to be given
back (a worker ends, or one request holds what is too much), the site stays open: on a tenth of a
processor either takes many seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ..settings import KB
from ..system.usage import Usage
from .levels import CRITICAL, OK

# Seconds at critical until nothing comes in. Long enough for a cleanup, for a worker to be
# replaced, and for one request's peak to pass.
PATIENCE = 5.0
# A body takes up to so many times its bytes (read, decoded, parsed) of the room under critical ...
TIMES = 8
# ... but up to so many bytes it is never large.
SMALL = 256 * KB


class AdmissionPolicy:
    """`closed`, and the `largest` body (bytes) that is let in; None for any."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self.forget()

    def forget(self) -> None:
        self.closed = False
        self.largest: int | None = None
        self._since: float | None = None

    def look(
        self, usage: Usage, level: str, critical: int, may_fall: Callable[[], bool] = lambda: False
    ) -> None:
        """Take a reading, and the level after it.

        `may_fall`: whether memory is about to be given back. Asked at critical only.
        """
        self.largest = None if level == OK else max(SMALL, (critical - usage.used) // TIMES)
        if level != CRITICAL or may_fall():
            self._since = None
        elif self._since is None:
            self._since = self._now()
        self.closed = self._since is not None and self._now() - self._since >= PATIENCE
