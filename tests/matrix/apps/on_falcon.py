"""The routes of the matrix in Falcon. The session is the user's name in a bare cookie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import acts
import falcon

from lowmem_wsgi import LowMemory

Act = Callable[[falcon.Request, falcon.Response], dict[str, Any]]


def plain(act: Callable[[str], dict[str, Any]]) -> Act:
    return lambda request, response: act(request.query_string)


class Get:
    """A route that answers GET."""

    def __init__(self, act: Act) -> None:
        self._act = act

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.media = self._act(request, response)


class Read:
    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        # Falcon's bounded_stream ends where the declared length does: a chunked body has none.
        chunked = "HTTP_TRANSFER_ENCODING" in request.env
        stream = request.stream if chunked else request.bounded_stream
        response.media = acts.body(stream.read())


class Form:
    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        for part in request.get_media():
            response.media = acts.form(part.filename, part.stream.read())


class Stream:
    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.content_type = falcon.MEDIA_TEXT
        response.stream = acts.Streamed(request.query_string)


def login(request: falcon.Request, response: falcon.Response) -> dict[str, Any]:
    response.set_cookie("session", request.query_string, secure=False, path="/")
    return {"user": request.query_string}


def who(request: falcon.Request, response: falcon.Response) -> dict[str, Any]:
    return {"user": request.cookies.get("session")}


def logout(request: falcon.Request, response: falcon.Response) -> dict[str, Any]:
    response.unset_cookie("session", path="/")
    return {"user": None}


bare = falcon.App()
for path, act in acts.GETS.items():
    bare.add_route(path, Get(plain(act)))
for view in (login, who, logout):
    bare.add_route(f"/{view.__name__}", Get(view))
bare.add_route("/read", Read())
bare.add_route("/form", Form())
bare.add_route("/stream", Stream())
app = acts.validated(LowMemory(bare))
