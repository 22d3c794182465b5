"""A Bottle app that signs its session cookie with a secret only it knows.

Like many a Bottle app it names no Path. `bare` knows nothing of us.
"""

from __future__ import annotations

import os
from typing import Any

from bottle import Bottle, request, response

from lowmem_wsgi import LowMemory

SECRET = "the Bottle app's own secret"


def login() -> dict[str, Any]:
    user = request.query_string
    response.set_cookie("session", user, secret=SECRET, httponly=True, samesite="lax")
    return {"user": user, "pid": os.getpid()}


def who() -> dict[str, Any]:
    return {"user": request.get_cookie("session", secret=SECRET), "pid": os.getpid()}


def logout() -> dict[str, Any]:
    response.delete_cookie("session")
    return {"user": None, "pid": os.getpid()}


bare = Bottle()
bare.get(["/login", "/account/login"], callback=login)
bare.get(["/who", "/account/orders/who"], callback=who)
bare.get(["/logout", "/account/logout"], callback=logout)
app = LowMemory(bare)
