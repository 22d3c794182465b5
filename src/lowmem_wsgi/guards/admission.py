"""Admission: refuse requests that are too many at once, or too large for the memory left."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ..http.body import declared_length
from ..http.paths import is_under, wsgi_path
from ..http.refusals import Refusal
from .guard import Guard

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

# Seconds: long enough for a worker to finish or be replaced, short enough for a client to wait.
RETRY_AFTER = 2


class AdmissionPolicy(Protocol):
    """Whether memory allows more requests."""

    @property
    def closed(self) -> bool: ...

    @property
    def largest(self) -> int | None:
        """The largest declared body that may come in, in bytes; None for any."""


class InFlight(Protocol):
    def count(self) -> int: ...

    def rank(self, number: int) -> int:
        """Return how many requests of the same app are in flight, up to and including this one."""


class Admission(Guard):
    """The guard that refuses a request too many, or a body too large for the memory left.

    `most`: requests at once (None: any number). `policy`: what memory allows. `count`: called with
    the name of a counter. LowMemory always lets in a path under one of `exempt`: if a health check
    failed, the platform would kill a site that is only busy.
    """

    name = "Admission"
    protects = True

    def __init__(
        self,
        most: int | None,
        exempt: tuple[str, ...],
        policy: AdmissionPolicy,
        in_flight: InFlight,
        count: Callable[[str], None],
    ) -> None:
        self._policy = policy
        self._in_flight = in_flight
        self._count = count
        self._most = most
        self._exempt = tuple(wsgi_path(path) for path in exempt)

    def enter(self, environ: WSGIEnvironment, number: int) -> Refusal | None:
        """Return a refusal, or None to let the request in. `number`: its number in `in_flight`."""
        refusal = None if self._policy.largest is None else self._short_of_memory(environ)
        if refusal is None and (self._most is None or self._in_flight.count() <= self._most):
            return None
        if refusal is None and self._most is not None:
            if self._in_flight.rank(number) <= self._most:
                return None
            refusal = busy(f"{self._most} requests in flight already", "LOWMEM_MAX_IN_FLIGHT")
        path = environ.get("PATH_INFO", "")
        if any(is_under(path, exempt) for exempt in self._exempt):
            return None
        self._count("shed")
        return refusal

    def _short_of_memory(self, environ: WSGIEnvironment) -> Refusal | None:
        if self._policy.closed:
            return busy("memory is at critical, and nothing is left to free", "LOWMEM_CRITICAL_AT")
        largest = self._policy.largest
        try:
            length = declared_length(environ)
        except ValueError:  # no upload cap is set: leave this header to the app
            length = None
        if largest is None or length is None or length <= largest:
            return None
        why = f"{length} bytes declared, and memory is short: {largest} at most for now"
        return busy(why, "LOWMEM_WARN_AT")


def busy(why: str, setting: str) -> Refusal:
    """Return a 503 that asks the client to try again in RETRY_AFTER seconds."""
    return Refusal(
        "503 Service Unavailable",
        "This site is short of room at the moment. Please try again in a few seconds.",
        why=why,
        setting=setting,
        headers=(("Retry-After", str(RETRY_AFTER)),),
    )
