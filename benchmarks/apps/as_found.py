"""The example as the source document found it: heavy packages at the top, all work in the worker.

For plain Gunicorn. An import is over when its request is.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot
import numpy
import openpyxl
import pandas

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "flask_app"))

import app as example
import chart
import spreadsheets

USED = (matplotlib, numpy, openpyxl, pandas)


class InTheRequest:
    """Calls the function here and now."""

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


for function in (spreadsheets.import_clients, spreadsheets.export_clients, chart.draw):
    function.executor = InTheRequest()  # type: ignore[assignment]

app = example.app
