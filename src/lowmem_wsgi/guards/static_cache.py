"""Let clients cache static files for a short time.

LowMemory sends `Cache-Control: max-age` with a file under the prefix, of at most a set number of
seconds. So a page does not request the same file again and again, and everybody sees a deploy soon.
LowMemory leaves the app's `no-store`, `no-cache` or `private` unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..http.paths import PATH, wsgi_path
from .guard import Guard, Headers

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_CACHED = ("200", "203", "206", "304")

# Set in the environ of a request that Flask's own view for static files answers. Unless the app
# sets SEND_FILE_MAX_AGE_DEFAULT, that view sends `no-cache` with every file: Flask's default, not a
# choice of the app.
FLASK = "lowmem.flask_static"
FLASK_DEFAULT = "no-cache"


class StaticFiles(Guard):
    """The guard that caps max-age (seconds) for paths under `prefix`."""

    name = "The rule for static files"

    def __init__(self, prefix: str, max_age: float) -> None:
        self.prefix: str = wsgi_path(prefix)
        self._max_age = int(max_age)

    def started(self, environ: WSGIEnvironment) -> None:
        """Note which view of a werkzeug app answers. Flask drops that information afterwards."""
        if "werkzeug.request" in environ and environ[PATH].startswith(self.prefix):
            endpoint = getattr(environ["werkzeug.request"], "endpoint", None)
            # A blueprint's endpoint is "name.static".
            if isinstance(endpoint, str) and f".{endpoint}".endswith(".static"):
                environ[FLASK] = True

    def amend(self, environ: WSGIEnvironment, status: str, headers: Headers) -> Headers:
        """Return the headers, with max-age capped if the rule covers this path and status."""
        if not environ[PATH].startswith(self.prefix) or not status.startswith(_CACHED):
            return headers
        policy = ", ".join(value for name, value in headers if name.lower() == "cache-control")
        if policy == FLASK_DEFAULT and FLASK in environ:
            policy = ""
        if not _UNCACHED.isdisjoint(_names(policy)):
            return headers
        if any(name.lower() == "set-cookie" for name, _ in headers):
            policy = private(policy)  # a shared cache must not give this cookie to other clients
        policy = capped(policy, self._max_age)
        kept = [pair for pair in headers if pair[0].lower() != "cache-control"]
        return [*kept, ("Cache-Control", policy)]


def private(policy: str) -> str:
    """Return the Cache-Control value, changed so that shared caches do not keep the response."""
    directives = [d for d in (part.strip() for part in policy.split(",")) if d]
    kept = [d for d in directives if not d.lower().startswith(("public", "s-maxage", "private"))]
    return ", ".join([*kept, "private"])


_UNCACHED = frozenset(("no-store", "no-cache", "private"))


def _names(policy: str) -> list[str]:
    """Return the names of the directives of a Cache-Control value."""
    return [part.partition("=")[0].strip().lower() for part in policy.split(",")]


def capped(policy: str, most: int) -> str:
    """Return the Cache-Control value with max-age and s-maxage of at most `most` seconds."""
    directives = [d for d in (part.strip() for part in policy.split(",")) if d]
    kept = []
    ages = {"max-age": most}
    for directive in directives:
        name, _, value = directive.partition("=")
        name = name.strip().lower()
        if name in ("max-age", "s-maxage"):
            text = value.strip().strip('"')
            # A cache treats an age that is not a number as stale at once (RFC 9111 §4.2.1).
            asked = int(text[:18]) if text.isascii() and text.isdigit() else 0
            ages[name] = min(asked, ages.get(name, most))
        else:
            kept.append(directive)
    return ", ".join([*kept, *(f"{name}={age}" for name, age in ages.items())])
