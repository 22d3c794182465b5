"""Static files: clients may cache them, for a short time.

A file under the prefix gets `Cache-Control: max-age` of at most so many seconds: so the app is
not asked again and again by one page, and a deploy is seen by everybody soon after.
"""

from __future__ import annotations

from .paths import wsgi_path

Headers = list[tuple[str, str]]

_CACHED = ("200", "203", "206", "304")


class StaticFiles:
    """Caps max-age (seconds) for what lies under `prefix`."""

    def __init__(self, prefix: str, max_age: float) -> None:
        self.prefix = wsgi_path(prefix)
        self._max_age = int(max_age)

    def amend(self, path: str, status: str, headers: Headers) -> Headers:
        """The headers with max-age capped, where this path and status are meant."""
        if not path.startswith(self.prefix) or not status.startswith(_CACHED):
            return headers
        given = [value for name, value in headers if name.lower() == "cache-control"]
        policy = ", ".join(given)
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


def capped(policy: str, most: int) -> str:
    """A Cache-Control value whose max-age and s-maxage are at most `most` seconds.

    `no-store` stays as it is. `no-cache`, which Flask sends for every static file, gives way to
    max-age: staleness of `most` seconds is what this setting is for. RFC 9111 §5.2.
    """
    directives = [d for d in (part.strip() for part in policy.split(",")) if d]
    names = {d.lower() for d in directives}
    if "no-store" in names:
        return policy
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
        elif directive.lower() != "no-cache":
            kept.append(directive)
    return ", ".join([*kept, *(f"{name}={age}" for name, age in ages.items())])
