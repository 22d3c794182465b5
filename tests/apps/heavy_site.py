"""An app with the usual heavy imports at its top. Bare: served with our config."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib  # noqa: F401
import numpy as np
import openpyxl  # noqa: F401
import pandas as pd

from lowmem_wsgi.workers import recycling as recycle

# At warn a worker is replaced when it is a minute old. Tests have no minute.
recycle.OLD, recycle.LASTED = 2.0, 0.5


def frame() -> object:
    return int(pd.DataFrame({"a": np.arange(10)}).a.sum())


def loaded() -> object:
    """By name: on Python 3.15 reading `pd` would load it."""
    return [name for name in ("matplotlib", "numpy", "openpyxl", "pandas") if name in sys.modules]


ROUTES: dict[str, Callable[[], object]] = {"/": os.getpid, "/frame": frame, "/loaded": loaded}


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    body = json.dumps(ROUTES[environ["PATH_INFO"]]()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
