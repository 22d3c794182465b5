"""Make the status page for a browser: one file with the status inside, and strict headers."""

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
# A script element has no HTML escapes. So JSON escapes replace the characters that could end the
# element or open a comment.
_AS_JSON = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"}


def render(
    document: Mapping[str, Any],
    *,
    nonce: str,
    status_path: str,
    cleanup_path: str,
    now: Callable[[], float] = time.time,
) -> bytes:
    """Return the page in UTF-8 with `document`, the status as in JSON.

    `nonce`: the same as for `headers`, new for each answer. `status_path`, `cleanup_path`: from the
    settings, as text. The page requests both paths relative to its own, so that a prefix
    (SCRIPT_NAME, a proxy's) does not matter. `now`: Unix time in seconds.
    """
    up = "../" * (status_path.count("/") - 1)
    cleanup = "./" + up + quote(cleanup_path.removeprefix("/"))
    last = quote(status_path.rpartition("/")[2])
    paths = {act: f"./{last}/{act}" if last else f"./{act}" for act in ("trace", "replace")}
    given = {"status": document, "cleanup": cleanup, **paths, "docs": docs(), "now": now()}
    values = {
        "nonce": escape(nonce),
        "data": _json(given),
        "summary": escape(_summary(document)),
    }
    # Replace all marks in one pass, so that text in a value is never taken for a mark.
    page = re.sub(r"\{\{(\w+)\}\}", lambda mark: values[mark[1]], _FILE.read_text("utf-8"))
    return page.encode("utf-8", "replace")


def docs() -> str | None:
    """Return the address of the documentation, as the package's metadata has it; None without."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        rows = metadata("lowmem-wsgi").get_all("Project-URL") or []
    except PackageNotFoundError:
        return None
    named = dict(row.split(", ", 1) for row in rows if ", " in row)
    found = named.get("Documentation")
    return found.rstrip("/") + "/" if found and found.startswith("https://") else None


def headers(nonce: str) -> list[tuple[str, str]]:
    """Return the page's headers: allow its own script and style, and requests to its own site."""
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
    # Only ASCII, so that U+2028 and lone surrogates are escaped too.
    return json.dumps(value, ensure_ascii=True).translate(_AS_JSON)


def _summary(document: Mapping[str, Any]) -> str:
    """Return the text for browsers without scripts: the level, the figures, the diagnosis."""
    memory = document["memory"]
    words = f"{document['status']}: {format_size(memory['used_bytes'])} used"
    if memory["limit_bytes"] is not None:
        words += f" of {format_size(memory['limit_bytes'])}"
    if memory["percent"] is not None:
        words += f" ({memory['percent']:g} %)"
    return f"{words}. {document.get('diagnosis') or ''}".rstrip()
