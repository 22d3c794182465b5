"""Ten routes, one of which keeps what it makes."""

from __future__ import annotations

import json
import os
import threading

from flask import Flask

from lowmem_wsgi import LowMemory

KB = 1024
kept: list[bytearray] = []
reports: list[object] = []
lock = threading.Lock()
app = Flask(__name__)


@app.get("/")
def home() -> str:
    return str(os.getpid())


@app.get("/good<int:number>/<item>")
def good(number: int, item: str) -> str:
    """Makes some garbage, the more the higher its number, and returns."""
    rows = [{"number": row, "item": item} for row in range(100 * number)]
    text = "x" * (number * 20 * KB)
    return f"{len(rows)} {len(text)}"


@app.get("/leak/<item>")
def leak(item: str) -> str:
    block = bytearray(256 * KB)
    block[::4096] = b"x" * len(block[::4096])
    with lock:
        kept.append(block)
        return str(len(kept) * 256 * KB)


@app.get("/report/<item>")
def report(item: str) -> str:
    """Keeps some small things, which go where `normal` has left room."""
    found = rows()
    with lock:
        reports.append(found)
        return str(len(reports))


@app.get("/normal")
def normal() -> str:
    return json.dumps(rows())


def rows() -> list[dict[str, object]]:
    return [{"id": row, "name": f"client {row}", "city": f"Bonn {row}"} for row in range(2000)]


app.wsgi_app = LowMemory(app.wsgi_app)  # type: ignore[method-assign]
