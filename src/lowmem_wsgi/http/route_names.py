"""What a request's route is called: `GET /clients/<n>`.

By the framework's own pattern where it can be had, else by the path, with what looks like an id
folded. What a client makes up gets no name of its own.
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
# A name's bytes at most; it has a fixed place on the workers' page.
LONGEST = 96
# So many paths are remembered with their names, if they are no longer than this; no more than so
# much of a path is looked at (characters). What a client sends is as long as it likes.
MOST, LONGEST_KEY, LONGEST_PATH = 500, 200, 1000

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
# A segment of a path that is an id: a number; a UUID, a hash or a token, with a digit in it.
_NUMBER = re.compile(r"[0-9]+")
_ID = re.compile(r"(?=[^/]*[0-9])([0-9A-Fa-f-]{8,}|[0-9A-Za-z_-]{20,})")


class Names:
    """Call it with a request that is over: its environ, the status that was sent, and what
    `route_pattern` said when the app began its answer."""

    def __init__(self, static_prefix: str) -> None:
        self._static = static_prefix.rstrip("/") + "/"
        self._known: dict[str, str] = {}

    def __call__(
        self, environ: WSGIEnvironment, status: str | None, route: str | None = None
    ) -> str:
        # By what came, so that the way to a name is gone once.
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
            route, known = NOT_FOUND, False  # for this time; and there are too many of these
        elif route is None and door.startswith(self._static):
            route = (mount + path).removesuffix(door) + self._static + "…"
        elif route is None:
            route = _text(mount) + _pattern(path)
        name = shortened(f"{method if method in METHODS else '?'} {route}")
        if known and len(came) <= LONGEST_KEY:
            if len(self._known) >= MOST:
                self._known.clear()
            self._known[came] = name
        return name


def route_pattern(environ: WSGIEnvironment) -> str | None:
    """The pattern that the app or its framework has put into the environ: there while it answers;
    Flask takes it out again."""
    for key in TELLERS:
        if key in environ:
            found = TELLERS[key](environ[key])
            if isinstance(found, str):
                return f"{environ.get('SCRIPT_NAME', '')}{found}"
    return None


# What is found under a name in the environ -> the pattern in it.
TELLERS: dict[str, Callable[[Any], object]] = {
    ROUTE: lambda pattern: pattern,
    # Flask: the request and the rule that it has matched, None for a 404.
    "werkzeug.request": lambda request: getattr(getattr(request, "url_rule", None), "rule", None),
    "bottle.route": lambda route: getattr(route, "rule", None),
}


def _pattern(path: str) -> str:
    """Django's, which leaves none in the environ; else the path, folded."""
    path = path[:LONGEST_PATH]
    django = sys.modules.get("django.urls")
    if django is not None:
        try:
            return "/" + str(django.resolve(_text(path)).route)
        except Exception:  # not one of its paths; not set up; another framework's process
            pass
    return folded(_text(path))


def by_path(method: str, path: str) -> str:
    """Where only these are known, and nobody may be asked."""
    name = folded(_text(path[:LONGEST_PATH]))
    return shortened(f"{method if method in METHODS else '?'} {name}")


def folded(path: str) -> str:
    """`/clients/17/files/6f1c0ffe-…` as `/clients/<n>/files/<id>`."""
    return "/".join(_segment(segment) for segment in path.split("/"))


def _segment(segment: str) -> str:
    if _NUMBER.fullmatch(segment):
        return "<n>"
    return "<id>" if _ID.fullmatch(segment) else segment


def _text(path: str) -> str:
    """PATH_INFO (bytes as Latin-1, PEP 3333) as text."""
    return path.encode("latin-1", "replace").decode("utf-8", "replace")


def shortened(name: str) -> str:
    """On one line, and of LONGEST bytes at most."""
    if not name.isprintable():
        name = "".join(sign if sign.isprintable() else "�" for sign in name)
    whole = name.encode("utf-8", "replace")
    return name if len(whole) <= LONGEST else whole[: LONGEST - 3].decode("utf-8", "ignore") + "…"
