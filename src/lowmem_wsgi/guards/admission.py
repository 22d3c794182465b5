"""Requests in flight: how many there are, and no more than there is room for."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

from ..http.body import declared_length
from ..http.paths import is_under, wsgi_path
from ..http.refusals import Refusal

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

# Seconds. Long enough for a worker to finish or be replaced, short enough to wait for.
RETRY_AFTER = 2


class Intake(Protocol):
    """Whether memory allows more."""

    @property
    def closed(self) -> bool: ...

    @property
    def largest(self) -> int | None:
        """Bytes of a body, as declared."""


class Open:
    """It does."""

    closed = False
    largest = None


class Overload:
    """Counts requests in and out, and refuses the one that is too many.

    `most`: how many at once (None: any number). `intake` says what memory allows. A path under
    one of `exempt` is always let in: a health check that fails would have the platform kill what
    is only busy.
    """

    def __init__(self, most: int | None, exempt: tuple[str, ...]) -> None:
        self.intake: Intake = Open()
        self._most = most
        self._exempt = tuple(wsgi_path(path) for path in exempt)
        self._lock = threading.Lock()
        # request -> the ident of its thread, method and path
        self._inside: dict[int, tuple[int, str, str]] = {}
        self.total = 0
        self.shed = 0

    def in_flight(self) -> int:
        """How many requests there are now."""
        return len(self._inside)

    def work(self) -> dict[int, int]:
        """The requests there are now, each with the ident of its thread."""
        return {request: inside[0] for request, inside in self._inside.copy().items()}

    def doing(self, thread: int) -> tuple[str, str] | None:
        """Method and path of what that thread is at, the latest of them; None where it is none."""
        inside = reversed(list(self._inside.values()))
        return next((found[1:] for found in inside if found[0] == thread), None)

    def after_fork(self) -> None:
        """In a new child: forget the parent's threads and their requests."""
        self._lock = threading.Lock()
        self._inside = {}

    def enter(self, request: int, environ: WSGIEnvironment) -> Refusal | None:
        """Let the request in (`leave` must follow), or refuse it. Its Content-Length is valid."""
        refusal = None if self.intake.largest is None else self._short_of_memory(environ)
        method, path = environ.get("REQUEST_METHOD", ""), environ.get("PATH_INFO", "")
        with self._lock:
            self.total += 1
            if refusal is None and (self._most is None or len(self._inside) < self._most):
                self._inside[request] = (threading.get_ident(), method, path)
                return None
        if any(is_under(path, exempt) for exempt in self._exempt):
            self._inside[request] = (threading.get_ident(), method, path)
            return None
        with self._lock:
            self.shed += 1
        return refusal or busy(f"{self._most} requests in flight already", "LOWMEM_MAX_IN_FLIGHT")

    def count(self) -> None:
        """Count a request that another rule has refused: it never comes in."""
        with self._lock:
            self.total += 1

    def _short_of_memory(self, environ: WSGIEnvironment) -> Refusal | None:
        if self.intake.closed:
            return busy("memory is at critical, and nothing is left to free", "LOWMEM_CRITICAL_AT")
        largest, length = self.intake.largest, declared_length(environ)
        if largest is None or length is None or length <= largest:
            return None
        why = f"{length} bytes declared, and memory is short: {largest} at most for now"
        return busy(why, "LOWMEM_WARN_AT")

    def leave(self, request: int) -> None:
        """The request is over. Harmless when repeated, or when it was never let in."""
        self._inside.pop(request, None)  # atomic, so that __del__ may call it inside any lock


def busy(why: str, setting: str) -> Refusal:
    """503, come back later."""
    return Refusal(
        "503 Service Unavailable",
        "This site is short of room at the moment. Please try again in a few seconds.",
        why=why,
        setting=setting,
        headers=(("Retry-After", str(RETRY_AFTER)),),
    )
