"""A site that does to its memory what diagnosis.py asks for, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from typing import IO

from endless import MB, dicts, touched
from flask import Flask, request

app = Flask(__name__)
kept: list[object] = []
cached: dict[int, bytearray] = {}
files: list[IO[bytes]] = []
children: list[subprocess.Popen[bytes]] = []
# Start-up that takes so much, by an environment variable: MB.
loaded = touched(int(os.environ.get("BENCH_AT_START", "0")) * MB)


@app.get("/")
def small() -> str:
    return str(os.getpid())


@app.get("/history")
def history() -> str:
    kept.append(touched(request.args.get("kb", 2048, int) * 1024))
    return "kept"


@app.get("/export")
def export() -> str:
    kept.append(touched(request.args.get("kb", 2048, int) * 1024))
    return "kept"


@app.get("/cached/<int:number>")
def cache(number: int) -> str:
    """1 MB for each of so many keys, and no more after that."""
    key = number % request.args.get("keys", 60, int)
    if key not in cached:
        cached[key] = touched(MB)
    return "cached"


@app.get("/load")
def load() -> str:
    """As a module that is imported at first use."""
    if 0 not in cached:
        cached[0] = touched(request.args.get("mb", 60, int) * MB)
    return "loaded"


@app.get("/heavy")
def heavy() -> str:
    import pandas

    return str(len(pandas.DataFrame({"a": range(10)})))


@app.get("/spike")
def spike() -> str:
    """So many MB, in pieces, held for so many seconds and dropped."""
    kb = request.args.get("piece", 1024, int)
    count = request.args.get("mb", 150, int) * 1024 // kb
    pieces = [b"x" * (kb * 1024) for _ in range(count)]
    time.sleep(request.args.get("hold", 0.0, float))
    return str(len(pieces))


@app.get("/report")
def report() -> str:
    """Grows evenly while it runs, and drops it all."""
    mb, seconds = request.args.get("mb", 200, int), request.args.get("seconds", 4.0, float)
    pieces = []
    for _ in range(mb):
        pieces.append(touched(MB))
        time.sleep(seconds / mb)
    return str(len(pieces))


@app.get("/slow")
def slow() -> str:
    time.sleep(request.args.get("seconds", 3.0, float))
    return "slow"


@app.get("/runaway")
def runaway() -> str:
    return str(dicts())


@app.get("/thread")
def thread() -> str:
    """A thread of the app that keeps 1 MB every so many seconds, up to so many."""
    mb, every = request.args.get("mb", 120, int), request.args.get("every", 0.1, float)

    def grow() -> None:
        for _ in range(mb):
            kept.append(touched(MB))
            time.sleep(every)

    threading.Thread(target=grow, daemon=True).start()
    return "started"


@app.get("/tmpfs")
def tmpfs() -> str:
    """A file in memory, gone with this process."""
    file = tempfile.TemporaryFile(dir="/dev/shm")  # noqa: SIM115
    for _ in range(request.args.get("mb", 200, int)):
        file.write(b"x" * MB)
    file.flush()
    files.append(file)
    return "written"


@app.get("/child")
def child() -> str:
    """Another process that holds so much, and ends when this one does."""
    text = f"held = b'x' * ({request.args.get('mb', 200, int)} << 20); input()"
    children.append(subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE))
    return "started"
