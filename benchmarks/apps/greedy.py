"""A Flask app that leaks, spikes, dawdles, streams, hangs and runs away, for survival.py and
soak.py."""

from __future__ import annotations

import time
from collections.abc import Iterator

from endless import MB, bytearrays, touched
from flask import Flask, Response, request, session

app = Flask(__name__)
app.secret_key = "not a secret: a benchmark's"
kept: list[bytearray] = []


@app.get("/")
def small() -> str:
    return "small"


@app.get("/leak")
def leak() -> str:
    """2 MB more, kept."""
    kept.append(touched(2 * MB))
    return "leaked"


@app.get("/forget")
def forget() -> str:
    """As a cache that is emptied."""
    kept.clear()
    return "forgotten"


@app.get("/spike")
def spike() -> str:
    """So many MB, in pieces of 1 MB, held for so many seconds and dropped."""
    pieces = [b"x" * MB for _ in range(request.args.get("mb", 150, int))]
    time.sleep(request.args.get("hold", 0.0, float))
    return str(len(pieces))


@app.get("/slow/<name>")
def slow(name: str) -> str:
    """The name is there to be found in the log."""
    time.sleep(request.args.get("seconds", 0.3, float))
    return name


@app.get("/stream")
def stream() -> Response:
    """80 chunks of 1000 bytes, ten a second; without a length, so Gunicorn sends it chunked."""

    def chunks() -> Iterator[bytes]:
        for number in range(80):
            yield b"%0999d\n" % number
            time.sleep(0.1)

    return Response(chunks(), mimetype="text/plain")


@app.get("/runaway")
def runaway() -> str:
    return str(bytearrays())


@app.get("/visit")
def visit() -> str:
    session["visits"] = session.get("visits", 0) + 1
    return str(session["visits"])


@app.post("/upload")
def upload() -> str:
    return str(len(request.get_data()))
