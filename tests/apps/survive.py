"""An app that does what ends workers: leaks, grows without end, dawdles, hangs. `app` is wrapped.

The paths under /flask are answered by a Flask app, which makes a 500 of its errors itself.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from flask import Flask

from lowmem_wsgi import LowMemory

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

MB = 1024 * 1024
kept: list[bytes] = []


def pieces() -> object:
    """Of 1 MB each."""
    found = []
    while True:
        found.append(b"x" * MB)


def block() -> object:
    return bytearray(b"x") * (2048 * MB)


def dicts() -> object:
    found: list[dict[str, object]] = []
    while True:
        found.append({"id": len(found), "name": f"client {len(found)}"})


def steps() -> object:
    """Of 1 MB each, 200 a second."""
    found = []
    while True:
        found.append(b"x" * MB)
        time.sleep(0.005)


def text() -> object:
    doubled = "x"
    while True:
        doubled += doubled


def numbers() -> object:
    return list(range(10**9))


def run(endless: Callable[[], object], query: dict[str, str]) -> object:
    return endless()


RUNAWAYS = (pieces, block, dicts, steps, text, numbers)


def leak(query: dict[str, str]) -> object:
    """So many KB more, kept; whose worker it was."""
    kept.append(b"x" * (int(query.get("kb", "2048")) * 1024))
    return os.getpid()


def forget(query: dict[str, str]) -> object:
    kept.clear()
    return "forgotten"


def slow(query: dict[str, str]) -> object:
    print("at /slow")
    time.sleep(float(query["seconds"]))
    return os.getpid()


def stuck(query: dict[str, str]) -> object:
    """For years, and no other thread of the process has its turn meanwhile."""
    print("at /stuck")
    return sum(range(10**15))


ROUTES: dict[str, Callable[[dict[str, str]], object]] = {
    "/": lambda query: os.getpid(),
    "/healthz": lambda query: "well",
    "/healthz/forget": forget,
    "/leak": leak,
    "/slow": slow,
    "/stuck": stuck,
    **{f"/{endless.__name__}": functools.partial(run, endless) for endless in RUNAWAYS},
}

flask = Flask(__name__)
flask.add_url_rule("/flask/leak", "leak", lambda: str(leak({})))
for endless in RUNAWAYS:
    flask.add_url_rule(
        f"/flask/{endless.__name__}",
        endless.__name__,
        lambda endless=endless: str(endless()),
    )


def bare(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path.startswith("/flask/"):
        return flask(environ, start_response)
    if path == "/upload":
        answer: object = len(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    else:
        query = parse_qs(environ["QUERY_STRING"])
        answer = ROUTES[path]({key: values[0] for key, values in query.items()})
    body = json.dumps(answer).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]


app = LowMemory(bare)
