"""The options of `lowmem-wsgi compare`."""

from __future__ import annotations

from pathlib import Path

from ...settings import DEFAULT_LIMIT, MB, parse_size
from ..options import Parser, count, kind, positive_duration
from .figures import LEAST_ROUNDS

# A limit below this leaves no room for Gunicorn with an app.
LEAST = 32 * MB


def parser() -> Parser:
    made = Parser(
        "compare",
        description="Serve the app three ways in turn (bare, with lowmem-wsgi, and as the source "
        "document says), each in a memory cgroup of its own, ask its pages by GET, and show memory "
        "and times side by side. The app uses its real database and files. Linux.",
        epilog="Exit status: 0; 1 if the app cannot be served; 2 for wrong usage.",
    )
    add = made.add_argument
    add("app", metavar="MODULE:APP", help="as for Gunicorn: app:app, 'app:create_app()'")
    add(
        "--limit",
        metavar="SIZE",
        type=kind("a size from 32MB, such as 512MB", _limit),
        default=DEFAULT_LIMIT,
        help="the memory of each server (default: 512MB)",
    )
    add(
        "--requests",
        metavar="FILE",
        type=Path,
        help="what to ask for: lines such as GET /path, or a HAR file; without it, the pages that "
        "links lead to from /",
    )
    add(
        "--host",
        metavar="NAME",
        type=kind("a host's name, such as www.example.org", _host),
        default="localhost",
        help="the host to ask for (default: %(default)s)",
    )
    add(
        "--rounds",
        metavar="N",
        type=kind(f"a number from {LEAST_ROUNDS} to 99", count(LEAST_ROUNDS, 99)),
        default=5,
        help="how often each is served (default: %(default)s)",
    )
    add(
        "--seconds",
        metavar="TIME",
        type=kind("a time up to 1h, such as 4s", _seconds),
        default="4s",
        help="how long each round asks (default: %(default)s)",
    )
    add(
        "--timeout",
        metavar="TIME",
        type=kind("a time, such as 2m", positive_duration),
        default="2m",
        help="how long the first answer may take (default: %(default)s)",
    )
    add(
        "--no-cgroup",
        dest="cgroup",
        action="store_false",
        help="serve in plain processes, without a limit",
    )
    add("--json", action="store_true", help="print all figures as JSON")
    add(
        "--html",
        metavar="FILE",
        type=kind("a file in a folder that exists", _in_a_folder),
        help="write a report to look at in a browser",
    )
    return made


def _limit(text: str) -> int:
    size = parse_size(text)
    if size < LEAST:
        raise ValueError(text)
    return size


def _seconds(text: str) -> float:
    seconds = positive_duration(text)
    if seconds > 3600:
        raise ValueError(text)
    return seconds


def _host(text: str) -> str:
    if not text or not text.isascii() or not text.isprintable() or set(text) & set(" /?#@"):
        raise ValueError(text)
    return text


def _in_a_folder(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(text)
    return path
