"""The report as one HTML file: an icicle chart of the imports, and what could be saved."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from ..html_page import filled
from .report import Report, document, headline
from .tree import Node, ordered

_FILE = Path(__file__).with_name("icicle.html")
# How each page begins. No other file is overwritten.
_HEAD = b"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="lowmem-wsgi imports">
"""
# A script element has no HTML escapes. So JSON escapes replace the characters that could end the
# element or open a comment.
_AS_JSON = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"}


def page(report: Report) -> bytes:
    """Return the page in UTF-8. The page needs no other file, and no network."""
    whole = document(report)
    data = {
        "tree": _node(report.modules, report),
        "packages": _node(report.packages, report),
        **{key: whole[key] for key in ("tried", "together", "command")},
    }
    values = {
        "title": escape(report.app),
        "headline": escape(headline(report)),
        "data": json.dumps(data, ensure_ascii=True, separators=(",", ":")).translate(_AS_JSON),
    }
    return filled(_FILE, values)


def is_page(path: Path) -> bool:
    """Return whether the file is a page that `page` has made. Raises OSError."""
    with path.open("rb") as file:
        return file.read(len(_HEAD)) == _HEAD


def _node(node: Node, report: Report) -> list[Any]:
    """Return name, bytes, own bytes, resident bytes, seconds, place, nodes below."""
    return [
        node.name,
        *(node.bytes, node.own_bytes, node.resident),
        round(node.seconds, 4),
        report.place(node.where),
        [_node(child, report) for child in ordered(node)],
    ]
