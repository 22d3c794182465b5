"""`lowmem-wsgi trace URL --route /x`: which lines of a running site keep the memory."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from ..options import Parser, count, kind
from ..tell import FAILED, WRONG, colour, show, tell
from . import report
from .site import Refused, Site, Unreachable

STATUS = "/api/memory-status"
# Seconds between two questions; for which a site may be out of reach; and beyond the trace's time.
EVERY, PATIENCE, BEYOND = 0.5, 15.0, 20.0
# How often to ask for a worker that may trace.
TRIES = 4


def main(argv: Sequence[str]) -> int:
    """Run the command. Return its exit code: 0; 1, nothing was traced; 2, wrong usage.

    Raises KeyboardInterrupt, also for SIGTERM.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(argv)
    except SystemExit as end:  # of argparse
        return int(end.code or 0)
    except (Unreachable, Refused) as error:
        tell(str(error))
        return FAILED
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    token = options.token or os.environ.get("LOWMEM_ADMIN_TOKEN", "")
    if not token:
        tell("no token: give --token, or set LOWMEM_ADMIN_TOKEN as the site has it")
        return WRONG
    if not token.isprintable():
        tell("the token has signs that no header can carry: give the site's LOWMEM_ADMIN_TOKEN")
        return WRONG
    site = Site(options.url, token)
    number = _start(site, options.route, options.requests)
    try:
        found = _follow(site, number)
    except KeyboardInterrupt:
        _stop(site, number)
        raise
    try:
        show(
            json.dumps(found, indent=1)
            if options.json
            else report.text(found, colour(sys.stdout, os.environ))
        )
    except OSError as error:
        tell(f"cannot print: {error.strerror}")
        return FAILED
    if found["state"] != "done":
        tell(f"{options.route}: {found['why']}")
        return FAILED
    return 0


def _start(site: Site, route: str, requests: int) -> int:
    """Start the trace. Return its number."""
    for _ in range(TRIES - 1):
        try:
            return int(site.ask("POST", route=route, requests=str(requests))["trace"])
        except Refused as refused:
            if refused.status != 503 or "replaced" not in str(refused):
                raise
        time.sleep(EVERY)  # another worker may answer
    return int(site.ask("POST", route=route, requests=str(requests))["trace"])


def _follow(site: Site, number: int) -> dict[str, Any]:
    """Ask until the trace has ended. Return the trace."""
    end, heard = None, time.monotonic()
    progress = sys.stderr.isatty()
    try:
        while True:
            time.sleep(EVERY)
            try:
                found = site.ask("GET")
                heard = time.monotonic()
            except Unreachable:
                if time.monotonic() - heard > PATIENCE:
                    raise
                continue
            if found.get("trace") != number:
                raise Refused("the site has lost the trace: its server has restarted. Trace again")
            if found["state"] != "running":
                return found
            end = end or time.monotonic() + float(found["seconds"]) + BEYOND
            if time.monotonic() > end:
                raise Refused("the trace does not end; the site's log may say why")
            if progress:
                sys.stderr.write(f"\r\x1b[Ktraced {found['traced']} of {found['requests']} …")
                sys.stderr.flush()
    finally:
        if progress:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _stop(site: Site, number: int) -> None:
    try:
        site.ask("POST", stop=str(number))
        tell("the site stops the trace")
    except (Unreachable, Refused):
        tell("the site does not answer; its trace ends by itself in a minute at most")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "trace",
        description="Find the lines that keep the memory: one worker of a running site runs "
        "tracemalloc around the next requests of a route, for 60 s at most. The command sends no "
        "request to the route: your visitors do, or you.",
        epilog="Exit status: 0; 1 if nothing was traced; 2 for wrong usage.",
    )
    add = parser.add_argument
    add(
        "url",
        metavar="URL",
        type=kind("an address such as https://example.com", _url),
        help="the site's address, or that of its status page",
    )
    add(
        "--route",
        required=True,
        metavar="ROUTE",
        type=kind("a path such as /export, or a route as the status page names it", _route),
        help="/export, '/clients/<n>' or 'POST /import'",
    )
    add(
        "--requests",
        metavar="N",
        type=kind("a number from 1 to 1000", count(1, 1000)),
        default=20,
        help="how many requests to trace (default: %(default)s)",
    )
    add("--token", metavar="TOKEN", help="the site's LOWMEM_ADMIN_TOKEN (default: this variable)")
    add("--json", action="store_true", help="print all figures as JSON")
    return parser


def _url(text: str) -> str:
    """Return the address of the site's status."""
    found = urlsplit(text)
    if found.scheme not in ("http", "https") or not found.hostname or found.port == 0:
        raise ValueError(text)
    if found.username is not None or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(text)
    path = found.path.rstrip("/")
    return f"{found.scheme}://{found.netloc}{path or STATUS}"


def _route(text: str) -> str:
    from ...http.traced_route import route_pattern_of

    route_pattern_of(text)
    return text
