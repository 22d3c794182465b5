"""The two routes we mount, and who may use them."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..guards.body import drain
from ..guards.paths import wsgi_path
from ..guards.refusals import Refusal, preferred

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ..middleware import LowMemory

# A browser asks for a password on Basic; the token is the password, with any name.
CHALLENGE = ("WWW-Authenticate", 'Basic realm="lowmem-wsgi", charset="UTF-8"')

VARY = ("Vary", "Accept")


class Admin:
    """GET status and GET|POST cleanup, for who has the token; a brief status for all where no
    token is set."""

    def __init__(self, lowmem: LowMemory) -> None:
        self._lowmem = lowmem
        self._token = lowmem.settings.admin_token

    def routes(self) -> dict[str, WSGIApplication]:
        """PATH_INFO -> WSGI app."""
        settings = self._lowmem.settings
        return {
            wsgi_path(settings.status_path): self._route(("GET", "HEAD"), self._status),
            wsgi_path(settings.cleanup_path): self._route(("GET", "HEAD", "POST"), self._cleanup),
        }

    def _route(
        self, methods: tuple[str, ...], answer: Callable[[WSGIEnvironment], WSGIApplication]
    ) -> WSGIApplication:
        def route(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            if environ.get("REQUEST_METHOD") not in methods:
                return _not_allowed(methods)(environ, start_response)
            if self._token is not None and not authorized(environ, self._token):
                return UNAUTHORIZED(environ, start_response)
            return answer(environ)(environ, start_response)

        return route

    def _status(self, environ: WSGIEnvironment) -> WSGIApplication:
        from .status import brief

        offered = preferred(environ, ("application/json", "text/html")).rpartition("/")[2]
        wanted = _query(environ).get("format", [offered])[-1]
        if wanted not in ("json", "html"):
            return Refusal(
                "400 Bad Request",
                "This format is not known. Known: json, html.",
                why="an unknown ?format=",
                setting="none, the request is wrong",
            )
        document = brief(self._lowmem) if self._token is None else self._lowmem.status()
        return Json(document) if wanted == "json" else self._page(document)

    def _page(self, document: dict[str, Any]) -> WSGIApplication:
        import secrets

        from . import page

        nonce = secrets.token_urlsafe(16)
        settings = self._lowmem.settings
        body = page.render(
            document,
            nonce=nonce,
            status_path=settings.status_path,
            cleanup_path=settings.cleanup_path,
        )

        def answer(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
            drain(environ)
            start_response(
                "200 OK", [*page.headers(nonce), ("Content-Length", str(len(body))), VARY]
            )
            return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]

        return answer

    def _cleanup(self, environ: WSGIEnvironment) -> WSGIApplication:
        if self._token is None:
            return Refusal(
                "403 Forbidden",
                "No token is set, so nobody may force a cleanup. Set LOWMEM_ADMIN_TOKEN.",
                why="a forced cleanup, and no token is set",
                setting="LOWMEM_ADMIN_TOKEN",
            )
        if environ.get("HTTP_SEC_FETCH_SITE", "none") not in ("none", "same-origin"):
            # A browser that knows the password sends it along with other sites' images, too.
            return Refusal(
                "403 Forbidden",
                "A cleanup may not be forced from another site.",
                why="asked for by a page of another site",
                setting="none, the request is wrong",
            )
        if environ["REQUEST_METHOD"] == "HEAD":
            return Json({})
        return Json(self._lowmem.cleanup())


UNAUTHORIZED = Refusal(
    "401 Unauthorized",
    "This page needs the token that LOWMEM_ADMIN_TOKEN holds.",
    why="no token, or a wrong one",
    setting="LOWMEM_ADMIN_TOKEN",
    headers=(CHALLENGE,),
)


class Json:
    """A WSGI app that answers with one JSON document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        import json

        drain(environ)
        body = json.dumps(self._document).encode() + b"\n"
        start_response(
            "200 OK",
            [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"),
            ],
        )
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]


def authorized(environ: WSGIEnvironment, token: str) -> bool:
    """Whether Authorization carries the token: as Bearer, or as the password of Basic."""
    from werkzeug.datastructures import Authorization

    header = environ.get("HTTP_AUTHORIZATION", "")
    try:
        given = Authorization.from_header(header.encode("latin-1").decode("utf-8", "replace"))
    except Exception:
        given = None
    offered = "" if given is None else (given.token or given.password or "")
    # Digests, so that neither the time nor an error tells anything of the token or its length.
    return hmac.compare_digest(_digest(offered), _digest(token))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _query(environ: WSGIEnvironment) -> dict[str, list[str]]:
    from urllib.parse import parse_qs

    try:
        return parse_qs(environ.get("QUERY_STRING", ""), max_num_fields=20)
    except ValueError:
        return {}


def _not_allowed(methods: tuple[str, ...]) -> Refusal:
    return Refusal(
        "405 Method Not Allowed",
        f"This page knows {', '.join(methods)}.",
        why="a method that the route does not know",
        setting="none, the request is wrong",
        headers=(("Allow", ", ".join(methods)),),
    )
