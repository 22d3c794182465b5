"""Serve LowMemory's admin routes, and check who may use them."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..http.body import DRAIN
from ..http.paths import wsgi_path
from ..http.refusals import Refusal, preferred

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ..middleware import LowMemory
    from ..settings import Settings

# Below the status path.
TRACE, REPLACE = "trace", "replace"
# On Basic a browser asks for a password: the token, with any user name.
CHALLENGE = ("WWW-Authenticate", 'Basic realm="lowmem-wsgi", charset="UTF-8"')


class Admin:
    """The admin routes: GET status, GET|POST cleanup; GET|POST trace, POST replace below status.

    All need the token. If no token is set, everybody gets a brief status and nobody may act.
    """

    def __init__(self, lowmem: LowMemory) -> None:
        self._lowmem = lowmem
        self._token = lowmem.settings.admin_token

    def routes(self) -> dict[str, WSGIApplication]:
        """Return the routes: PATH_INFO -> WSGI app."""
        settings = self._lowmem.settings
        below = settings.status_path.rstrip("/")
        return {
            wsgi_path(f"{below}/{TRACE}"): self._route(("GET", "HEAD", "POST"), self._trace),
            wsgi_path(f"{below}/{REPLACE}"): self._route(("POST",), self._replace),
            wsgi_path(settings.status_path): self._route(("GET", "HEAD"), self._status),
            wsgi_path(settings.cleanup_path): self._route(("GET", "HEAD", "POST"), self._cleanup),
        }

    def _route(
        self, methods: tuple[str, ...], answer: Callable[[WSGIEnvironment], WSGIApplication]
    ) -> WSGIApplication:
        def route(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            if environ.get("REQUEST_METHOD") not in methods:
                return _not_allowed(methods)(environ, start_response)
            if self._token is not None and authorized(environ, self._token) is None:
                asked = "HTTP_AUTHORIZATION" in environ
                return (UNAUTHORIZED if asked else PROMPT)(environ, start_response)
            return answer(environ)(environ, start_response)

        return route

    def _status(self, environ: WSGIEnvironment) -> WSGIApplication:
        from .status import brief, history

        query = _query(environ)
        wanted = query["format"][-1] if "format" in query else accepted(environ)
        if wanted not in FORMATS:
            known = ", ".join(FORMATS)
            return Refusal(
                "400 Bad Request",
                f"This format is not known. Known: {known}.",
                why="an unknown ?format=",
                setting="none, the request is wrong",
            )
        document = brief(self._lowmem) if self._token is None else self._lowmem.status()
        if self._token is not None and (wanted == "html" or "history" in query):
            document["history"] = history(self._lowmem)
        return FORMATS[wanted](document, self._lowmem.settings)

    def _cleanup(self, environ: WSGIEnvironment) -> WSGIApplication:
        return self._acting(environ, "cleanup") or _json(self._lowmem.cleanup())

    def _trace(self, environ: WSGIEnvironment) -> WSGIApplication:
        """GET tells of the last trace; POST with `route` starts one, with `stop` ends it."""
        if environ["REQUEST_METHOD"] == "POST":
            refusal = self._acting(environ, "trace")
            if refusal is not None:
                return refusal
        elif self._token is None:
            return _no_token("trace")
        from . import trace

        query = _query(environ)
        if environ["REQUEST_METHOD"] != "POST":
            return _json(trace.told(self._lowmem))
        if "stop" in query:
            found = trace.stop(self._lowmem, query["stop"][-1])
        else:
            found = trace.start(self._lowmem, query)
        return found if isinstance(found, Refusal) else _json(found)

    def _replace(self, environ: WSGIEnvironment) -> WSGIApplication:
        """Replace the worker that answers by a fresh one."""
        refusal = self._acting(environ, "replacement")
        if refusal is not None:
            return refusal
        worker = self._lowmem.worker
        why = worker.ask_to_replace()
        if why is not None:
            return Refusal(
                *("409 Conflict", why),
                why="a replacement of a worker was refused",
                setting="none, try later",
            )
        return _json({"pid": worker.record.pid if worker.record is not None else None})

    def _acting(self, environ: WSGIEnvironment, what: str) -> WSGIApplication | None:
        """Return the answer to a request that may not act; None for one that may."""
        if self._token is None:
            return _no_token(what)
        if environ["REQUEST_METHOD"] == "HEAD":
            return _json({})
        return _foreign(environ, self._token, what)


def _no_token(what: str) -> Refusal:
    return Refusal(
        "403 Forbidden",
        f"No token is set, so nobody may force a {what}. Set LOWMEM_ADMIN_TOKEN.",
        why=f"a forced {what}, and no token is set",
        setting="LOWMEM_ADMIN_TOKEN",
    )


def _foreign(environ: WSGIEnvironment, token: str, what: str) -> Refusal | None:
    """Return a refusal if another site's page may have made a browser request the act.

    A browser that knows the password sends Basic by itself, also with images and forms of other
    sites. No browser sends Bearer by itself.
    """
    site, basic = environ.get("HTTP_SEC_FETCH_SITE"), authorized(environ, token) == BASIC
    if site not in (None, "none", "same-origin"):
        return _from_elsewhere(f"A {what} may not be forced from another site.", what)
    if basic and environ["REQUEST_METHOD"] == "GET":
        return _from_elsewhere(
            f"With a password a {what} takes POST. GET takes Authorization: Bearer.", what
        )
    if basic and site is None and not _of_this_host(environ):
        return _from_elsewhere(
            f"With a password a {what} takes an Origin of this host. Other programs than browsers "
            "send Authorization: Bearer.",
            what,
        )
    return None


def _from_elsewhere(detail: str, what: str) -> Refusal:
    return Refusal(
        "403 Forbidden",
        detail,
        why=f"a forced {what}, maybe asked for by a page of another site",
        setting="none, the request is wrong",
    )


def _of_this_host(environ: WSGIEnvironment) -> bool:
    """Return whether Origin, else Referer, names the host and port of the Host header.

    Ignores the scheme: a proxy in front may have changed it.
    """
    from urllib.parse import urlsplit

    try:
        source = urlsplit(environ.get("HTTP_ORIGIN") or environ.get("HTTP_REFERER", "")).netloc
    except ValueError:
        return False
    return source != "" and _host(source) == _host(environ.get("HTTP_HOST", ""))


def _host(text: str) -> str:
    """Return `name:port` in lower case, without the default port of a scheme."""
    name, _, port = text.lower().rpartition(":")
    return name if port in ("80", "443") else text.lower()


UNAUTHORIZED = Refusal(
    "401 Unauthorized",
    "This page needs the token that LOWMEM_ADMIN_TOKEN holds.",
    why="no token, or a wrong one",
    setting="LOWMEM_ADMIN_TOKEN",
    headers=(CHALLENGE,),
)
# Without any token: a browser that will ask for the password now. That is no event for the log.
PROMPT = Refusal(
    UNAUTHORIZED.status,
    UNAUTHORIZED.detail,
    why="no token yet",
    setting="LOWMEM_ADMIN_TOKEN",
    headers=(CHALLENGE,),
    logged=False,
)


class Document:
    """A WSGI app that answers with one text. The text depends on Accept."""

    def __init__(self, body: bytes, headers: list[tuple[str, str]]) -> None:
        self._body = body
        self._headers = headers

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        environ[DRAIN] = True
        length = ("Content-Length", str(len(self._body)))
        start_response("200 OK", [*self._headers, length, ("Vary", "Accept")])
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [self._body]


def _text(body: bytes, content_type: str) -> Document:
    return Document(body, [("Content-Type", content_type), ("Cache-Control", "no-store")])


def _json(document: dict[str, Any], settings: Settings | None = None) -> Document:
    import json

    return _text(json.dumps(document).encode() + b"\n", "application/json")


def _html(document: dict[str, Any], settings: Settings) -> Document:
    import secrets

    from . import status_page as page

    nonce, paths = secrets.token_urlsafe(16), (settings.status_path, settings.cleanup_path)
    body = page.render(document, nonce=nonce, status_path=paths[0], cleanup_path=paths[1])
    return Document(body, page.headers(nonce))


def _openmetrics(document: dict[str, Any], settings: Settings) -> Document:
    from . import openmetrics

    return _text(openmetrics.render(document), openmetrics.OPENMETRICS)


def _prometheus(document: dict[str, Any], settings: Settings) -> Document:
    from . import openmetrics

    return _text(openmetrics.render(document, classic=True), openmetrics.TEXT)


FORMATS: dict[str, Callable[[dict[str, Any], Settings], WSGIApplication]] = {
    "json": _json,
    "html": _html,
    "openmetrics": _openmetrics,
    "prometheus": _prometheus,
}
# Media type in Accept -> format. Without a preference in Accept, the first.
TYPES = {
    "application/json": "json",
    "text/html": "html",
    "application/openmetrics-text": "openmetrics",
    "text/plain": "prometheus",
}


def accepted(environ: WSGIEnvironment) -> str:
    """Return the format that Accept prefers, of any version."""
    return TYPES[preferred(environ, tuple(TYPES))]


BEARER, BASIC = "bearer", "basic"


def authorized(environ: WSGIEnvironment, token: str) -> str | None:
    """Return the scheme by which Authorization carries the token: BEARER, or BASIC as password.

    None if the header does not carry the token.
    """
    scheme, _, rest = environ.get("HTTP_AUTHORIZATION", "").strip().partition(" ")
    scheme, offered = scheme.lower(), b""
    try:
        if scheme == BEARER:
            offered = rest.strip().encode("latin-1")
        elif scheme == BASIC:
            offered = base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
    except ValueError:
        pass
    # Compare digests, so that neither the time nor an error reveals the token or its length.
    wanted = token.encode("utf-8", "surrogatepass")
    same = hmac.compare_digest(_digest(offered), _digest(wanted))
    return scheme if same and scheme in (BEARER, BASIC) else None


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


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
