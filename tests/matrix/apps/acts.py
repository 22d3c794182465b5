"""What each route of the matrix's apps does, whichever framework serves the route."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs
from wsgiref.validate import validator

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

MB = 1024 * 1024
PIECE = b"x" * 65536
SECRET = "the secret of the matrix's apps"
kept: list[bytes] = []
read: list[int] = []  # the length of each body that a view has read
closed: dict[str, int] = {"short": 0, "endless": 0}


def hello(query: str) -> dict[str, Any]:
    return {"pid": os.getpid()}


def leak(query: str) -> dict[str, Any]:
    """Keep so many KB more."""
    kept.append(b"x" * (int(parse_qs(query)["kb"][0]) * 1024))
    return hello(query)


def hungry(query: str) -> dict[str, Any]:
    """Ask for a block that is larger than the container."""
    return {"size": len(bytearray(b"x") * (2048 * MB))}


def error(query: str) -> dict[str, Any]:
    raise RuntimeError("an error of the app's own")


def seen(query: str) -> dict[str, Any]:
    return {"read": read, "closed": closed}


GETS: dict[str, Callable[[str], dict[str, Any]]] = {
    "/": hello,
    "/valid": hello,
    "/leak": leak,
    "/hungry": hungry,
    "/error": error,
    "/seen": seen,
}


def body(data: bytes) -> dict[str, Any]:
    read.append(len(data))
    return {"length": len(data)}


def form(name: str, data: bytes) -> dict[str, Any]:
    return {"name": name, "length": len(data)}


class Streamed:
    """The body of a response that notes when it is closed: three pieces, or pieces for ever."""

    def __init__(self, query: str) -> None:
        self._kind = query

    def __iter__(self) -> Iterator[bytes]:
        yield b"one "
        yield b"two "
        yield b"three"
        while self._kind == "endless":
            yield PIECE
            time.sleep(0.01)

    def close(self) -> None:
        closed[self._kind] += 1


def validated(app: WSGIApplication) -> WSGIApplication:
    """wsgiref's validator between the server and LowMemory, for one route."""
    strict = validator(app)

    def either(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        served = strict if environ["PATH_INFO"] == "/valid" else app
        return served(environ, start_response)

    return either
