"""A Flask app that takes much memory for a moment, for allocators.py. Unwrapped."""

from __future__ import annotations

import random
import resource

from flask import Flask, render_template_string

app = Flask(__name__)
kept: list[object] = []
PAGE = "<ul>{% for row in rows %}<li>{{ row.id }}: {{ row.name }}</li>{% endfor %}</ul>"


def clients(count: int) -> list[dict[str, object]]:
    return [{"id": n, "name": f"client {n}", "city": "Kiel"} for n in range(count)]


@app.get("/")
def home() -> str:
    return "home"


@app.get("/page")
def page() -> str:
    return render_template_string(PAGE, rows=clients(30))


@app.get("/pieces")
def pieces() -> str:
    """60 MB in pieces."""
    return str(len([bytearray(50_000) for _ in range(1200)]))


@app.get("/dicts")
def dicts() -> str:
    return str(len(clients(300_000)))


@app.get("/keep")
def keep() -> str:
    """Keep one dict in a hundred: what an app's cache does to a heap."""
    rows = clients(100_000)
    kept.extend(random.Random(len(kept)).sample(rows, 1000))
    return str(len(kept))


@app.get("/cpu")
def cpu() -> str:
    """Seconds of CPU time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return str(used.ru_utime + used.ru_stime)
