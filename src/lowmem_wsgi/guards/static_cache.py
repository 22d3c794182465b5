"""Static files: clients may cache them, for a short time.

A file under the prefix gets `Cache-Control: max-age` of at most so many seconds: so the app is
not asked again and again by one page, and a deploy is seen by everybody soon after. Where the
app says `no-store`, `no-cache` or `private`, its word stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..http.paths import PATH, wsgi_path
from .guard import Guard, Headers

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_CACHED = ("200", "203", "206", "304")

# In the environ of a request that Flask's own view for static files answers. That view says
# `no-cache` of every file unless SEND_FILE_MAX_AGE_DEFAULT is set: Flask's default, and not the
# app's word.
FLASK = "lowmem.flask_static"
FLASK_DEFAULT = "no-cache"


class StaticFiles(Guard):
    """Caps max-age (seconds) for what lies under `prefix`."""

    name = "The rule for static files"

    def __init__(self, prefix: str, max_age: float) -> None:
        self.prefix = wsgi_path(prefix)
        self._max_age = int(max_age)

    def started(self, environ: WSGIEnvironment) -> None:
        """Note which view of a werkzeug app answers. Flask leaves no trace afterwards."""
        if "werkzeug.request" in environ and environ[PATH].startswith(self.prefix):
            endpoint = getattr(environ["werkzeug.request"], "endpoint", None)
            # A blueprint's is "name.static".
            if isinstance(endpoint, str) and f".{endpoint}".endswith(".static"):
                environ[FLASK] = True

    def amend(self, environ: WSGIEnvironment, status: str, headers: Headers) -> Headers:
        """The headers with max-age capped, where this path and status are meant."""
        if not environ[PATH].startswith(self.prefix) or not status.startswith(_CACHED):
            return headers
        policy = ", ".join(value for name, value in headers if name.lower() == "cache-control")
        if policy == FLASK_DEFAULT and FLASK in environ:
            policy = ""
        if not _UNCACHED.isdisjoint(_names(policy)):
            return headers
        if any(name.lower() == "set-cookie" for name, _ in headers):
            policy = private(policy)  # no other client may get this cookie from a shared cache
        policy = capped(policy, self._max_age)
        kept = [pair for pair in headers if pair[0].lower() != "cache-control"]
        return [*kept, ("Cache-Control", policy)]


def private(policy: str) -> str:
    """A Cache-Control value that keeps shared caches out."""
    directives = [d for d in (part.strip() for part in policy.split(",")) if d]
    kept = [d for d in directives if not d.lower().startswith(("public", "s-maxage", "private"))]
    return ", ".join([*kept, "private"])


_UNCACHED = frozenset(("no-store", "no-cache", "private"))


def _names(policy: str) -> list[str]:
    """The names of a Cache-Control value's directives."""
    return [part.partition("=")[0].strip().lower() for part in policy.split(",")]


def capped(policy: str, most: int) -> str:
    """A Cache-Control value whose max-age and s-maxage are at most `most` seconds."""
    directives = [d for d in (part.strip() for part in policy.split(",")) if d]
    kept = []
    ages = {"max-age": most}
    for directive in directives:
        name, _, value = directive.partition("=")
        name = name.strip().lower()
        if name in ("max-age", "s-maxage"):
            text = value.strip().strip('"')
            # What is not a number is stale at once to a cache (RFC 9111 §4.2.1).
            asked = int(text[:18]) if text.isascii() and text.isdigit() else 0
            ages[name] = min(asked, ages.get(name, most))
        else:
            kept.append(directive)
    return ", ".join([*kept, *(f"{name}={age}" for name, age in ages.items())])
