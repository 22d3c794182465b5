"""Every setting of the library, in one table.

`Settings` below *is* the table: each attribute is a row. Keyword arguments, environment variables,
presets, the CLI's help and docs/settings.md all come from this table. A keyword beats the
environment, which beats the preset.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

from .values import (
    AMOUNT,
    COOKIES,
    COUNT,
    DEPTH,
    DURATION,
    GB,
    GC_THRESHOLD,
    INTERVAL,
    KB,
    LARGEST_PAGE,
    LIMIT,
    MB,
    MODULES,
    PAGE,
    PASSES,
    PATH,
    PATH_SIZES,
    PATHS,
    PRESET,
    PRESETS,
    SECONDS,
    SECRET,
    SECRET_LENGTH,
    SECRETS,
    SIZE,
    SWITCH,
    THRESHOLD,
    ErrorPage,
    Kind,
    TooShort,
    as_text,
    format_size,
    maybe,
    parse_duration,
    parse_size,
)

# What other rooms use: the table, and of values.py what they read themselves.
__all__ = [
    "AMOUNT",
    "DEFAULT_LIMIT",
    "DURATION",
    "ENV_PREFIX",
    "GB",
    "INTERVAL",
    "KB",
    "LARGEST_PAGE",
    "LIMIT",
    "MB",
    "NUMBERS",
    "PRESETS",
    "SECRET_LENGTH",
    "Kind",
    "Setting",
    "Settings",
    "SettingsError",
    "format_size",
    "maybe",
    "number",
    "parse_duration",
    "parse_size",
    "table",
    "threshold_bytes",
]

T = TypeVar("T")

ENV_PREFIX = "LOWMEM_"
# The size of Render's smallest plans, for which the source document was written. Used if the system
# reports no limit, and as the scale of the two thresholds.
DEFAULT_LIMIT = 512 * MB


class SettingsError(ValueError):
    """Settings are wrong. Raised once, with all wrong settings.

    `problems`: one sentence for each, with the variable or keyword, the given value and the
    expected value.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems: tuple[str, ...] = tuple(problems)
        super().__init__("lowmem-wsgi settings:\n" + "\n".join(f"  {p}" for p in problems))


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
        self.defaults: dict[str, str] = {
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

    preset: Setting[str] = Setting(
        PRESET,
        "balanced",
        "The set of defaults: balanced, memory (the engine alone), or ultra (the source document's "
        "numbers).",
        memory="memory",
        ultra="ultra",
    )
    max_upload: Setting[int | None] = Setting(
        maybe("none", SIZE),
        "512KB",
        "The largest request body. LowMemory answers a larger one with 413.",
        memory="none",
    )
    upload_limits: Setting[dict[str, int] | None] = Setting(
        maybe("none", PATH_SIZES),
        "none",
        "Other limits for some paths. The longest matching prefix wins.",
    )
    session_lifetime: Setting[float] = Setting(
        SECONDS, "10m", "How long a session cookie is valid."
    )
    session_cookies: Setting[tuple[str, ...] | None] = Setting(
        maybe("none", COOKIES),
        "session,sessionid",
        "The session cookies (Flask's and Django's). none: LowMemory leaves them to the app.",
        memory="none",
    )
    session_sliding: Setting[bool] = Setting(
        SWITCH, "on", "Count from the last use. off: count from when the app set the cookie."
    )
    secret_key: Setting[tuple[str, ...] | None] = Setting(
        maybe("none", SECRETS),
        "none",
        "Signs session cookies. Several for rotation, oldest to newest. Not set: derived from the "
        "app's own secret, else kept in a private directory.",
        fallback="SECRET_KEY",
        secret=True,
    )
    gc_passes: Setting[int] = Setting(PASSES, "3", "Full garbage collections after each request.")
    gc_threshold: Setting[tuple[int, ...] | None] = Setting(
        maybe("interpreter", GC_THRESHOLD),
        "interpreter",
        "Passed to gc.set_threshold.",
        ultra="25,1,1",
    )
    gc_freeze: Setting[bool] = Setting(
        SWITCH,
        "on",
        "Keep the start-up heap out of the GC passes, so that a pass takes microseconds.",
    )
    trim: Setting[bool] = Setting(
        SWITCH, "on", "Give freed memory back to the system (glibc's malloc_trim)."
    )
    system_malloc: Setting[bool] = Setting(
        SWITCH,
        "on",
        "With trim, keep new objects in the C library's memory, which gives back any free page. "
        "Only on glibc.",
    )
    recursion_limit: Setting[int | None] = Setting(
        maybe("interpreter", DEPTH),
        "interpreter",
        "Passed to sys.setrecursionlimit.",
        ultra="200",
    )
    memory_limit: Setting[int | None] = Setting(
        maybe("auto", LIMIT),
        "auto",
        "The memory limit. auto: the container's limit, else 512MB.",
    )
    warn_at: Setting[int | float] = Setting(
        THRESHOLD, "78.125%", "LowMemory starts to free memory here (400MB of 512MB)."
    )
    critical_at: Setting[int | float] = Setting(
        THRESHOLD, "87.890625%", "LowMemory takes its last measures here (450MB of 512MB)."
    )
    cleanup_interval: Setting[float] = Setting(
        SECONDS, "10s", "How often the background thread gives memory back and looks for garbage."
    )
    check_interval: Setting[float] = Setting(
        SECONDS,
        "30s",
        "How often LowMemory logs a reading. (It reads each second, and sooner near a threshold.)",
    )
    heavy_modules: Setting[tuple[str, ...]] = Setting(
        MODULES,
        "pandas,numpy,matplotlib",
        "Heavy packages. The status shows their cost; lazy_heavy and purge_modules act on them.",
    )
    lazy_heavy: Setting[bool] = Setting(
        SWITCH, "off", "Import the heavy modules at their first use.", ultra="on"
    )
    lazy_imports: Setting[bool] = Setting(
        SWITCH,
        "on",
        "From Python 3.15 on, import modules of the standard library, Flask and Gunicorn at their "
        "first use. Read by lowmem-wsgi run and the Gunicorn config.",
    )
    start_anew: Setting[bool] = Setting(
        SWITCH,
        "on",
        "gunicorn -c python:lowmem_wsgi.gunicorn starts itself anew, once, with the variables of "
        "lowmem-wsgi run.",
    )
    purge_modules: Setting[bool] = Setting(
        SWITCH, "off", "At critical, drop heavy modules from sys.modules.", ultra="on"
    )
    recycle: Setting[bool] = Setting(
        SWITCH, "on", "Ask the server for a fresh worker when nothing else frees enough."
    )
    ceiling: Setting[bool | None] = Setting(
        maybe("auto", SWITCH),
        "auto",
        "Fail a request with MemoryError before the platform kills the container. "
        "auto: on where a real limit is known.",
    )
    max_in_flight: Setting[int | None] = Setting(
        maybe("none", AMOUNT),
        "none",
        "Requests served at once. LowMemory answers one more with 503.",
        ultra="3",
    )
    exempt_paths: Setting[tuple[str, ...]] = Setting(
        PATHS, "/healthz", "Paths that LowMemory never refuses with 503."
    )
    error_page: Setting[ErrorPage | None] = Setting(
        maybe("none", PAGE),
        "none",
        "The site's own page for what LowMemory refuses. none: LowMemory's page.",
    )
    static_prefix: Setting[str] = Setting(PATH, "/static/", "Where static files live.")
    static_max_age: Setting[float | None] = Setting(
        maybe("none", DURATION),
        "30s",
        "How long clients may cache static files, at most. none: as the app says.",
        memory="none",
    )
    admin_token: Setting[str | None] = Setting(
        maybe("none", SECRET),
        "none",
        "Opens the whole status and the forced cleanup.",
        secret=True,
    )
    status_path: Setting[str] = Setting(PATH, "/api/memory-status", "The path of the status.")
    cleanup_path: Setting[str] = Setting(
        PATH, "/api/force-cleanup", "The path of the forced cleanup."
    )
    home_rows: Setting[int] = Setting(AMOUNT, "5", "For apps: rows on the first page.")
    max_rows: Setting[int] = Setting(AMOUNT, "10", "For apps: rows a request, at most.")
    batch_size: Setting[int] = Setting(AMOUNT, "5", "For apps: rows handled at a time.")
    cache_timeout: Setting[float] = Setting(DURATION, "15s", "For apps: how long to cache.")
    pool_size: Setting[int] = Setting(AMOUNT, "1", "For apps: database connections.")

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
                    values[row.name] = (as_text(value),)
                else:
                    values[row.name] = row.kind.parse(value)
            except (ValueError, KeyError, OverflowError, TypeError) as error:
                shown = "(a secret)" if row.secret else _shortened(value)
                wrong = error if isinstance(error, TooShort) else f"expected {row.kind.expected}"
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
    named = name if name.isprintable() else ascii(name)
    return f"{named}={shown}: no such {what}" + "".join(f"; did you mean {n}?" for n in nearest)


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
