"""The Set-Cookie header, taken apart and put together as browsers read it (RFC 6265 §5.2).

Attributes keep their order and spelling. The two that end a cookie are kept as seconds from
now, so that the same attributes can be sent again later.
"""

from __future__ import annotations

import re

Attributes = list[tuple[str, str]]

_WHOLE = re.compile(r"-?[0-9]{1,18}")


def parse(header: str) -> tuple[str, str, Attributes]:
    """Name, value and attributes of a Set-Cookie header."""
    pair, *rest = header.split(";")
    name, _, value = pair.partition("=")
    parts = (part.partition("=") for part in rest if part.strip())
    return name.strip(), value.strip(), [(key.strip(), value.strip()) for key, _, value in parts]


def relative(attributes: Attributes, now: float, most: float) -> Attributes | None:
    """The attributes with their ends as seconds from `now`, at most `most`.

    None where the cookie is being deleted.
    """
    result: Attributes = []
    ends: dict[str, int] = {}
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
        elif attribute == "expires" and value:
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
        moment = parsedate_to_datetime(date.replace("-", " "))
        if moment.tzinfo is None:
            from datetime import timezone

            moment = moment.replace(tzinfo=timezone.utc)
        return int(moment.timestamp() - now)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
