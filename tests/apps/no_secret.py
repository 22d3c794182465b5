"""A WSGI app without any secret: its session cookie holds the user's name as it is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from http.cookies import SimpleCookie
from typing import Any

from lowmem_wsgi import LowMemory


def bare(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    headers = [("Content-Type", "application/json")]
    if environ["PATH_INFO"] == "/login":
        user = environ["QUERY_STRING"]
        headers.append(("Set-Cookie", f"session={user}; Path=/; HttpOnly"))
    else:
        cookie = SimpleCookie(environ.get("HTTP_COOKIE", "")).get("session")
        user = cookie.value if cookie else None
    start_response("200 OK", headers)
    return [json.dumps({"user": user, "pid": os.getpid()}).encode()]


app = LowMemory(bare)
