"""Name the route of a request: `GET /clients/<n>`.

The name is the framework's own pattern if LowMemory can read that, else the path, with ids
replaced. A path that a client has invented gets no name of its own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .paths import PATH, ROUTE

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

NOT_FOUND = "(not found)"
# The most bytes of a name: a name has a fixed place on the shared page.
LONGEST = 96
# LowMemory caches the names of MOST paths, of at most LONGEST_KEY characters each, and reads at
# most LONGEST_PATH characters of a path: a client can send a path of any length.
MOST, LONGEST_KEY, LONGEST_PATH = 500, 200, 1000

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
# A segment of a path that is an id: a number; or a UUID, hash or token with a digit.
_NUMBER = re.compile(r"[0-9]+")
_ID = re.compile(r"(?=[^/]*[0-9])([0-9A-Fa-f-]{8,}|[0-9A-Za-z_-]{20,})")


class Names:
    """Names of routes. Call an instance with a request that is over.

    The arguments: the environ, the status that was sent, and the result of `route_pattern` when the
    app began its answer.
    """

    def __init__(self, static_prefix: str) -> None:
        self._static = static_prefix.rstrip("/") + "/"
        self._known: dict[str, str] = {}

    def __call__(
        self, environ: WSGIEnvironment, status: str | None, route: str | None = None
    ) -> str:
        # Look up the name by method and path, so that LowMemory computes each name once.
        get = environ.get
        if route is None:
            came = f"{get('REQUEST_METHOD', '')} {get('SCRIPT_NAME', '')}{get('PATH_INFO', '')}"
        else:
            came = f"{get('REQUEST_METHOD', '')} {route}"
        return self._known.get(came) or self._named(came, environ, status, route)

    def _named(
        self, came: str, environ: WSGIEnvironment, status: str | None, route: str | None
    ) -> str:
        method, path = environ.get("REQUEST_METHOD", ""), environ.get("PATH_INFO", "")
        mount, door = environ.get("SCRIPT_NAME", ""), str(environ.get(PATH, path))
        known = method in METHODS
        if route is None and status is not None and status.startswith("404"):
            route, known = NOT_FOUND, False  # only this time, not cached: 404 paths are too many
        elif route is None and door.startswith(self._static):
            route = (mount + path).removesuffix(door) + self._static + "…"
        elif route is None:
            route = as_text(mount) + _pattern(path)
        name = shortened(f"{method if method in METHODS else '?'} {route}")
        if known and len(came) <= LONGEST_KEY:
            if len(self._known) >= MOST:
                self._known.clear()
            self._known[came] = name
        return name


def route_pattern(environ: WSGIEnvironment) -> str | None:
    """Return the route's pattern that the app or its framework has put into the environ, or None.

    Call this while the app answers: Flask removes the pattern afterwards.
    """
    for key in TELLERS:
        if key in environ:
            found = TELLERS[key](environ[key])
            if isinstance(found, str):
                return f"{environ.get('SCRIPT_NAME', '')}{found}"
    return None


# A key of the environ -> a function that returns the pattern from the value.
TELLERS: dict[str, Callable[[Any], object]] = {
    ROUTE: lambda pattern: pattern,
    # Flask: the request, with the rule that matched; None for a 404.
    "werkzeug.request": lambda request: getattr(getattr(request, "url_rule", None), "rule", None),
    "bottle.route": lambda route: getattr(route, "rule", None),
}


def _pattern(path: str) -> str:
    """Return Django's pattern, which is not in the environ; else the path with ids replaced."""
    path = path[:LONGEST_PATH]
    django = sys.modules.get("django.urls")
    if django is not None:
        try:
            return "/" + str(django.resolve(as_text(path)).route)
        except Exception:  # no such path, Django not set up, or another framework's process
            pass
    return folded(as_text(path))


def by_path(method: str, path: str) -> str:
    """Return a route's name from method and path alone, without calling a framework."""
    name = folded(as_text(path[:LONGEST_PATH]))
    return shortened(f"{method if method in METHODS else '?'} {name}")


def folded(path: str) -> str:
    """Replace ids in a path: `/clients/17/files/6f1c0ffe-…` gives `/clients/<n>/files/<id>`."""
    return "/".join(_segment(segment) for segment in path.split("/"))


def _segment(segment: str) -> str:
    if _NUMBER.fullmatch(segment):
        return "<n>"
    return "<id>" if _ID.fullmatch(segment) else segment


def as_text(path: str) -> str:
    """Return PATH_INFO (bytes as Latin-1, PEP 3333) as text."""
    return path.encode("latin-1", "replace").decode("utf-8", "replace")


def shortened(name: str) -> str:
    """Return the name on one line and cut to at most LONGEST bytes."""
    if not name.isprintable():
        name = "".join(sign if sign.isprintable() else "�" for sign in name)
    whole = name.encode("utf-8", "replace")
    return name if len(whole) <= LONGEST else whole[: LONGEST - 3].decode("utf-8", "ignore") + "…"
