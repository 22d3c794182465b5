"""The source document to the letter, on the app of request_cost.py.

Its Gunicorn settings are in letter_gunicorn.py. Two of its measures do not break this app, so
they are here: its templates and queries stay under 200 frames, and it imports nothing late (a
late `import pandas` raises ImportError once numpy was removed). Where the document leaves room,
the cheaper reading is taken: the threshold is set after the imports, which it would slow.
"""

from __future__ import annotations

import gc
import sys
import threading
import time

from clients import app as app
from flask import Response

CLEANUP_SECONDS = 10
HEAVY = ("pandas", "numpy", "matplotlib")


@app.after_request
def collect(response: Response) -> Response:
    for _ in range(3):
        gc.collect()
    return response


def clean_up() -> None:
    while True:
        time.sleep(CLEANUP_SECONDS)
        for name in [name for name in sys.modules if name.partition(".")[0] in HEAVY]:
            del sys.modules[name]
        gc.collect()


gc.set_threshold(25, 1, 1)
sys.setrecursionlimit(200)
threading.Thread(target=clean_up, daemon=True).start()
