"""Requests in flight: how many there are, and no more than there may be."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from .paths import is_under, wsgi_path
from .refusals import Refusal

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

# Seconds. Long enough for a worker to finish or be replaced, short enough to wait for.
RETRY_AFTER = 2


class Overload:
    """Counts requests in and out, and refuses the one that is too many.

    `most`: how many at once (None: any number). A path under one of `exempt` is always let in:
    a health check that fails would have the platform kill what is only busy.
    """

    def __init__(self, most: int | None, exempt: tuple[str, ...]) -> None:
        self._most = most
        self._exempt = tuple(wsgi_path(path) for path in exempt)
        self._lock = threading.Lock()
        self._inside: set[int] = set()
        self.total = 0
        self.shed = 0

    def in_flight(self) -> int:
        """How many requests there are now."""
        return len(self._inside)

    def after_fork(self) -> None:
        """In a new child: forget the parent's threads and their requests."""
        self._lock = threading.Lock()
        self._inside = set()

    def enter(self, request: int, environ: WSGIEnvironment) -> Refusal | None:
        """Let the request in (`leave` must follow), or refuse it."""
        with self._lock:
            self.total += 1
            if self._most is None or len(self._inside) < self._most:
                self._inside.add(request)
                return None
        path = environ.get("PATH_INFO", "")
        if any(is_under(path, exempt) for exempt in self._exempt):
            self._inside.add(request)
            return None
        with self._lock:
            self.shed += 1
        return busy(f"{self._most} requests in flight already", "LOWMEM_MAX_IN_FLIGHT")

    def leave(self, request: int) -> None:
        """The request is over. Harmless when repeated, or when it was never let in."""
        self._inside.discard(request)  # atomic, so that __del__ may call it inside any lock


def busy(why: str, setting: str) -> Refusal:
    """503, come back later."""
    return Refusal(
        "503 Service Unavailable",
        "This site is short of room at the moment. Please try again in a few seconds.",
        why=why,
        setting=setting,
        headers=(("Retry-After", str(RETRY_AFTER)),),
    )
