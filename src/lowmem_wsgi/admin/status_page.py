"""The page for a browser: one file, the status put into it, and the headers that fence it in."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..settings import format_size

_FILE = Path(__file__).with_name("page.html")
# In a script element nothing is escaped for HTML; what could end it, or open a comment, is
# written as JSON may write any character.
_AS_JSON = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"}


def render(
    document: Mapping[str, Any],
    *,
    nonce: str,
    status_path: str,
    cleanup_path: str,
    now: Callable[[], float] = time.time,
) -> bytes:
    """The page with `document`, the status as JSON gives it, in UTF-8.

    `nonce`: what `headers` was given; fresh for each answer. The paths are those of the settings,
    as text; the page asks for both relative to where it is itself, so that a prefix (SCRIPT_NAME,
    a proxy's) does not matter.
    """
    up = "../" * (status_path.count("/") - 1)
    cleanup = "./" + up + quote(cleanup_path.removeprefix("/"))
    values = {
        "nonce": escape(nonce),
        "data": _json({"status": document, "cleanup": cleanup, "now": now()}),
        "summary": escape(_summary(document)),
    }
    # In one go: what looks like a mark in a value stays what it is.
    page = re.sub(r"\{\{(\w+)\}\}", lambda mark: values[mark[1]], _FILE.read_text("utf-8"))
    return page.encode("utf-8", "replace")


def headers(nonce: str) -> list[tuple[str, str]]:
    """The headers of the page: it may run and show itself, and ask the site it is from."""
    policy = {
        "default-src": "'none'",
        "script-src": f"'nonce-{nonce}'",
        "style-src": f"'nonce-{nonce}'",
        "connect-src": "'self'",
        "img-src": "data:",  # the icon, in the colour of the level
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return [
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Security-Policy", "; ".join(f"{k} {v}" for k, v in policy.items())),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cache-Control", "no-store"),
    ]


def _json(value: object) -> str:
    # ASCII alone, so that U+2028 and lone surrogates are escaped, too.
    return json.dumps(value, ensure_ascii=True).translate(_AS_JSON)


def _summary(document: Mapping[str, Any]) -> str:
    """What is shown where scripts are off: the level, the figures, the diagnosis."""
    memory = document["memory"]
    words = f"{document['status']}: {format_size(memory['used_bytes'])} used"
    if memory["limit_bytes"] is not None:
        words += f" of {format_size(memory['limit_bytes'])}"
    if memory["percent"] is not None:
        words += f" ({memory['percent']:g} %)"
    return f"{words}. {document.get('diagnosis') or ''}".rstrip()
