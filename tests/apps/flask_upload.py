"""A Flask app of uploads and spikes, wrapped in the way Flask's own documentation wraps."""

from __future__ import annotations

import os

from flask import Flask, request

from lowmem_wsgi import LowMemory

app = Flask(__name__)
app.wsgi_app = LowMemory(app.wsgi_app)  # type: ignore[method-assign]
seen = {"calls": 0, "largest": 0}


@app.post("/read")
def read() -> str:
    seen["calls"] += 1
    data = request.get_data()
    seen["largest"] = max(seen["largest"], len(data))
    return str(len(data))


@app.post("/swallow")
def swallow() -> str:
    seen["calls"] += 1
    try:
        return str(len(request.files))
    except Exception as error:
        return f"all is well, apart from {error}"


@app.get("/told")
def told() -> dict[str, object]:
    return {"seen": seen}


@app.get("/spike-pieces")
def spike_pieces() -> str:
    """60 MB in 50 KB pieces."""
    pieces = [bytearray(50_000) for _ in range(1200)]
    return str(len(pieces))


@app.get("/spike-rows")
def spike_rows() -> str:
    rows = [{"id": n, "name": f"client {n}", "city": "Kiel"} for n in range(300_000)]
    return str(len(rows))


@app.get("/rss")
def rss() -> str:
    with open("/proc/self/statm") as file:
        return str(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
