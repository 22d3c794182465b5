"""Serve an app while one of its routes is traced. No request passes here at any other time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from .paths import PATH
from .route_names import METHODS, as_text

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# Key of the environ: an object that lives as long as the environ of a request.
TOKEN = "lowmem.trace"
LONGEST = 200  # characters of a route


class TracedRoute:
    """A WSGI app that calls `begin` before each request of the route, and then the app.

    `begin`: return an object to keep until the server drops the request, or None.
    """

    def __init__(
        self, app: WSGIApplication, route: re.Pattern[str], begin: Callable[[], object]
    ) -> None:
        self._app = app
        self._route = route
        self._begin = begin

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method, path = environ.get("REQUEST_METHOD", ""), as_text(environ[PATH])
        mount = as_text(environ.get("SCRIPT_NAME", ""))  # a part of the status' name for the route
        if any(self._route.fullmatch(f"{method} {at}{path}") for at in {"", mount}):
            token = self._begin()
            if token is not None:
                environ[TOKEN] = token
        return self._app(environ, start_response)


def route_pattern_of(route: str) -> re.Pattern[str]:
    """Return a pattern for "METHOD path" from a route as the status names it, or from a path.

    `/clients/17`, `/clients/<n>`, `GET /clients/<int:id>`, `/static/…`. Without a method, any.
    Raises ValueError for any other text.
    """
    first, _, rest = route.partition(" ")
    method, path = (first, rest.strip()) if first in METHODS else ("", route)
    if not path.startswith("/") or len(path) > LONGEST or not path.isprintable() or " " in path:
        raise ValueError(route)
    parts = re.split(r"(<[^<>/]*>|…)", path)
    return re.compile(f"{method or '[A-Z]+'} " + "".join(map(_part, parts)))


def _part(part: str) -> str:
    if part == "…" or part.startswith("<path") or part.endswith(":path>"):
        return ".+"
    return "[^/]+" if part.startswith("<") else re.escape(part)
