"""Decide which requests may still come in as memory runs out.

At warn, LowMemory refuses large bodies: the less memory is left, the smaller the largest body. At
critical, when cleanups and a fresh worker have not helped, LowMemory refuses every request until
the level falls. While memory is about to be given back (a worker ends, or one request holds the
excess), LowMemory keeps accepting requests: on a tenth of a processor either takes many seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ..settings import KB
from ..system.usage import Usage
from .levels import CRITICAL, OK

# Seconds at critical until LowMemory refuses every request. Long enough for a cleanup, for the
# replacement of a worker, and for one request's peak to pass.
PATIENCE = 5.0
# A body takes up to TIMES its size in memory (read, decoded, parsed) of the room under critical ...
TIMES = 8
# ... but a body of at most SMALL bytes is never refused at warn.
SMALL = 256 * KB


class AdmissionPolicy:
    """Keep `closed`, and `largest`: the largest body (bytes) that may come in, None for any."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self.forget()

    def forget(self) -> None:
        self.closed: bool = False
        self.largest: int | None = None
        self._since: float | None = None

    def look(
        self, usage: Usage, level: str, critical: int, may_fall: Callable[[], bool] = lambda: False
    ) -> None:
        """Take a reading and the level after that reading. `critical`: the threshold in bytes.

        `may_fall`: return whether memory is about to be given back; called at critical only.
        """
        self.largest = None if level == OK else max(SMALL, (critical - usage.used) // TIMES)
        if level != CRITICAL or may_fall():
            self._since = None
        elif self._since is None:
            self._since = self._now()
        self.closed = self._since is not None and self._now() - self._since >= PATIENCE
