"""Read the list of requests: a file of paths, or a HAR file that a browser has saved. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

MOST_REQUESTS = 10_000
# What may stand in a path as it is; all else is percent-encoded, as browsers do.
_AS_IT_IS = "/?&=%+,;:@!$'()*~[]-._"
_LINE = re.compile(r"(?:([A-Za-z]+)\s+)?(\S.*)")


class WrongRequests(Exception):
    """The file is no list of requests. The message is one line."""


class Asked(NamedTuple):
    """Paths to ask for by GET, in order; and what was left out, a sentence each."""

    paths: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read(text: str) -> Asked:
    """Return the requests of a file: a HAR file if it begins as JSON does, else a line each.

    Raises WrongRequests.
    """
    asked = _har(text) if text.lstrip("\ufeff \t\r\n").startswith("{") else _lines(text)
    if len(asked.paths) > MOST_REQUESTS:
        raise WrongRequests(
            f"{len(asked.paths)} requests are too many: at most {MOST_REQUESTS} are sent"
        )
    return asked


def encoded(target: str) -> str:
    """Return a path with its query as it is sent: without a fragment, percent-encoded."""
    return quote(target.partition("#")[0], safe=_AS_IT_IS)


def _lines(text: str) -> Asked:
    paths = []
    for number, whole in enumerate(text.lstrip("\ufeff").splitlines(), 1):
        line = whole.strip()
        if not line or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        method, target = (found[1] or "GET", found[2]) if found else ("GET", line)
        if not target.startswith("/") or target.startswith("//") or "\0" in target:
            raise WrongRequests(f"line {number}: {line[:60]!r}: expected GET /path, or /path")
        if method.upper() != "GET":
            raise WrongRequests(f"line {number}: {line[:60]!r}: compare sends GET only")
        paths.append(encoded(target))
    if not paths:
        raise WrongRequests("there is no request: expected lines such as GET /path")
    return Asked(tuple(paths))


def _har(text: str) -> Asked:
    try:
        entries = json.loads(text.lstrip("\ufeff"))["log"]["entries"]
        requests = [(entry["request"]["method"], entry["request"]["url"]) for entry in entries]
        urls = [(str(method).upper(), urlsplit(str(url))) for method, url in requests]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise WrongRequests("neither lines such as GET /path nor a HAR file") from None
    web = [(method, url) for method, url in urls if url.scheme in ("http", "https")]
    if not web:
        raise WrongRequests("the HAR file has no request")
    host = web[0][1].netloc
    own = [(method, url) for method, url in web if url.netloc == host]
    got = [url for method, url in own if method == "GET"]
    if not got:
        raise WrongRequests(f"the HAR file has no GET request to {host}")
    notes = [
        *_note(len(own) - len(got), "{} not by GET"),
        *_note(len(web) - len(own), "{} to other hosts than " + host),
    ]
    return Asked(tuple(_target(url) for url in got), tuple(notes))


def _target(url: Any) -> str:
    return encoded((url.path or "/") + (f"?{url.query}" if url.query else ""))


def _note(number: int, words: str) -> Iterable[str]:
    if number:
        requests = "request" if number == 1 else "requests"
        yield "left out: " + words.format(f"{number} {requests}")
