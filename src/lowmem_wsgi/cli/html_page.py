"""Make one HTML file that needs no other, from a template beside the module that asks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path


def filled(template: Path, values: Mapping[str, str]) -> bytes:
    """Return the template in UTF-8, each `{{name}}` replaced by its value, which is HTML.

    Replaces all marks in one pass, so that text in a value is never taken for a mark.
    """
    text = re.sub(r"\{\{(\w+)\}\}", lambda mark: values[mark[1]], template.read_text("utf-8"))
    return text.encode("utf-8", "replace")
