"""The routes of the matrix in Bottle, with a cookie that Bottle signs."""

from __future__ import annotations

from typing import Any

import acts
from bottle import Bottle, request, response

from lowmem_wsgi import LowMemory


def read() -> dict[str, Any]:
    return acts.body(request.body.read())


def form() -> dict[str, Any]:
    file = request.files["f"]
    return acts.form(file.raw_filename, file.file.read())


def stream() -> acts.Streamed:
    response.content_type = "text/plain"
    return acts.Streamed(request.query_string)


def login() -> dict[str, Any]:
    response.set_cookie("session", request.query_string, secret=acts.SECRET, path="/")
    return {"user": request.query_string}


def who() -> dict[str, Any]:
    return {"user": request.get_cookie("session", secret=acts.SECRET)}


def logout() -> dict[str, Any]:
    response.delete_cookie("session", path="/")
    return {"user": None}


bare = Bottle()
for path, act in acts.GETS.items():
    bare.get(path, callback=lambda act=act: act(request.query_string))
bare.post("/read", callback=read)
bare.post("/form", callback=form)
for view in (stream, login, who, logout):
    bare.get(f"/{view.__name__}", callback=view)
app = acts.validated(LowMemory(bare))
