"""The protocol of a guard: a rule for a request on its way in and for the answer on its way out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from ..http.refusals import Refusal

Headers = list[tuple[str, str]]


class Guard:
    """The base class. A subclass overrides the methods that its rule needs.

    The pipeline calls only overridden methods. `name`: what the guard does, for the log.
    `protects`: if True, LowMemory answers 503 when the guard itself fails; if False, the request
    goes on.
    """

    name = ""
    protects = False

    def enter(self, environ: WSGIEnvironment, number: int) -> Refusal | None:
        """Return a refusal, or None to let the request in. `number`: the request's in InFlight."""
        return None

    def started(self, environ: WSGIEnvironment) -> None:
        """Read what the framework provides only while the app answers."""

    def amend(self, environ: WSGIEnvironment, status: str, headers: Headers) -> Headers:
        """Return the headers to send."""
        return headers
