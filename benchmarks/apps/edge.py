"""A site at the edge of its memory: requests that grow without end in many ways, a leak, a stream.

For sweep.py. `app` is a Flask app; SWEEP_PANDAS loads pandas with it, as many sites do.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator

from endless import MB, array, bytearrays, dicts, frame, text, touched
from flask import Flask, Response, render_template_string, request

if os.environ.get("SWEEP_PANDAS"):
    import pandas  # noqa: F401

app = Flask(__name__)
kept: list[bytearray] = []


def small_dicts() -> object:
    kept: list[dict[str, int]] = []
    while True:
        kept.append({"a": len(kept)})


def late_import() -> object:
    """Fill the container but for 50 MB, load a large package there, and go on growing."""
    from lowmem_wsgi.memory.reading import Memory

    usage = Memory().read()
    found = [touched(MB) for _ in range((usage.limit - usage.used) // MB - 90)]
    import matplotlib.pyplot  # noqa: F401

    return found, bytearrays()


def body() -> object:
    """Read it whole, and take it apart."""
    return len(request.get_data().decode().splitlines())


def template() -> object:
    rows = "{% for number in forever() %}<li>client {{ number }}: {{ text|safe }}</li>{% endfor %}"
    return render_template_string(rows, forever=forever, text="a line of a long report; " * 400)


def forever() -> Iterator[int]:
    number = 0
    while True:
        number += 1
        yield number


def rows() -> Iterator[str]:
    """A report that grows while it is made, before there is anything to send."""
    made: list[dict[str, object]] = []
    while len(made) >= 0:
        made.append({"id": len(made), "name": f"client {len(made)}"})
    yield str(made)


KINDS: dict[str, Callable[[], object]] = {
    "small_dicts": small_dicts,
    "array": array,
    "frame": frame,
    "text": text,
    "bytearrays": bytearrays,
    "dicts": dicts,
    "late_import": late_import,
    "body": body,
    "template": template,
}


@app.get("/")
def small() -> str:
    return "small"


@app.route("/runaway/<kind>", methods=["GET", "POST"])
def runaway(kind: str) -> str:
    return str(KINDS[kind]())


@app.get("/runaway/stream")
def growing_stream() -> Response:
    return Response(rows(), mimetype="text/plain")


@app.get("/leak")
def leak() -> str:
    """Keep so many MB more."""
    kept.append(touched(request.args.get("mb", 2, int) * MB))
    return str(os.getpid())


@app.get("/spike")
def spike() -> str:
    pieces = [touched(MB) for _ in range(request.args.get("mb", 150, int))]
    return str(len(pieces))


@app.get("/first/<package>")
def first(package: str) -> str:
    """Use a package for the first time."""
    if package == "numpy":
        import numpy

        return f"{os.getpid()} {numpy.ones((50, 50)) @ numpy.ones((50, 50)) is not None}"
    if package == "pandas":
        import pandas

        return f"{os.getpid()} {len(pandas.DataFrame({'a': [1, 2]}))}"
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return f"{os.getpid()} {pyplot.figure() is not None}"


@app.get("/hold")
def hold() -> str:
    """Keep so many MB in a piece that nobody sees, as a caught MemoryError sometimes does."""
    sys.swept = touched(request.args.get("mb", 200, int) * MB)  # type: ignore[attr-defined]
    dicts()
    return "never"


@app.get("/stream")
def stream() -> Response:
    """`seconds` of 1,000 bytes each tenth of a second."""
    count = int(request.args.get("seconds", 8.0, float) * 10)

    def chunks() -> Iterator[bytes]:
        for number in range(count):
            yield b"%0999d\n" % number
            time.sleep(0.1)

    return Response(chunks(), mimetype="text/plain")


@app.get("/pid")
def pid() -> str:
    return str(os.getpid())
