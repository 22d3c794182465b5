"""Ten routes, one of which keeps what it makes."""

from __future__ import annotations

import os
import threading

from flask import Flask

from lowmem_wsgi import LowMemory

KB = 1024
kept: list[bytearray] = []
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


app.wsgi_app = LowMemory(app.wsgi_app)  # type: ignore[method-assign]
