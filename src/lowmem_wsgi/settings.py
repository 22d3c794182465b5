"""Every setting of the library, in one table.

`Settings` below *is* the table: each attribute is a row. Keyword arguments, environment variables,
presets, the CLI's help and docs/settings.md all come from this table. A keyword beats the
environment, which beats the preset.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")
N = TypeVar("N", int, float)

ENV_PREFIX = "LOWMEM_"
KB = 1024  # Powers of two, as in the source document and in the docs of Render and Flask.
MB = 1024 * KB
GB = 1024 * MB

# The size of Render's smallest plans, for which the source document was written. Used if the system
# reports no limit, and as the scale of the two thresholds.
DEFAULT_LIMIT = 512 * MB


class SettingsError(ValueError):
    """Settings are wrong. Raised once, with all wrong settings.

    `problems`: one sentence for each, with the variable or keyword, the given value and the
    expected value.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("lowmem-wsgi settings:\n" + "\n".join(f"  {p}" for p in problems))


# --- Parsers: text (or a ready value, from a keyword) in, value out, ValueError if wrong.


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
        match = _QUANTITY.fullmatch(_text(value))
        if match is None:
            raise ValueError
        number = float(match[1]) * units[match[2].upper()]
    if not 0 <= number < float("inf"):
        raise ValueError
    return number


def _text(value: object) -> str:
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
        return [_text(part) for part in value]
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
    path = _text(value)
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


# A secret needs at least as many characters as its MAC has bytes (guards/signed_cookie.py):
# otherwise the secret is easier to guess than the MAC. (RFC 2104 §3 asks even for 32.) A comma
# inside a secret leaves shorter parts.
SECRET_LENGTH = 16


class _Short(ValueError):
    """A secret in a list is too short. The message names its position, without the secret."""


def _parse_secrets(value: object) -> tuple[str, ...]:
    secrets = tuple(_items(value))
    if not secrets:
        raise ValueError
    for number, secret in enumerate(secrets, 1):
        if len(secret) < SECRET_LENGTH:
            which = f"part {number} of {len(secrets)} (a comma separates) has"
            characters = "1 character" if len(secret) == 1 else f"{len(secret)} characters"
            raise _Short(
                f"{which if len(secrets) > 1 else 'has'} {characters}, expected at least "
                f"{SECRET_LENGTH}. To make a secret: python -c 'import secrets; "
                "print(secrets.token_hex())'"
            )
    return secrets


def _parse_secret(value: object) -> str:
    secret = _text(value)
    if not secret:
        raise ValueError
    return secret


def _parse_preset(value: object) -> str:
    name = _text(value).lower()
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
COOKIES = Kind("names of cookies, separated by commas", _matching(_TOKEN))
MODULES = Kind("names of modules, separated by commas", _matching(_MODULE))
SECRET = Kind("a secret of at least one character", _parse_secret)
SECRETS = Kind(
    f"one or more secrets of at least {SECRET_LENGTH} characters, oldest to newest, separated by "
    "commas",
    _parse_secrets,
)


# --- The table


class Setting(Generic[T]):
    """One row: its kind, its value in each preset (as text), and its purpose.

    `memory`, `ultra`: values of these presets, only where they differ. `fallback`: a second
    environment variable, read as one value. `secret`: never show the value.
    """

    name: str
    variable: str

    def __init__(
        self,
        kind: Kind[T],
        balanced: str,
        help: str,
        *,
        memory: str | None = None,
        ultra: str | None = None,
        fallback: str | None = None,
        secret: bool = False,
    ) -> None:
        self.kind = kind
        self.defaults = {
            "balanced": balanced,
            "memory": balanced if memory is None else memory,
            "ultra": balanced if ultra is None else ultra,
        }
        self.help = help
        self.fallback = fallback
        self.secret = secret

    def default(self, preset: str = "balanced") -> T:
        """Return the value in a preset."""
        return self.kind.parse(self.defaults[preset])

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.variable = ENV_PREFIX + name.upper()

    @overload
    def __get__(self, instance: None, owner: type) -> Setting[T]: ...
    @overload
    def __get__(self, instance: Settings, owner: type) -> T: ...
    def __get__(self, instance: Settings | None, owner: type) -> Setting[T] | T:
        # A non-data descriptor: Python finds the value in the instance's __dict__ first.
        return self


class Settings:
    """The settings in force, read-only: one attribute for each row.

    `Settings.load` makes them. Sizes are `int` bytes, durations `float` seconds.
    """

    preset = Setting(
        PRESET,
        "balanced",
        "Which column of defaults: what works, or the source document's numbers.",
        memory="memory",
        ultra="ultra",
    )
    max_upload = Setting(
        maybe("none", SIZE),
        "512KB",
        "Largest request body; more is answered 413.",
        memory="none",
    )
    upload_limits = Setting(
        maybe("none", PATH_SIZES),
        "none",
        "Other limits for some paths; the longest path prefix wins.",
    )
    session_lifetime = Setting(SECONDS, "10m", "How long a session cookie is honoured.")
    session_cookies = Setting(
        maybe("none", COOKIES),
        "session,sessionid",
        "The cookies that carry sessions (Flask's, Django's); none: sessions are the app's alone.",
        memory="none",
    )
    session_sliding = Setting(
        SWITCH, "on", "Count from the last use; off: from when the app set the cookie."
    )
    secret_key = Setting(
        maybe("none", SECRETS),
        "none",
        "Signs the sessions' envelopes; several for rotation, oldest to newest. "
        "Not set: derived from the app's own secret, else kept in a private directory.",
        fallback="SECRET_KEY",
        secret=True,
    )
    gc_passes = Setting(PASSES, "3", "Full garbage collections after each request.")
    gc_threshold = Setting(
        maybe("interpreter", GC_THRESHOLD),
        "interpreter",
        "Passed to gc.set_threshold.",
        ultra="25,1,1",
    )
    gc_freeze = Setting(
        SWITCH, "on", "Keep the start-up heap out of the passes, so that they take microseconds."
    )
    trim = Setting(SWITCH, "on", "Give freed memory back to the system (glibc's malloc_trim).")
    recursion_limit = Setting(
        maybe("interpreter", DEPTH),
        "interpreter",
        "Passed to sys.setrecursionlimit.",
        ultra="200",
    )
    memory_limit = Setting(
        maybe("auto", LIMIT),
        "auto",
        "The memory there is: the container's limit, else 512MB.",
    )
    warn_at = Setting(THRESHOLD, "78.125%", "Start to free memory here (400MB of 512).")
    critical_at = Setting(THRESHOLD, "87.890625%", "Last measures from here (450MB of 512).")
    cleanup_interval = Setting(
        SECONDS, "10s", "How often the background thread gives memory back and looks for garbage."
    )
    check_interval = Setting(
        SECONDS,
        "30s",
        "How often a reading is logged (memory is read each second, and sooner near a threshold).",
    )
    heavy_modules = Setting(
        MODULES,
        "pandas,numpy,matplotlib",
        "Heavy packages: the status says what they cost, and the next two settings act on them.",
    )
    lazy_heavy = Setting(SWITCH, "off", "Import the heavy modules at their first use.", ultra="on")
    purge_modules = Setting(
        SWITCH, "off", "At critical, drop heavy modules from sys.modules.", ultra="on"
    )
    recycle = Setting(SWITCH, "on", "Ask the server for a fresh worker when nothing else helps.")
    ceiling = Setting(
        maybe("auto", SWITCH),
        "auto",
        "Let a request fail with MemoryError before the container is killed; "
        "auto: on where a real limit is known.",
    )
    max_in_flight = Setting(
        maybe("none", AMOUNT),
        "none",
        "Requests served at once; one more is answered 503.",
        ultra="3",
    )
    exempt_paths = Setting(PATHS, "/healthz", "Paths that are never answered 503 by us.")
    static_prefix = Setting(PATH, "/static/", "Where static files live.")
    static_max_age = Setting(
        maybe("none", DURATION),
        "30s",
        "How long clients may cache them, at most; none: as the app says.",
        memory="none",
    )
    admin_token = Setting(
        maybe("none", SECRET),
        "none",
        "Opens the whole status and force-cleanup.",
        secret=True,
    )
    status_path = Setting(PATH, "/api/memory-status", "Where the status is mounted.")
    cleanup_path = Setting(PATH, "/api/force-cleanup", "Where the forced cleanup is mounted.")
    home_rows = Setting(AMOUNT, "5", "For apps: rows on the first page.")
    max_rows = Setting(AMOUNT, "10", "For apps: rows a request, at most.")
    batch_size = Setting(AMOUNT, "5", "For apps: rows handled at a time.")
    cache_timeout = Setting(DURATION, "15s", "For apps: how long to cache.")
    pool_size = Setting(AMOUNT, "1", "For apps: database connections.")

    def __init__(self, values: Mapping[str, object]) -> None:
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"settings are read-only: {name}")

    def __repr__(self) -> str:
        shown = (
            f"{row.name}={'***' if row.secret and value else repr(value)}"
            for row in table()
            for value in (self.__dict__[row.name],)
        )
        return f"Settings({', '.join(shown)})"

    @classmethod
    def load(
        cls,
        keywords: Mapping[str, object] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Settings:
        """Read the settings. A keyword beats the environment, which beats the preset.

        An empty environment variable counts as not set. Raises one SettingsError with all wrong
        settings.
        """
        keywords = keywords or {}
        environ = os.environ if environ is None else environ
        problems: list[str] = []
        given = {
            row.name: found
            for row in table()
            if (found := _find(row, keywords, environ)) is not None
        }
        values: dict[str, Any] = {}
        for row in table():  # the preset is the first row: the other rows need its value
            source, value = given.get(row.name, ("", None))
            if not source:
                value = row.defaults[values.get("preset", "balanced")]
            try:
                # A variable of another program is one secret: commas do not separate, and any
                # length is allowed.
                if source == row.fallback:
                    values[row.name] = (_text(value),)
                else:
                    values[row.name] = row.kind.parse(value)
            except (ValueError, KeyError, OverflowError, TypeError) as error:
                shown = "(a secret)" if row.secret else _shortened(value)
                wrong = error if isinstance(error, _Short) else f"expected {row.kind.expected}"
                problems.append(f"{source}={shown}: {wrong}")
                values[row.name] = row.kind.parse(row.defaults["balanced"])
        problems += _unknown(keywords, environ)
        settings = cls(values)
        problems += _contradictions(settings)
        if problems:
            raise SettingsError(problems)
        return settings


def table() -> Iterator[Setting[Any]]:
    """Return the rows, in the order of the documentation."""
    return (row for row in vars(Settings).values() if isinstance(row, Setting))


# Gunicorn's own numbers, under the names that the source document gave them.
NUMBERS = {
    "WEB_CONCURRENCY": AMOUNT,
    "WORKER_CONNECTIONS": AMOUNT,
    "WORKER_TIMEOUT": COUNT,
    "MAX_REQUESTS": COUNT,
}


def number(name: str, default: int, environ: Mapping[str, str] | None = None) -> int:
    """Return one of NUMBERS from the environment, or `default`. Raises SettingsError."""
    text = (os.environ if environ is None else environ).get(name, "").strip()
    try:
        return NUMBERS[name].parse(text) if text else default
    except ValueError:
        raise SettingsError([f"{name}={text!r}: expected {NUMBERS[name].expected}"]) from None


def threshold_bytes(threshold: int | float, limit: int) -> int:
    """Return a threshold (bytes, or a fraction of the limit) in bytes."""
    return threshold if isinstance(threshold, int) else int(threshold * limit)


def format_size(size: float) -> str:
    """Return bytes as text for people: `512 KB`, `4.2 MB`. 1024-based, as everywhere here."""
    for unit, name in ((GB, "GB"), (MB, "MB"), (KB, "KB")):
        if abs(size) >= unit:
            return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{size:.0f} bytes"


def _find(
    row: Setting[Any], keywords: Mapping[str, object], environ: Mapping[str, str]
) -> tuple[str, object] | None:
    if row.name in keywords:
        return row.name, keywords[row.name]
    for variable in (row.variable, row.fallback):
        if variable and environ.get(variable, "").strip():
            return variable, environ[variable]
    return None


def _unknown(keywords: Mapping[str, object], environ: Mapping[str, str]) -> Iterator[str]:
    names = {row.name: row for row in table()}
    variables = {row.variable: row for row in table()}
    for name, value in keywords.items():
        if name not in names:
            yield _no_such("setting", name, value, names)
    for variable in sorted(environ):
        if variable.startswith(ENV_PREFIX) and variable not in variables:
            yield _no_such("variable", variable, environ[variable], variables)


def _no_such(what: str, name: str, value: object, rows: Mapping[str, Setting[Any]]) -> str:
    import difflib

    nearest = difflib.get_close_matches(name, rows, n=1, cutoff=0.75)
    # A misspelt LOWMEM_ADMIN_TOKEN is still a secret.
    hidden = any(rows[near].secret for near in nearest) or re.search("KEY|TOKEN|SECRET", name, re.I)
    shown = "(a secret)" if hidden else _shortened(value)
    return f"{name}={shown}: no such {what}" + "".join(f"; did you mean {n}?" for n in nearest)


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _contradictions(settings: Settings) -> Iterator[str]:
    warn, critical = settings.warn_at, settings.critical_at
    limit = settings.memory_limit or DEFAULT_LIMIT
    # Without a limit in the settings, a size and a share cannot be compared yet.
    comparable = type(warn) is type(critical) or settings.memory_limit is not None
    if comparable and threshold_bytes(warn, limit) >= threshold_bytes(critical, limit):
        yield f"warn_at={_shown(warn)}: expected less than critical_at={_shown(critical)}"
    if settings.memory_limit is not None and threshold_bytes(critical, limit) > limit:
        yield f"critical_at={_shown(critical)}: expected at most memory_limit={format_size(limit)}"
    if settings.status_path == settings.cleanup_path:
        yield f"cleanup_path={settings.cleanup_path!r}: expected another path than status_path"


def _shown(threshold: int | float) -> str:
    return format_size(threshold) if isinstance(threshold, int) else f"{100 * threshold:g}%"
