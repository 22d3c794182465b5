"""A Flask app that keeps its session in a cookie it signs. `bare` knows nothing of us."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, request, session

from lowmem_wsgi import LowMemory

SECRET = "the Flask app's own secret"

bare = Flask(__name__)
bare.config.update(
    SECRET_KEY=SECRET,
    SESSION_COOKIE_DOMAIN="shop.test",
    SESSION_COOKIE_SAMESITE="Lax",
    SESSION_COOKIE_SECURE=True,
)


@bare.get("/login")
def login() -> dict[str, Any]:
    session["user"] = request.query_string.decode()
    return who()


@bare.get("/who")
def who() -> dict[str, Any]:
    return {"user": session.get("user"), "pid": os.getpid()}


@bare.get("/logout")
def logout() -> dict[str, Any]:
    session.clear()
    return who()


@bare.get("/cart")
def cart() -> dict[str, Any]:
    """What is in the cart, and one more thing where the request names one."""
    if request.query_string:
        session["cart"] = [*session.get("cart", ()), request.query_string.decode()]
    return {"cart": session.get("cart", [])}


@bare.get("/remember")
def remember() -> dict[str, Any]:
    """Stay for 31 days: from now on, Flask sets the cookie anew with each answer."""
    session.permanent = True
    return who()


# A slow view waits until another request lets it through. A test in the same process puts what
# shall happen meanwhile in `gate`'s place.
_began, _through = threading.Event(), threading.Event()


def gate() -> None:
    _began.set()
    assert _through.wait(30), "nobody opened the gate"
    _began.clear()
    _through.clear()


@bare.get("/slow")
def slow() -> dict[str, Any]:
    """Read the session, and take a while."""
    read = who()
    gate()
    return read


@bare.get("/stream")
def stream() -> Response:
    """Read the session, send something, and take a while to send the rest."""
    user = str(session.get("user"))

    def chunks() -> Iterator[str]:
        yield user
        gate()
        yield user

    return Response(chunks())


@bare.get("/waiting")
def waiting() -> dict[str, Any]:
    return {"waiting": _began.is_set()}


@bare.get("/open")
def open_gate() -> dict[str, Any]:
    _through.set()
    return {}


app = LowMemory(bare)
