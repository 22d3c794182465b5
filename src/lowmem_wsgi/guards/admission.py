"""Admission: no more requests at once, and no larger ones, than there is room for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ..http.body import declared_length
from ..http.paths import is_under, wsgi_path
from ..http.refusals import Refusal
from .guard import Guard

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

# Seconds. Long enough for a worker to finish or be replaced, short enough to wait for.
RETRY_AFTER = 2


class AdmissionPolicy(Protocol):
    """Whether memory allows more."""

    @property
    def closed(self) -> bool: ...

    @property
    def largest(self) -> int | None:
        """Bytes of a body, as declared."""


class InFlight(Protocol):
    def count(self) -> int: ...

    def rank(self, number: int) -> int:
        """How many of the same app came no later."""


class Admission(Guard):
    """Refuses the request that is one too many, or too large for what memory is left.

    `most`: how many at once (None: any number). `policy` says what memory allows. A path under
    one of `exempt` is always let in: a health check that fails would have the platform kill what
    is only busy.
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
        """Refuse the request with this number in `in_flight`."""
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
        except ValueError:  # without an upload cap: the app's business
            length = None
        if largest is None or length is None or length <= largest:
            return None
        why = f"{length} bytes declared, and memory is short: {largest} at most for now"
        return busy(why, "LOWMEM_WARN_AT")


def busy(why: str, setting: str) -> Refusal:
    """503, come back later."""
    return Refusal(
        "503 Service Unavailable",
        "This site is short of room at the moment. Please try again in a few seconds.",
        why=why,
        setting=setting,
        headers=(("Retry-After", str(RETRY_AFTER)),),
    )
