"""Clients by month, drawn by matplotlib in a child process, and kept as long as it is right."""

import glob
import hashlib
import os
import tempfile
import threading
from collections.abc import Mapping
from importlib.util import find_spec

from lowmem_wsgi import offload

MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
_drawing = threading.Lock()


def installed() -> bool:
    """Whether what this needs is there; nothing is imported."""
    return find_spec("matplotlib") is not None


def in_words(month: str) -> str:
    """ "2026-01" is "Jan 2026"."""
    year, number = month.split("-")
    return f"{MONTHS[int(number) - 1]} {year}"


def picture(folder: str, counts: Mapping[str, int]) -> str:
    """The path of the PNG that shows these counts, which all workers share.

    It is drawn anew only when they have changed.
    """
    digest = hashlib.sha256(repr(sorted(counts.items())).encode()).hexdigest()[:16]
    path = os.path.join(folder, f"by-month-{digest}.png")
    with _drawing:  # whoever else needs it waits, and finds it
        if not os.path.exists(path):
            png = draw(dict(counts))
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as draft:
                draft.write(png)
            before = glob.glob(os.path.join(glob.escape(folder), "by-month-*.png"))
            os.replace(draft.name, path)
            for other in before:
                if other != path:
                    os.unlink(other)
    return path


@offload(memory="160MB", timeout="1m", at_once=1)
def draw(counts: dict[str, int]) -> bytes:
    """A PNG of 1200 x 480 pixels."""
    import io

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 11, "text.color": "#625c53"})
    figure, axes = pyplot.subplots(figsize=(7.5, 3), dpi=160, layout="constrained")
    labels = [in_words(month).replace(" ", "\n") for month in counts]
    labels = [
        label if number == 0 or label.startswith("Jan") else label.partition("\n")[0]
        for number, label in enumerate(labels)
    ]
    bars = axes.bar(range(len(counts)), list(counts.values()), color="#0f5f56", width=0.7)
    axes.bar_label(bars, [f"{count:,}" for count in counts.values()], padding=3, fontsize=10)
    axes.set_xticks(range(len(counts)), labels)
    axes.set_yticks([])
    axes.margins(x=0.01, y=0.12)
    axes.tick_params(length=0, colors="#625c53")
    axes.spines[["left", "top", "right"]].set_visible(False)
    axes.spines["bottom"].set_color("#8b8477")
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
