"""A request's body: how long it says it is, reading it up to a bound, throwing it away."""

from __future__ import annotations

import io
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import InputStream, WSGIEnvironment

# Where the bound body of a request is kept, should the app replace wsgi.input.
BODY = "lowmem.body"
# In the environ of a request that LowMemory itself has answered: drain its body after the answer.
DRAIN = "lowmem.drain"

_DIGITS = re.compile(r"[0-9]+")
# More than any disk holds; int() refuses thousands of digits, and needs time for hundreds.
_MOST_DIGITS = 18

# A client that is still sending when the socket is closed gets a reset and never reads our
# answer. So we read on after answering, but not for ever: nginx's lingering_timeout is the 5 s;
# the bytes cost nothing, they are dropped as they come.
DRAIN_SECONDS = 5.0
DRAIN_BYTES = 64 * 1024 * 1024
_PIECE = 64 * 1024


def declared_length(environ: WSGIEnvironment) -> int | None:
    """Content-Length in bytes; None where there is none. ValueError where it is no length."""
    text = environ.get("CONTENT_LENGTH") or ""
    if not text:
        return None
    if not _DIGITS.fullmatch(text):
        raise ValueError(text)
    text = text.lstrip("0")
    return int(text[:_MOST_DIGITS] or "0") if len(text) <= _MOST_DIGITS else 10**_MOST_DIGITS


def may_have_undeclared_body(environ: WSGIEnvironment) -> bool:
    """HTTP/1 frames a body by Content-Length or Transfer-Encoding alone (RFC 9112 §6)."""
    if "HTTP_TRANSFER_ENCODING" in environ:
        return True
    return "SERVER_PROTOCOL" in environ and environ["SERVER_PROTOCOL"][:7] != "HTTP/1."


class Body(io.BufferedIOBase):
    """wsgi.input, ended where it may end.

    A declared body ends after its length, whatever the client goes on to send. An undeclared
    one that goes past `limit` bytes raises UploadTooLarge and is `overflowed`; no byte past the
    limit is ever handed out. One that the server cannot read (a malformed chunk, a client that
    left) raises UploadBroken and is `broken`. A MemoryError while the body is read stays a
    MemoryError, and the body is `short`.
    """

    def __init__(self, stream: InputStream, limit: int, *, declared: bool) -> None:
        self.stream = stream
        self.limit = self.left = limit
        self.declared = declared
        self.overflowed = False
        self.broken = False
        self.short = False
        self._counted = False

    def first_time(self) -> bool:
        """Return True, once. Its fault is asked for repeatedly, and counted once."""
        first, self._counted = not self._counted, True
        return first

    def tighten(self, limit: int) -> None:
        """Lower the limit to `limit` bytes, from the body's first byte on."""
        limit = min(limit, self.limit)
        self.left = max(0, self.left - (self.limit - limit))
        self.limit = limit

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size >= 0:
            return self._take(self.stream.read, size)
        pieces = []
        try:
            while piece := self._take(self.stream.read, _PIECE):
                pieces.append(piece)
            return b"".join(pieces)
        except MemoryError:
            self.short = True
            raise

    def read1(self, size: int = -1, /) -> bytes:
        return self._take(self.stream.read, size if size >= 0 else io.DEFAULT_BUFFER_SIZE)

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._take(self.stream.readline, self.left if size is None or size < 0 else size)

    def _take(self, take: Callable[[int], bytes], size: int) -> bytes:
        if self.left == 0 and not self.declared and size:
            self._end()
        size = min(size, self.left)
        data = self._ask(take, size) if size else b""
        self.left -= len(data)
        return data

    def _end(self) -> None:
        """At the limit: the body ends here too, or it is too large."""
        self.overflowed = self.overflowed or bool(self._ask(self.stream.read, 1))
        if self.overflowed:
            from .upload_errors import UploadTooLarge  # brings werkzeug, which a Bottle app lacks

            raise UploadTooLarge

    def _ask(self, take: Callable[[int], bytes], size: int) -> bytes:
        try:
            return take(size)
        except MemoryError:
            self.short = True
            raise
        except Exception as error:
            self.broken = True
            from .upload_errors import UploadBroken

            raise UploadBroken from error

    def discard(self, seconds: float, clock: Callable[[], float]) -> None:
        """Read on and drop, up to DRAIN_BYTES and `seconds`."""
        left = min(self.left, DRAIN_BYTES) if self.declared else DRAIN_BYTES
        end = clock() + seconds
        while left > 0 and clock() < end:
            data = self.stream.read(min(left, _PIECE))
            if not data:
                return
            left -= len(data)


def drain(environ: WSGIEnvironment, clock: Callable[[], float] = time.monotonic) -> None:
    """Drop what the client is still sending, so that the client comes to read the answer.

    Call after the response, and after the request has left its place to others. Does nothing
    unless the server shows its socket (Gunicorn, werkzeug): only a socket bounds the time, to
    DRAIN_SECONDS. Elsewhere a client that idles would hold the thread. Those two servers send
    `100 Continue` before they call the app; another may send it at the first read, which is then
    after the final answer. Under HTTP/2 the socket carries other requests too. Reads DRAIN_BYTES
    at most. Never raises.
    """
    sock = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    if sock is None or not str(environ.get("SERVER_PROTOCOL", "")).startswith("HTTP/1."):
        return
    body = environ.get(BODY)
    if body is None:
        try:
            length = declared_length(environ)
        except ValueError:
            return
        if length is None and not may_have_undeclared_body(environ):
            return
        stream = environ["wsgi.input"]
        body = Body(stream, length or 0, declared=length is not None)
    if not body.declared and not environ.get("wsgi.input_terminated"):
        return  # the server does not end this stream, a read could wait for ever
    try:
        # A timeout of the socket would bound one recv, and a read may be of many: so the reading
        # side is closed when the time is up, and a client that drips comes to its end.
        timer = _in(DRAIN_SECONDS, lambda: sock.shutdown(socket.SHUT_RD))
        try:
            body.discard(DRAIN_SECONDS, clock)
        finally:
            timer.cancel()
    except Exception:
        return  # the client is gone, or sends nonsense: there is nobody left to answer


def _in(seconds: float, action: Callable[[], object]) -> threading.Timer:
    def act() -> None:
        try:
            action()
        except OSError:
            pass  # closed meanwhile

    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()
    return timer
