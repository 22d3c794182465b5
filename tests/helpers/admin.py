"""The admin routes as a client asks for them."""

from __future__ import annotations

import base64
import json
from typing import Any

from lowmem_wsgi import LowMemory

from .wsgi import call, make_environ

STATUS, CLEANUP = "/api/memory-status", "/api/force-cleanup"
TOKEN = "tökén-5f3a"


def ok(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]


def wsgi_header(text: str) -> str:
    return text.encode().decode("latin-1")


def bearer(token: str) -> dict[str, str]:
    return {"HTTP_AUTHORIZATION": wsgi_header(f"Bearer {token}")}


def basic(user: str, password: str) -> dict[str, str]:
    pair = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"HTTP_AUTHORIZATION": f"Basic {pair}"}


def get_json(wrapped: LowMemory, path: str = STATUS, **extra: Any) -> dict[str, Any]:
    response = call(wrapped, make_environ(path, **extra), strict=True)
    assert response.code == 200, response.body
    assert response.header("Content-Type") == "application/json"
    result: dict[str, Any] = json.loads(response.body)
    return result
