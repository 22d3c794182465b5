"""The routes of the matrix in plain WSGI. The session is the user's name in a bare cookie."""

from __future__ import annotations

import json
from collections.abc import Iterable
from http.cookies import SimpleCookie
from typing import TYPE_CHECKING, Any

import acts

from lowmem_wsgi import LowMemory

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse


def all_of(environ: dict[str, Any]) -> bytes:
    if "HTTP_TRANSFER_ENCODING" in environ:
        return b"".join(iter(lambda: environ["wsgi.input"].read(65536), b""))
    data: bytes = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    return data


def part_of_form(environ: dict[str, Any]) -> dict[str, Any]:
    """The one file of the form."""
    edge = b"--" + environ["CONTENT_TYPE"].partition("boundary=")[2].encode()
    head, _, rest = all_of(environ).partition(edge)[2].partition(b"\r\n\r\n")
    name = head.decode().partition('filename="')[2].partition('"')[0]
    return acts.form(name, rest.rpartition(b"\r\n" + edge + b"--")[0])


def user(environ: dict[str, Any]) -> str | None:
    found = SimpleCookie(environ.get("HTTP_COOKIE", "")).get("session")
    return found.value if found else None


def bare(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/stream":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return acts.Streamed(query)
    headers = [("Content-Type", "application/json")]
    if path == "/read":
        answer = acts.body(all_of(environ))
    elif path == "/form":
        answer = part_of_form(environ)
    elif path == "/login":
        headers.append(("Set-Cookie", f"session={query}; Path=/; HttpOnly"))
        answer = {"user": query}
    elif path == "/logout":
        headers.append(("Set-Cookie", "session=; Path=/; Max-Age=0"))
        answer = {"user": None}
    elif path == "/who":
        answer = {"user": user(environ)}
    else:
        answer = acts.GETS[path](query)
    start_response("200 OK", headers)
    return [json.dumps(answer).encode()]


app = acts.validated(LowMemory(bare))
