"""Clients by month, drawn by matplotlib in a child process, and kept as long as it is right."""

import glob
import hashlib
import os
import tempfile
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from typing import NamedTuple

from lowmem_wsgi import offload

MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
LIGHT = "#625c53", "#0f5f56", "#8b8477"  # ink, fill, rule
DARK = "#aea698", "#79d0c1", "#857d70"
_drawing = threading.Lock()


def installed() -> bool:
    """Whether what this needs is there; nothing is imported."""
    return find_spec("matplotlib") is not None


def in_words(month: str) -> str:
    """ "2026-01" is "Jan 2026"."""
    year, number = month.split("-")
    return f"{MONTHS[int(number) - 1]} {year}"


class Variant(NamedTuple):
    """How a picture looks: for a small screen or a wide page, on a dark page or a light one."""

    narrow: bool
    dark: bool


def picture(folder: str, counts: Mapping[str, int], variant: Variant) -> str:
    """The path of the PNG that shows these counts, which all workers share.

    It is drawn anew only when they have changed.
    """
    digest = hashlib.sha256(repr(sorted(counts.items())).encode()).hexdigest()[:16]
    path = os.path.join(folder, f"by-month-{digest}-{variant.narrow:d}{variant.dark:d}.png")
    with _drawing:  # whoever else needs it waits, and finds it
        if not os.path.exists(path):
            png = draw(dict(counts), *variant)
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as draft:
                draft.write(png)
            before = glob.glob(os.path.join(glob.escape(folder), "by-month-*.png"))
            os.replace(draft.name, path)
            for other in before:
                if digest not in other:
                    os.unlink(other)
    return path


@offload(memory="160MB", timeout="1m", at_once=1)
def draw(counts: dict[str, int], narrow: bool = False, dark: bool = False) -> bytes:
    """A PNG with a transparent ground: columns, 1200 x 480 pixels; narrow, bars, 720 x 840."""
    import io

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # The colours are those of static/style.css.
    ink, fill, rule = DARK if dark else LIGHT
    pyplot.rcParams.update({"font.size": 11, "text.color": ink})
    size, dpi = ((3.75, 4.375), 192) if narrow else ((7.5, 3), 160)
    figure, axes = pyplot.subplots(figsize=size, dpi=dpi, layout="constrained")
    places, heights = range(len(counts)), list(counts.values())
    numbers = [f"{count:,}" for count in heights]
    if narrow:
        bars = axes.barh(places, heights, color=fill, height=0.7)
        axes.set_yticks(places, [in_words(month) for month in counts])
        axes.set_xticks([])
        axes.invert_yaxis()
        axes.margins(x=0.16, y=0.01)
        base = "left"
    else:
        labels = [in_words(month).replace(" ", "\n") for month in counts]
        labels = [
            label if number == 0 or label.startswith("Jan") else label.partition("\n")[0]
            for number, label in enumerate(labels)
        ]
        bars = axes.bar(places, heights, color=fill, width=0.7)
        axes.set_xticks(places, labels)
        axes.set_yticks([])
        axes.margins(x=0.01, y=0.12)
        base = "bottom"
    axes.bar_label(bars, numbers, padding=3, fontsize=10)
    axes.tick_params(length=0, colors=ink)
    axes.spines[:].set_visible(False)
    axes.spines[base].set(visible=True, color=rule)
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
