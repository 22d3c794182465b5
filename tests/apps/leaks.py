"""Six routes that each keep what they make, in a way of their own, and two that keep nothing."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable

import numpy as np
from flask import Flask

KB = 1024
numbers = itertools.count()
app = Flask(__name__)
listed: list[object] = []
cache: dict[int, object] = {}
callbacks: list[Callable[[], int]] = []
arrays: list[object] = []


class Job:
    history: list[object] = []  # noqa: RUF012  # shared by all jobs, which is the leak

    def __init__(self) -> None:
        self.history.append(rows())  # LEAK class


def rows() -> list[dict[str, object]]:
    return [{"id": row, "name": f"client {row}"} for row in range(200)]


@app.get("/list")
def by_list() -> str:
    listed.append(bytearray(30 * KB))  # LEAK list
    return "kept"


@app.get("/dict")
def by_dict() -> str:
    cache[next(numbers)] = "x" * 30_000 + str(next(numbers))  # LEAK dict
    return "kept"


@app.get("/closure")
def by_closure() -> str:
    body = list(range(1000, 2000))  # LEAK closure
    callbacks.append(lambda: len(body))
    return "kept"


@app.get("/class")
def by_class() -> str:
    Job()
    return "kept"


@app.get("/array")
def by_array() -> str:
    arrays.append(np.zeros(4_000))  # LEAK array
    return "kept"


@functools.lru_cache(maxsize=100_000)
def slow_answer(number: int) -> bytes:
    return b"y" * (30_000 + number)  # LEAK lru_cache


@app.get("/lru_cache")
def by_lru_cache() -> str:
    return str(len(slow_answer(next(numbers))))


last: list[object] = [None]


@app.get("/replaces")
def replaces() -> str:
    """Keeps its last answer alone."""
    last[0] = bytearray(500 * KB)
    return "kept"


@app.get("/clean/<int:number>")
def clean(number: int) -> str:
    return json.dumps(rows()) + str(number)
