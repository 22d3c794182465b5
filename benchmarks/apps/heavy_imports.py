"""A small Flask app with heavy imports at its top, for late_imports.py."""

from __future__ import annotations

import io

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import openpyxl
import pandas as pd
from flask import Flask

app = Flask(__name__)


@app.get("/")
def home() -> str:
    return "home"


@app.get("/heavy")
def heavy() -> str:
    """Use all of them."""
    frame = pd.DataFrame({"a": np.arange(1000)})
    out = io.BytesIO()
    frame.to_excel(out, engine="openpyxl")
    matplotlib.use("Agg")
    figure, axes = plt.subplots()
    axes.plot(frame.a)
    figure.savefig(io.BytesIO())
    plt.close(figure)
    book = openpyxl.load_workbook(io.BytesIO(out.getvalue()), read_only=True)
    return str(book.active.max_row)
