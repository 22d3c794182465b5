"""Which pages to ask: those that GET answers, and that change nothing."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from ...guards.keys import layers
from ..safe_pages import CHANGES, MOST_PAGES


def find_pages(app: Any) -> list[str]:
    """Return the paths that GET answers and that have no arguments: Flask, Django, Bottle."""
    found: list[str] = []
    for layer in layers(app):
        with contextlib.suppress(Exception):
            if hasattr(layer, "url_map"):
                found += [
                    rule.rule
                    for rule in layer.url_map.iter_rules()
                    if "GET" in rule.methods and not rule.arguments and rule.rule.startswith("/")
                ]
            elif type(layer).__module__.startswith("django."):
                from django.urls import get_resolver

                found += _django(get_resolver().url_patterns, "/")
            elif type(layer).__module__.partition(".")[0] == "bottle":
                found += [
                    route.rule
                    for route in layer.routes
                    if route.method in ("GET", "ANY") and not re.search("[<:]", route.rule)
                ]
    return list(dict.fromkeys(found)) or ["/"]


def _django(patterns: Any, prefix: str) -> Iterator[str]:
    for pattern in patterns:
        text = str(pattern.pattern).removeprefix("^").removesuffix("$").removesuffix(r"\Z")
        if re.search(r"[<(\[*+?\\]", text) or text.startswith("admin/"):
            continue
        if hasattr(pattern, "url_patterns"):
            yield from _django(pattern.url_patterns, prefix + text)
        else:
            yield prefix + text


def worth_asking(pages: list[str]) -> list[str]:
    return [page for page in pages if not CHANGES.search(page)][:MOST_PAGES]
