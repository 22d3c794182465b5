"""A strict server side for WSGI apps, in process: wsgiref.validate on both sides."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator


@dataclass
class Response:
    status: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)

    @property
    def code(self) -> int:
        return int(self.status[:3])

    def header(self, name: str) -> str | None:
        values = [v for k, v in self.headers if k.lower() == name.lower()]
        return ", ".join(values) if values else None

    def cookies(self) -> dict[str, str]:
        """name -> the whole Set-Cookie header, of the last with that name."""
        return {v.partition("=")[0]: v for k, v in self.headers if k.lower() == "set-cookie"}


def unheard(*_: object) -> Callable[[bytes], object]:
    """The start_response of a server that does not listen."""
    return bytes


def make_environ(path: str = "/", method: str = "GET", **extra: Any) -> dict[str, Any]:
    environ: dict[str, Any] = {"PATH_INFO": path, "REQUEST_METHOD": method}
    environ |= {"QUERY_STRING": "", "SCRIPT_NAME": ""}
    setup_testing_defaults(environ)
    environ["SERVER_PROTOCOL"] = "HTTP/1.1"
    environ["wsgi.input"] = io.BytesIO(b"")
    environ.update(extra)
    return environ


def post(path: str, body: bytes, *, chunked: bool = False, **extra: Any) -> dict[str, Any]:
    environ = make_environ(path, "POST", **{"wsgi.input": io.BytesIO(body), **extra})
    environ["CONTENT_TYPE"] = "application/octet-stream"
    if chunked:
        environ |= {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}
    else:
        environ.setdefault("CONTENT_LENGTH", str(len(body)))
    return environ


def validated(app: Callable[..., Any]) -> Callable[..., Any]:
    """wsgiref's validator on the app's side of the middleware."""
    result: Callable[..., Any] = validator(app)
    return result


def call(app: Callable[..., Any], environ: dict[str, Any], *, strict: bool = False) -> Response:
    """Serve one request as a server does: iterate, then close, whatever happens."""
    response = Response()

    def write(data: bytes) -> None:
        response.chunks.append(data)

    def start_response(
        status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        if exc_info and any(response.chunks):
            raise exc_info[1].with_traceback(exc_info[2])
        assert exc_info or not response.status, "start_response called twice"
        response.status, response.headers = status, list(headers)
        return write

    served = validator(app) if strict else app
    result = served(environ, start_response)
    try:
        for chunk in result:
            assert response.status, "a chunk before start_response"
            response.chunks.append(chunk)
    finally:
        if hasattr(result, "close"):
            result.close()
    response.body = b"".join(response.chunks)
    return response
