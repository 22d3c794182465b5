"""What every guard is: a rule that a request meets on its way in, and its answer on its way out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from ..http.refusals import Refusal

Headers = list[tuple[str, str]]


class Guard:
    """A subclass overrides what its rule needs; the pipeline calls what is overridden.

    `name`: what the guard does, for the log. `protects`: where the guard itself fails, LowMemory
    answers 503; where any other guard fails, the request goes on.
    """

    name = ""
    protects = False

    def enter(self, environ: WSGIEnvironment, number: int) -> Refusal | None:
        """Refuse the request, or make it ready for the app. `number`: its own, in InFlight."""
        return None

    def started(self, environ: WSGIEnvironment) -> None:
        """The app answers. What its framework tells now, it does not tell afterwards."""

    def amend(self, environ: WSGIEnvironment, status: str, headers: Headers) -> Headers:
        """Return the headers to send."""
        return headers
