"""Three apps with the same runaway requests, for survival.py: /flask, /propagating and /plain.

A Flask app answers its errors itself, with 500, a MemoryError among them; with
PROPAGATE_EXCEPTIONS it lets them out to the server, as a plain WSGI app does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pandas  # noqa: F401  # loaded at the top, as in an app that works with it
from endless import KINDS
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def flask_app(*, propagate: bool) -> Flask:
    app = Flask(__name__)
    app.config["PROPAGATE_EXCEPTIONS"] = propagate

    @app.get("/<kind>")
    def runaway(kind: str) -> str:
        return str(KINDS[kind]())

    return app


def plain(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    body = str(KINDS[environ["PATH_INFO"].strip("/")]()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def small(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "5")])
    return [b"small"]


app = DispatcherMiddleware(
    small,
    {
        "/flask": flask_app(propagate=False),
        "/propagating": flask_app(propagate=True),
        "/plain": plain,
    },
)
