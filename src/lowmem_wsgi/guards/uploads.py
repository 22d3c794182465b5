"""Enforce the upload cap: refuse a request body larger than its path allows.

LowMemory refuses a declared length over the cap before calling the app. The app reads an
undeclared (chunked) body through a stream that ends at the cap. If that body overflows, LowMemory
answers with `fault`, whatever answer the app made of the error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ..http.body import BODY, Body, declared_length, may_have_undeclared_body
from ..http.paths import is_under, wsgi_path
from ..http.refusals import Refusal
from ..settings import format_size
from .guard import Guard

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

TOO_LARGE = "413 Content Too Large"  # RFC 9110 §15.5.14
SETTING = "LOWMEM_MAX_UPLOAD, or LOWMEM_UPLOAD_LIMITS for this path"


class UploadCap(Guard):
    """The guard for request bodies.

    `limit`: bytes for all paths, None for no cap. `limits`: bytes by path prefix; the longest
    matching prefix wins. `count`: called with the name of a counter.
    """

    name = "The upload cap"
    protects = True

    def __init__(
        self,
        limit: int | None,
        limits: Mapping[str, int] | None = None,
        count: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._limit = limit
        self._limits = sorted(
            ((wsgi_path(path), size) for path, size in (limits or {}).items()),
            key=lambda pair: len(pair[0].rstrip("/")),
            reverse=True,
        )
        self._count = count

    @property
    def limits(self) -> set[int | None]:
        """All caps in use, in bytes; None stands for no cap."""
        return {self._limit, *(size for _, size in self._limits)}

    def limit_for(self, path: str) -> int | None:
        """Return the cap for a path, in bytes; None if the path has no cap."""
        for prefix, size in self._limits:
            if is_under(path, prefix):
                return size
        return self._limit

    def enter(self, environ: WSGIEnvironment, number: int = 0) -> Refusal | None:
        """Return a refusal, or bound the request's body and return None."""
        if not environ.get("CONTENT_LENGTH") and not may_have_undeclared_body(environ):
            return None
        try:
            length = declared_length(environ)
        except ValueError:
            return Refusal(
                "400 Bad Request",
                "The Content-Length of this request is not a number of bytes.",
                why="Content-Length is not a number of bytes",
                setting="none, the request is malformed",
            )
        undeclared = "HTTP_TRANSFER_ENCODING" in environ  # overrides Content-Length
        undeclared = undeclared or length is None
        limit = self.limit_for(environ.get("PATH_INFO", ""))
        if limit is None:
            return None
        if length is not None and length > limit:
            return self._too_large(f"{length} bytes declared", limit)
        environ[BODY] = environ["wsgi.input"] = Body(
            environ["wsgi.input"],
            limit if undeclared or length is None else length,
            declared=not undeclared,
        )
        return None

    def tighten(self, environ: WSGIEnvironment, limit: int) -> Refusal | None:
        """Apply this lower limit (bytes) to a request that another LowMemory has let in."""
        body = environ.get(BODY)
        if body is None:
            return None
        length = declared_length(environ)
        if length is not None and length > limit:
            return self._too_large(f"{length} bytes declared", limit)
        if not body.declared:
            body.tighten(limit)
        return None

    def fault(self, environ: WSGIEnvironment) -> Refusal | None:
        """Return the refusal for a body that was too large or unreadable when the app read it."""
        body = environ.get(BODY)
        if body is None or not (body.overflowed or body.broken):
            return None
        if body.overflowed:
            return self._too_large("an undeclared body", body.limit, count=body.first_time())
        return Refusal(
            "400 Bad Request",
            "The body of this request is malformed or incomplete.",
            why="its body cannot be read",
            setting="none, the request is malformed",
        )

    def _too_large(self, sent: str, limit: int, *, count: bool = True) -> Refusal:
        if count:
            self._count("uploads_rejected")
        return Refusal(
            TOO_LARGE,
            f"This upload is larger than the {format_size(limit)} allowed here.",
            why=f"{sent}, {limit} allowed",
            setting=SETTING,
        )
