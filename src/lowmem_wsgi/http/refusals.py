"""Refuse a request: an answer that the client can read, a log line that the operator can use."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .. import log
from .body import DRAIN

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

# Key of the environ of a refused request: the site's own page in HTML, with $status and $detail in
# it; None or absent for the page below.
ERROR_PAGE = "lowmem.error_page"

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:15vh auto;padding:0 1rem;
color-scheme:light dark}}h1{{font-size:1.5rem}}</style>
<h1>{title}</h1>
<p>{detail}</p>
"""
_JSON = '{{"status": {code}, "error": "{error}", "detail": "{detail}"}}\n'


class Refusal:
    """A WSGI app that answers with an error, in HTML, JSON or plain text as the client accepts.

    `detail`: text for the client. `why`, with the figure, and `setting`, which governs the figure:
    for the log. LowMemory sends and logs these texts unescaped. So none may contain text from the
    request, and `detail` no quote or angle bracket. Making the answer imports nothing, runs no code
    of the app, and needs a few KB; with a page of the site's own, three times the page. `logged`:
    False for a refusal that is no event.
    """

    def __init__(
        self,
        status: str,
        detail: str,
        *,
        why: str,
        setting: str,
        headers: tuple[tuple[str, str], ...] = (),
        logged: bool = True,
    ) -> None:
        self._logged = logged
        self.status = status
        self.detail = detail
        self.why = why
        self.setting = setting
        self.headers = headers

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        self.report(environ)
        environ[DRAIN] = True
        content_type, body = self._render(environ)
        start_response(
            self.status,
            [
                ("Content-Type", content_type),
                ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"),
                ("Vary", "Accept"),
                *self.headers,
            ],
        )
        return [b"" if environ.get("REQUEST_METHOD") == "HEAD" else body]

    def report(self, environ: WSGIEnvironment) -> None:
        """Log the refusal, rate-limited."""
        if self._logged:
            report(environ, self.status, self.why, self.setting)

    def _render(self, environ: WSGIEnvironment) -> tuple[str, bytes]:
        title = self.status
        wanted = preferred(environ, ("text/plain", "text/html", "application/json"))
        if wanted == "text/html":
            return "text/html; charset=utf-8", self._page(environ.get(ERROR_PAGE))
        if wanted == "application/json":
            text = _JSON.format(code=title[:3], error=title[4:], detail=self.detail)
            return "application/json", text.encode()
        return "text/plain; charset=utf-8", f"{title}\n\n{self.detail}\n".encode()

    def _page(self, own: bytes | None) -> bytes:
        if own is not None:
            try:
                page = own.replace(b"$status", self.status.encode())
                return page.replace(b"$detail", self.detail.encode())
            except MemoryError:
                pass  # the page below is smaller
        return _PAGE.format(title=self.status, detail=self.detail).encode()


def preferred(environ: WSGIEnvironment, offers: tuple[str, ...]) -> str:
    """Return the media type of `offers` that Accept prefers (RFC 9110 §12.5.1).

    Ignores parameters other than the quality. Returns the first offer if Accept is missing, accepts
    no offer or cannot be parsed. Of equals, returns the offer that Accept names more specifically.
    """
    accept = environ.get("HTTP_ACCEPT", "")
    if not accept or accept == "*/*":
        return offers[0]
    ranges = _qualities(accept)
    best, chosen = (0.0, 0), offers[0]
    for offer in offers:
        # The most specific range that matches the offer gives its quality.
        for closeness, name in ((3, offer), (2, offer.partition("/")[0] + "/*"), (1, "*/*")):
            if name in ranges:
                liked = ranges[name], closeness
                if liked[0] > 0 and liked > best:
                    best, chosen = liked, offer
                break
    return chosen


def _qualities(accept: str) -> dict[str, float]:
    """Return each media range with its quality. Omit ranges with a malformed quality."""
    ranges = {}
    for part in accept.split(","):
        name, *parameters = part.split(";")
        quality = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip().lower() == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = -1.0
        if 0 <= quality <= 1:
            ranges[name.strip().lower()] = quality
    return ranges


def report(environ: WSGIEnvironment, what: str, why: str, setting: str) -> None:
    """Log one rate-limited line: the refusal, the route, the figure and the setting to change.

    Never raises MemoryError: the answer matters more than its log line.
    """
    try:
        log.limited(
            logging.WARNING,
            (what, setting),
            "%s: %s %s: %s (setting: %s)",
            what,
            log.printable(environ.get("REQUEST_METHOD", "")),
            log.printable(environ.get("PATH_INFO", "")),
            why,
            setting,
        )
    except MemoryError:
        pass
