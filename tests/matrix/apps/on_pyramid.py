"""The routes of the matrix in Pyramid, with the session that Pyramid signs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import acts
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from pyramid.session import SignedCookieSessionFactory

from lowmem_wsgi import LowMemory


def get(act: Callable[[str], dict[str, Any]]) -> Callable[[Request], dict[str, Any]]:
    return lambda request: act(request.query_string)


def read(request: Request) -> dict[str, Any]:
    return acts.body(request.body)


def form(request: Request) -> dict[str, Any]:
    file = request.POST["f"]
    return acts.form(file.filename, file.file.read())


def stream(request: Request) -> Response:
    return Response(app_iter=acts.Streamed(request.query_string), content_type="text/plain")


def login(request: Request) -> dict[str, Any]:
    request.session["user"] = request.query_string
    return who(request)


def who(request: Request) -> dict[str, Any]:
    return {"user": request.session.get("user")}


def logout(request: Request) -> dict[str, Any]:
    request.session.invalidate()
    return who(request)


views: dict[str, Callable[[Request], Any]] = {
    f"/{view.__name__}": view for view in (read, form, stream, login, who, logout)
}
for path, act in acts.GETS.items():
    views[path] = get(act)

sessions = SignedCookieSessionFactory(acts.SECRET, cookie_name="session")
with Configurator(session_factory=sessions) as config:
    for path, view in views.items():
        config.add_route(path, path)
        config.add_view(view, route_name=path, renderer="json")
    app = acts.validated(LowMemory(config.make_wsgi_app()))
