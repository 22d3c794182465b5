"""The Set-Cookie header, taken apart and put together as browsers read it (RFC 6265 §5.2).

Attributes keep their order and spelling. The two that end a cookie are kept as seconds from
now, so that the same attributes can be sent again later.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

Attributes = list[tuple[str, str]]

_SPACE = " \t"  # all that RFC 6265 strips: the others may be half of a UTF-8 letter

_WHOLE = re.compile(r"-?[0-9]{1,18}")


def parse(header: str) -> tuple[str, str, Attributes]:
    """Name, value and attributes of a Set-Cookie header."""
    pair, *rest = header.split(";")
    name, _, value = pair.partition("=")
    parts = (part.partition("=") for part in rest if part.strip())
    attributes = [(key.strip(_SPACE), text.strip(_SPACE)) for key, _, text in parts]
    return name.strip(_SPACE), value.strip(_SPACE), attributes


def relative(attributes: Attributes, now: float, most: float) -> Attributes | None:
    """The attributes with their ends as seconds from `now`, at most `most`.

    None where the cookie is being deleted.
    """
    result: Attributes = []
    ends: dict[str, int] = {}
    bounded = any(key.lower() == "max-age" for key, _ in attributes)
    for key, value in attributes:
        attribute = key.lower()
        seconds: int | None
        if attribute == "max-age":
            seconds = int(value) if _WHOLE.fullmatch(value) else None
        elif attribute == "expires":
            seconds = _seconds_until(value, now)
        else:
            result.append((key, value))
            continue
        if seconds is not None:
            ends[attribute] = seconds
            result.append((key, str(min(seconds, int(most)))))
        elif attribute == "expires" and value and not bounded:
            # A date that we cannot read a browser perhaps can: bound it in our own words.
            result.append(("Max-Age", str(int(most))))
    # Max-Age beats Expires (RFC 6265 §5.3).
    end = ends.get("max-age", ends.get("expires"))
    return None if end is not None and end <= 0 else result


def render(name: str, value: str, attributes: Attributes, now: float) -> str:
    """The header again; `attributes` as `relative` gave them."""
    parts = [f"{name}={value}"]
    for key, text in attributes:
        shown = _date(now + int(text)) if key.lower() == "expires" else text
        parts.append(f"{key}={shown}" if shown else key)
    return "; ".join(parts)


def pack(attributes: Attributes) -> str:
    """The attributes as one string, for `unpack`."""
    return ";".join(f"{key}={text}" if text else key for key, text in attributes)


def unpack(text: str) -> Attributes:
    """What `pack` was given."""
    return parse(";" + text)[2]


def _date(moment: float) -> str:
    from email.utils import formatdate

    return formatdate(moment, usegmt=True)


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
    """The path of a cookie that names none: that of the page that set it (RFC 6265 §5.1.4)."""
    from urllib.parse import quote

    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return quote(path.encode("latin-1").rpartition(b"/")[0]) or "/"
