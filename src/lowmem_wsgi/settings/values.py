"""Kinds of values: text (or a ready value, from a keyword) in, value out, ValueError if wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")
N = TypeVar("N", int, float)

KB = 1024  # Powers of two, as in the source document and in the docs of Render and Flask.
MB = 1024 * KB
GB = 1024 * MB


class Kind(Generic[T]):
    """A kind of setting: its parser, and the text that describes the expected value."""

    def __init__(self, expected: str, parse: Callable[[Any], T]) -> None:
        self.expected = expected
        self.parse = parse


_UNITS = {"": 1, "B": 1, "K": KB, "KB": KB, "KIB": KB, "M": MB, "MB": MB, "MIB": MB}
_UNITS |= {"G": GB, "GB": GB, "GIB": GB}
_SPANS = {"": 1.0, "MS": 0.001, "S": 1.0, "M": 60.0, "H": 3600.0, "D": 86400.0}
_QUANTITY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 §5.6.2, a cookie's name
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def _quantity(value: object, units: Mapping[str, float]) -> float:
    if isinstance(value, bool):
        raise ValueError
    if isinstance(value, (int, float)):
        number = float(value)
    else:
        match = _QUANTITY.fullmatch(as_text(value))
        if match is None or match[2].upper() not in units:
            raise ValueError
        number = float(match[1]) * units[match[2].upper()]
    if not 0 <= number < float("inf"):
        raise ValueError
    return number


def as_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value.strip()


def _positive(value: float) -> float:
    if value <= 0:
        raise ValueError
    return value


def _from(least: N, value: N) -> N:
    if value < least:
        raise ValueError
    return value


def parse_size(value: object) -> int:
    """Return `512KB`, `4MB`, `1GiB` or a number of bytes in bytes."""
    return int(_quantity(value, _UNITS))


def parse_duration(value: object) -> float:
    """Return `600`, `10m`, `1h`, `500ms` or a number of seconds in seconds."""
    return _quantity(value, _SPANS)


def parse_bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in ("1", "true", "on", "yes"):
        return True
    if word in ("0", "false", "off", "no"):
        return False
    raise ValueError


def parse_threshold(value: object) -> int | float:
    """Return a size as `int` bytes, or `78%` as a `float` fraction of the limit."""
    if isinstance(value, str) and value.strip().endswith("%"):
        fraction = _quantity(value.strip()[:-1], {"": 1}) / 100
        if not 0 < fraction <= 1:
            raise ValueError
        return fraction
    return int(_positive(parse_size(value)))


def _items(value: object) -> list[str]:
    """Return the parts of a comma-separated list, or of a ready sequence of strings."""
    if isinstance(value, str):
        return [part for part in (p.strip() for p in value.split(",")) if part]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [as_text(part) for part in value]
    raise ValueError


def _counts_from(least: int, most: int = 10**9) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,9}\s*", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError
        if not least <= value <= most:
            raise ValueError
        return value

    return parse


def _matching(pattern: re.Pattern[str]) -> Callable[[object], tuple[str, ...]]:
    def parse(value: object) -> tuple[str, ...]:
        items = _items(value)
        if not items or not all(pattern.fullmatch(item) for item in items):
            raise ValueError
        return tuple(items)

    return parse


def _parse_path(value: object) -> str:
    path = as_text(value)
    if not path.startswith("/") or "?" in path or "#" in path:
        raise ValueError
    return path


def _parse_paths(value: object) -> tuple[str, ...]:
    return tuple(_parse_path(item) for item in _items(value))


def _parse_path_sizes(value: object) -> dict[str, int]:
    if isinstance(value, Mapping):
        return {_parse_path(path): parse_size(size) for path, size in value.items()}
    pairs = [item.rpartition("=") for item in _items(value)]
    return {_parse_path(path): parse_size(size) for path, _, size in pairs}


def _parse_gc_threshold(value: object) -> tuple[int, ...]:
    numbers = tuple(_counts_from(0)(item) for item in _ints(value))
    if not 1 <= len(numbers) <= 3:
        raise ValueError
    return numbers


def _ints(value: object) -> Sequence[object]:
    return value if isinstance(value, (list, tuple)) else _items(value)


# LowMemory keeps the error page in memory, and makes copies of it when memory is short.
LARGEST_PAGE = 64 * KB


class ErrorPage(NamedTuple):
    """A site's own page for refusals: an HTML file in UTF-8, as it was at the start."""

    path: str
    html: bytes

    def __repr__(self) -> str:
        return repr(self.path)


def _parse_page(value: object) -> ErrorPage:
    path = os.path.abspath(as_text(os.fspath(value) if isinstance(value, os.PathLike) else value))
    try:
        with open(path, "rb") as file:
            html = file.read(LARGEST_PAGE + 1)
    except OSError:
        raise ValueError from None
    if len(html) > LARGEST_PAGE or not html.decode().strip():  # UnicodeDecodeError: a ValueError
        raise ValueError
    return ErrorPage(path, html)


# A secret needs at least as many characters as its MAC has bytes (guards/signed_cookie.py):
# otherwise the secret is easier to guess than the MAC. (RFC 2104 §3 asks even for 32.) A comma
# inside a secret leaves shorter parts.
SECRET_LENGTH = 16


class TooShort(ValueError):
    """A secret in a list is too short. The message names its position, without the secret."""


def _parse_secrets(value: object) -> tuple[str, ...]:
    secrets = tuple(_items(value))
    if not secrets:
        raise ValueError
    for number, secret in enumerate(secrets, 1):
        if len(secret) < SECRET_LENGTH:
            which = f"part {number} of {len(secrets)} (a comma separates) has"
            characters = "1 character" if len(secret) == 1 else f"{len(secret)} characters"
            raise TooShort(
                f"{which if len(secrets) > 1 else 'has'} {characters}, expected at least "
                f"{SECRET_LENGTH}. To make a secret: python -c 'import secrets; "
                "print(secrets.token_hex())'"
            )
    return secrets


def _parse_secret(value: object) -> str:
    secret = as_text(value)
    if not secret:
        raise ValueError
    return secret


def _parse_preset(value: object) -> str:
    name = as_text(value).lower()
    if name not in PRESETS:
        raise ValueError
    return name


def maybe(word: str, kind: Kind[T]) -> Kind[T | None]:
    """Return a kind that also accepts `word`, which gives None."""

    def parse(value: object) -> T | None:
        if value is None or (isinstance(value, str) and value.strip().lower() == word):
            return None
        return kind.parse(value)

    return Kind(f"{kind.expected}, or {word}", parse)


PRESETS = ("balanced", "memory", "ultra")
PRESET = Kind("balanced, memory or ultra", _parse_preset)
SIZE = Kind("a size such as 512KB, 4MB, 1GiB or 524288", parse_size)
LIMIT = Kind("a size from 1MB such as 512MB", lambda value: _from(MB, parse_size(value)))
DURATION = Kind("a duration such as 600, 10m, 30s or 1h", parse_duration)
INTERVAL = Kind("a duration above zero such as 10s or 1m", lambda v: _positive(parse_duration(v)))
# Whole seconds: cookies count time in seconds, and a thread need not run more often.
SECONDS = Kind("a duration from 1s such as 10m or 1h", lambda v: _from(1.0, parse_duration(v)))
SWITCH = Kind("1/0, true/false, on/off or yes/no", parse_bool)
THRESHOLD = Kind("a size such as 400MB or a share of the limit such as 78%", parse_threshold)
COUNT = Kind("a whole number from 0", _counts_from(0))
PASSES = Kind("a whole number from 0 to 10", _counts_from(0, 10))
AMOUNT = Kind("a whole number from 1", _counts_from(1))
# With less than about 60 frames, not even a Flask request with a template completes.
DEPTH = Kind("a whole number from 60", _counts_from(60))
GC_THRESHOLD = Kind("one to three whole numbers such as 25,1,1", _parse_gc_threshold)
PATH = Kind("a path that starts with /", _parse_path)
PATHS = Kind("paths that start with /, separated by commas", _parse_paths)
PATH_SIZES = Kind("paths with a size each, such as /import=4MB,/avatar=1MB", _parse_path_sizes)
PAGE = Kind("the path of an HTML file in UTF-8 of at most 64KB", _parse_page)
COOKIES = Kind("names of cookies, separated by commas", _matching(_TOKEN))
MODULES = Kind("names of modules, separated by commas", _matching(_MODULE))
SECRET = Kind("a secret of at least one character", _parse_secret)
SECRETS = Kind(
    f"one or more secrets of at least {SECRET_LENGTH} characters, oldest to newest, separated by "
    "commas",
    _parse_secrets,
)


def format_size(size: float) -> str:
    """Return bytes as text for people: `512 KB`, `4.2 MB`. 1024-based, as everywhere here."""
    for unit, name in ((GB, "GB"), (MB, "MB"), (KB, "KB")):
        if abs(size) >= unit:
            return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{size:.0f} bytes"
