"""A Flask app that keeps its session in a cookie it signs. `bare` knows nothing of us."""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, request, session

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


app = LowMemory(bare)
