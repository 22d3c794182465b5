"""A site at the edge of its memory, for test_edge_live.py. `app` is Flask's, unwrapped."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from flask import Flask, Response, request

MB = 1024 * 1024
app = Flask(__name__)
kept: list[bytes] = []


@app.get("/")
def pid() -> str:
    return str(os.getpid())


@app.get("/dicts")
def dicts() -> str:
    """Small objects without end: at the last byte not even the error can be handled."""
    found: list[dict[str, int]] = []
    while True:
        found.append({"a": len(found)})


@app.get("/swallowing")
def swallowing() -> str:
    """The same, and the first errors are caught."""
    found: list[dict[str, int]] = []

    def grow() -> None:
        while True:
            found.append({"a": len(found)})

    for _ in range(3):
        with contextlib.suppress(MemoryError):
            grow()
    return dicts()


@app.get("/stream-of-dicts")
def stream_of_dicts() -> Response:
    """The same, before the first byte of a stream."""

    def rows() -> Iterator[str]:
        yield dicts()

    return Response(rows())


@app.get("/keep")
def keep() -> str:
    kept.append(b"x" * (request.args.get("mb", 1, int) * MB))
    return str(os.getpid())


@app.get("/take")
def take() -> str:
    """So many MB in pieces, for the time of the request."""
    return str(len([b"x" * MB for _ in range(request.args.get("mb", 1, int))]))


@app.get("/keep-and-fail")
def keep_and_fail() -> str:
    keep()
    return dicts()


@app.get("/numpy")
def first_numpy() -> str:
    import numpy

    return str(numpy.ones(3).sum())


@app.get("/stream")
def stream() -> Response:
    """3 s of 1,000 bytes each tenth of a second."""

    def chunks() -> Iterator[bytes]:
        for number in range(30):
            yield b"%0999d\n" % number
            time.sleep(0.1)

    return Response(chunks())
