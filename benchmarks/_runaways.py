"""Requests that grow without end: the routes of apps/edge.py, asked for as clients do."""

from __future__ import annotations

import concurrent.futures

from _common import MB
from _load import Answer, Caller, upload

KINDS = (
    *("small_dicts", "array", "frame", "text", "bytearrays", "late_import", "body", "template"),
    *("stream", "two"),
)


def ask(port: int, kind: str, timeout: float, prefix: str = "") -> list[Answer]:
    """The answers to one runaway, or to two at once. `prefix`: where the app is mounted."""
    if kind == "two":
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            both = ("small_dicts", "dicts")
            asked = [pool.submit(ask, port, kind, timeout, prefix) for kind in both]
            return [answer for future in asked for answer in future.result()]
    if kind == "body":
        return [upload(port, f"{prefix}/runaway/body", 150 * MB, timeout)]
    return [Caller(port, timeout=timeout).ask(f"{prefix}/runaway/{kind}")]
