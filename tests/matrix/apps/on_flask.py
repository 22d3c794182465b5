"""The routes of the matrix in Flask, with Flask's own session."""

from __future__ import annotations

from typing import Any

import acts
from flask import Flask, Response, request, session

from lowmem_wsgi import LowMemory

bare = Flask(__name__)
bare.secret_key = acts.SECRET


def query() -> str:
    return request.query_string.decode()


for path, act in acts.GETS.items():
    bare.add_url_rule(path, path, lambda act=act: act(query()))


@bare.post("/read")
def read() -> dict[str, Any]:
    return acts.body(request.get_data())


@bare.post("/form")
def form() -> dict[str, Any]:
    file = request.files["f"]
    return acts.form(str(file.filename), file.read())


@bare.get("/stream")
def stream() -> Response:
    return Response(acts.Streamed(query()), mimetype="text/plain")


@bare.get("/login")
def login() -> dict[str, Any]:
    session["user"] = query()
    return who()


@bare.get("/who")
def who() -> dict[str, Any]:
    return {"user": session.get("user")}


@bare.get("/logout")
def logout() -> dict[str, Any]:
    session.clear()
    return who()


bare.wsgi_app = LowMemory(bare.wsgi_app)  # type: ignore[method-assign]
app = acts.validated(bare)
