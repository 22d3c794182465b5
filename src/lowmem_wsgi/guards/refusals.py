"""How we say no: an answer the client can read, a log line the operator can act on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .. import log
from .body import drain

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:15vh auto;padding:0 1rem;
color-scheme:light dark}}h1{{font-size:1.5rem}}</style>
<h1>{title}</h1>
<p>{detail}</p>
"""


class Refusal:
    """A WSGI app that answers with an error, in HTML, JSON or plain text as the client accepts.

    `detail` is for the client; `why` (with the figure) and `setting` (that governs it) for the
    log. Neither may hold text from the request: they are sent and logged as they are.
    """

    def __init__(
        self,
        status: str,
        detail: str,
        *,
        why: str,
        setting: str,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.status = status
        self.detail = detail
        self.why = why
        self.setting = setting
        self.headers = headers

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Answer:
        self.report(environ)
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
        return Answer(b"" if environ.get("REQUEST_METHOD") == "HEAD" else body, environ)

    def report(self, environ: WSGIEnvironment) -> None:
        """Log it, rate-limited."""
        report(environ, self.status, self.why, self.setting)

    def _render(self, environ: WSGIEnvironment) -> tuple[str, bytes]:
        title = self.status
        wanted = preferred(environ, ("text/plain", "text/html", "application/json"))
        if wanted == "text/html":
            return "text/html; charset=utf-8", _PAGE.format(
                title=title, detail=self.detail
            ).encode()
        if wanted == "application/json":
            import json

            answer = {"status": int(title[:3]), "error": title[4:], "detail": self.detail}
            return "application/json", json.dumps(answer).encode() + b"\n"
        return "text/plain; charset=utf-8", f"{title}\n\n{self.detail}\n".encode()


class Answer:
    """A one-piece response that, once sent, drains what the client is still sending."""

    def __init__(self, body: bytes, environ: WSGIEnvironment) -> None:
        self._body = body
        self._environ = environ

    def __iter__(self) -> Iterator[bytes]:
        return iter((self._body,))

    def __len__(self) -> int:
        return 1

    def close(self) -> None:
        drain(self._environ)


def preferred(environ: WSGIEnvironment, offers: tuple[str, ...]) -> str:
    """The offer that Accept likes best; the first where it says nothing or does not parse."""
    accept = environ.get("HTTP_ACCEPT", "")
    if not accept or accept == "*/*":
        return offers[0]
    try:
        from werkzeug.datastructures import MIMEAccept
        from werkzeug.http import parse_accept_header

        return parse_accept_header(accept, MIMEAccept).best_match(offers) or offers[0]
    except Exception:
        return offers[0]


def report(environ: WSGIEnvironment, what: str, why: str, setting: str) -> None:
    """One rate-limited line: what was refused where, the figure, the setting that governs it."""
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
