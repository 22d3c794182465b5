"""An app that uses memory as it is told to, wrapped."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

from lowmem_wsgi import LowMemory, on_pressure

MB = 1024 * 1024
kept: list[bytearray] = []
cache: list[bytearray] = []
told: list[tuple[str, float]] = []


def ballast(size: int) -> bytearray:
    """So many bytes, every page of them touched."""
    block = bytearray(size)
    for offset in range(0, size, 4096):
        block[offset] = 1
    return block


@on_pressure
def drop_cache(level: str) -> None:
    told.append((level, time.monotonic()))
    cache.clear()


def keep(query: dict[str, str]) -> object:
    """Keep so many MB more."""
    kept.append(ballast(int(query["mb"]) * MB))
    return len(kept)


def fill_cache(query: dict[str, str]) -> object:
    cache.extend(ballast(MB) for _ in range(int(query["mb"])))
    return len(cache)


def read_file(query: dict[str, str]) -> object:
    """Read a file whole, in pieces: it is in the page cache then."""
    size = 0
    with open(query["path"], "rb") as file:
        while piece := file.read(MB):
            size += len(piece)
    return size


def grow(query: dict[str, str]) -> object:
    """Grow at a steady rate (MB/s) up to a size (MB); when each MB was there."""
    rate, top = float(query["rate"]), int(query["top"])
    moments = []
    start, first = time.monotonic(), resident()
    while resident() < top * MB:
        kept.append(ballast(MB))
        moments.append((resident(), time.monotonic()))
        ahead = start + (resident() - first) / MB / rate - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
    return moments


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def report(query: dict[str, str]) -> object:
    return {"told": told, "pid": os.getpid(), "rss": resident()}


def monitor(query: dict[str, str]) -> object:
    """Of the monitor's thread: seconds of CPU time, and how often it has slept and woken."""
    (thread,) = (t for t in threading.enumerate() if t.name == "lowmem-monitor")
    task = f"/proc/self/task/{thread.native_id}"
    with open(f"{task}/schedstat") as file:
        seconds = int(file.read().split()[0]) / 1e9
    with open(f"{task}/status") as file:
        (woken,) = (line.split()[1] for line in file if line.startswith("voluntary_ctxt"))
    return {"seconds": seconds, "woken": int(woken)}


ROUTES: dict[str, Callable[[dict[str, str]], object]] = {
    "/": lambda query: "hello",
    "/keep": keep,
    "/fill-cache": fill_cache,
    "/read-file": read_file,
    "/grow": grow,
    "/report": report,
    "/monitor": monitor,
}


def bare(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
    query = {key: values[0] for key, values in parse_qs(environ["QUERY_STRING"]).items()}
    body = json.dumps(ROUTES[environ["PATH_INFO"]](query)).encode()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [body]


app = LowMemory(bare)
