"""A plain WSGI app with a route for each thing a test wants to see. `app` is wrapped."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lowmem_wsgi import LowMemory

seen: dict[str, Any] = {"calls": 0, "largest": 0}
released = threading.Event()
passes: list[float] = []  # when each full collection began
closed: list[float] = []  # when the server closed each response of /garbage


def _note_pass(phase: str, info: dict[str, int]) -> None:
    if phase == "start" and info["generation"] == 2:
        passes.append(time.monotonic())


def read_all(environ: dict[str, Any]) -> bytes:
    """Read the body as a careless app does, and remember how much of it came."""
    seen["calls"] += 1
    data = b""
    stream = environ["wsgi.input"]
    try:
        if "HTTP_TRANSFER_ENCODING" not in environ:
            data = stream.read(int(environ.get("CONTENT_LENGTH") or 0))
        else:
            while piece := stream.read(65536):
                data += piece
                seen["largest"] = max(seen["largest"], len(data))
    finally:
        seen["largest"] = max(seen["largest"], len(data))
    return str(len(data)).encode()


def swallow(environ: dict[str, Any]) -> bytes:
    try:
        return read_all(environ)
    except Exception as error:
        return f"all is well, apart from {error}".encode()


class Garbage:
    """A response that leaves cycles behind, and remembers when the server closed it."""

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(100):
            a: list[Any] = []
            a.append(a)
        return iter([b"garbage"])

    def close(self) -> None:
        closed.append(time.monotonic())


def hold(environ: dict[str, Any]) -> bytes:
    """Answer when somebody asks for the release."""
    released.wait(30)
    return b"held"


def release(environ: dict[str, Any]) -> bytes:
    released.set()
    return b"released"


def count_passes(environ: dict[str, Any]) -> bytes:
    if _note_pass not in gc.callbacks:
        gc.callbacks.append(_note_pass)
    return b"counting"


def told(environ: dict[str, Any]) -> bytes:
    figures = {"seen": seen, "passes": passes, "closed": closed, "pid": os.getpid()}
    return json.dumps(figures).encode()


def out_of_memory(environ: dict[str, Any]) -> bytes:
    raise MemoryError


def lowmem(environ: dict[str, Any]) -> bytes:
    told = {"level": environ["lowmem.level"], **environ["lowmem.limits"]}
    return json.dumps(told).encode()


ROUTES: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "/": lambda environ: b"hello",
    "/read": read_all,
    "/swallow": swallow,
    "/hold": hold,
    "/healthz/release": release,
    "/count-passes": count_passes,
    "/told": told,
    "/out-of-memory": out_of_memory,
    "/lowmem": lowmem,
    "/healthz": lambda environ: b"ok",
    "/env": lambda environ: repr(sorted(environ)).encode(),
    "/cookie": lambda environ: environ.get("HTTP_COOKIE", "").encode("latin-1"),
    "/import": read_all,
    "/static/a.css": lambda environ: b"a{}",
}


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path == "/file":
        file = open(__file__, "rb")  # the server closes it  # noqa: SIM115
        start_response("200 OK", [("Content-Type", "text/plain")])
        return environ["wsgi.file_wrapper"](file)  # type: ignore[no-any-return]
    if path == "/garbage":
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "7")])
        return Garbage()
    if path == "/fails":
        raise RuntimeError("the app's own error")
    if path == "/login":
        cookie = ("Set-Cookie", f"session={environ['QUERY_STRING']}; HttpOnly; Path=/")
        start_response("200 OK", [("Content-Type", "text/plain"), cookie])
        return [b"in"]
    route = ROUTES.get(path)
    body = route(environ) if route else b"no such page"
    status = "200 OK" if route else "404 Not Found"
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


bare = app
app = LowMemory(app)  # type: ignore[assignment]
