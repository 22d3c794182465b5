"""Parse the Set-Cookie header as browsers do (RFC 6265 §5.2).

Attributes keep their order and spelling.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

Attributes = list[tuple[str, str]]

ENDS = ("max-age", "expires")

_SPACE = " \t"  # RFC 6265 strips no other white space: it may be half of a UTF-8 letter

_WHOLE = re.compile(r"-?[0-9]{1,18}")


def parse(header: str) -> tuple[str, str, Attributes]:
    """Return the name, value and attributes of a Set-Cookie header."""
    pair, *rest = header.split(";")
    name, _, value = pair.partition("=")
    parts = (part.partition("=") for part in rest if part.strip())
    attributes = [(key.strip(_SPACE), text.strip(_SPACE)) for key, _, text in parts]
    return name.strip(_SPACE), value.strip(_SPACE), attributes


def seconds_left(attributes: Attributes, now: float) -> int | None:
    """Return the seconds from `now` (Unix seconds) until the attributes end the cookie.

    None if they give no end; zero or less if they delete the cookie. Browsers ignore an end that
    does not parse, and so does this function. Of two attributes of one name, the last one counts.
    """
    ends: dict[str, int] = {}
    for key, value in attributes:
        attribute = key.lower()
        if attribute == "max-age" and _WHOLE.fullmatch(value):
            ends[attribute] = int(value)
        elif attribute == "expires" and (seconds := _seconds_until(value, now)) is not None:
            ends[attribute] = seconds
    return ends.get("max-age", ends.get("expires"))  # Max-Age beats Expires (RFC 6265 §5.3)


def pack(attributes: Attributes) -> str:
    """Return the attributes as one string for an envelope, joined by `;`, which none contains."""
    return ";".join(f"{key}={text}" if text else key for key, text in attributes)


def _seconds_until(date: str, now: float) -> int | None:
    from email.utils import parsedate_to_datetime

    try:
        moment = parsedate_to_datetime(date)
        if moment.tzinfo is None:
            from datetime import timezone

            moment = moment.replace(tzinfo=timezone.utc)
        return int(moment.timestamp() - now)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def default_path(environ: WSGIEnvironment) -> str:
    """Return the path of a cookie without Path: from the page that sets it (RFC 6265 §5.1.4)."""
    from urllib.parse import quote

    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return quote(path.encode("latin-1").rpartition(b"/")[0]) or "/"
