"""Ways in which a request allocates without end, or far more than there is."""

from __future__ import annotations

from collections.abc import Callable

MB = 1024 * 1024
PAGE = 4096


def touched(size: int) -> bytearray:
    """So many bytes, each page written to: fresh zeros alone would take no memory."""
    block = bytearray(size)
    block[::PAGE] = b"x" * len(range(0, size, PAGE))
    return block


def bytearrays() -> object:
    kept = []
    while True:
        kept.append(touched(MB))


def array() -> object:
    import numpy  # type: ignore[import-not-found,unused-ignore]

    return numpy.ones(4 * 1024 * MB // 8).sum()


def frame() -> object:
    import pandas

    rows = 30_000_000
    return len(pandas.DataFrame({"id": range(rows), "city": "Kiel", "total": 1.0}))


def dicts() -> object:
    kept: list[dict[str, object]] = []
    while True:
        kept.append({"id": len(kept), "name": f"client {len(kept)}"})


def text() -> object:
    doubled = "x"
    while True:
        doubled += doubled


KINDS: dict[str, Callable[[], object]] = {
    "bytearrays": bytearrays,
    "array": array,
    "frame": frame,
    "dicts": dicts,
    "text": text,
}
