"""Read a request's body up to a limit, read its declared length, and drop the rest of a body."""

from __future__ import annotations

import _thread
import contextlib
import io
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import InputStream, WSGIEnvironment

# Key of the environ: the request's Body, kept in case the app replaces wsgi.input.
BODY = "lowmem.body"
# Set in the environ of a request that LowMemory itself has answered: drain its body afterwards.
DRAIN = "lowmem.drain"

_DIGITS = re.compile(r"[0-9]+")
# More bytes than any disk holds. int() refuses thousands of digits, and is slow for hundreds.
_MOST_DIGITS = 18

# A client that still sends when the socket is closed gets a reset and never reads the answer. So
# LowMemory reads on after answering, but not for ever: 5 s as nginx's lingering_timeout. The bytes
# cost nothing: LowMemory drops them as they come.
DRAIN_SECONDS = 5.0
DRAIN_BYTES = 64 * 1024 * 1024
_PIECE = 64 * 1024
# A worker that is to be replaced waits for no client that sends less than a piece in IDLE seconds.
IDLE = 0.25


def declared_length(environ: WSGIEnvironment) -> int | None:
    """Return Content-Length in bytes; None without the header.

    Raises ValueError if the header is not a number of bytes. Returns at most 10**18.
    """
    text = str(environ.get("CONTENT_LENGTH") or "")  # test clients (Django's) may give an int
    if not text:
        return None
    if not _DIGITS.fullmatch(text):
        raise ValueError(text)
    text = text.lstrip("0")
    return int(text[:_MOST_DIGITS] or "0") if len(text) <= _MOST_DIGITS else 10**_MOST_DIGITS


def may_have_undeclared_body(environ: WSGIEnvironment) -> bool:
    """Return whether a request without Content-Length may have a body.

    HTTP/1 frames a body only by Content-Length or Transfer-Encoding (RFC 9112 §6).
    """
    if "HTTP_TRANSFER_ENCODING" in environ:
        return True
    return "SERVER_PROTOCOL" in environ and str(environ["SERVER_PROTOCOL"])[:7] != "HTTP/1."


class Body(io.BufferedIOBase):
    """A stream in place of wsgi.input that ends at a limit in bytes.

    A declared body ends after its length, whatever more the client sends. An undeclared body that
    is larger than `limit` raises UploadTooLarge and sets `overflowed`; the app never gets a byte
    past the limit. If the server cannot read the body (a malformed chunk, a client that left),
    reading raises UploadBroken and sets `broken`. A MemoryError while reading stays a MemoryError
    and sets `short`.
    """

    def __init__(self, stream: InputStream, limit: int, *, declared: bool) -> None:
        self.stream = stream
        self.limit: int = limit
        self.left: int = limit
        self.declared = declared
        self.overflowed: bool = False
        self.broken: bool = False
        self.short: bool = False
        self.dropped: int = 0  # bytes, by `discard`
        self._counted = False

    def first_time(self) -> bool:
        """Return True at the first call only, so that the body's fault is counted once."""
        first, self._counted = not self._counted, True
        return first

    def tighten(self, limit: int) -> None:
        """Lower the limit to `limit` bytes, counted from the body's first byte."""
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
        """Check at the limit that the body ends. Raise UploadTooLarge if more bytes come."""
        self.overflowed = self.overflowed or bool(self._ask(self.stream.read, 1))
        if self.overflowed:
            from .upload_errors import UploadTooLarge  # late: loads werkzeug, unused by Bottle apps

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
        """Read and drop the rest of the body, at most DRAIN_BYTES and for at most `seconds`."""
        left = min(self.left, DRAIN_BYTES) if self.declared else DRAIN_BYTES
        end = clock() + seconds
        while left > 0 and clock() < end:
            data = self.stream.read(min(left, _PIECE))
            if not data:
                return
            left -= len(data)
            self.dropped += len(data)


def drain(
    environ: WSGIEnvironment,
    ending: Callable[[], bool] = bool,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Drop the bytes that the client still sends, so that the client then reads the answer.

    Call this after the response, and after the request has left its place to others. Reads at most
    DRAIN_BYTES for at most DRAIN_SECONDS, and not for an idle client once the worker is `ending`.
    Never raises.

    Does nothing where the client's socket cannot be had, because only a socket bounds the time: on
    such servers an idle client would hold the thread. Gunicorn and werkzeug send `100 Continue`
    before they call the app; another server may send it at the first read, and so after the final
    answer. Does nothing under HTTP/2, where the socket carries other requests too.
    """
    if not str(environ.get("SERVER_PROTOCOL", "")).startswith("HTTP/1."):
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
        return  # the server does not end this stream: a read could wait for ever
    sock = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    duplicate = None
    try:
        if sock is None:
            sock = duplicate = _duplicate(environ, body.stream)
        if sock is None:
            return
        # A timeout of the socket bounds one recv only, and a read may need many. So another thread
        # closes the reading side. This also ends a client that sends very slowly.
        # (Not by threading.Thread: its start waits for ever if no memory is left for the thread.)
        over = threading.Event()
        _thread.start_new_thread(_bound, (sock, body, ending, over))
        try:
            body.discard(DRAIN_SECONDS, clock)
        finally:
            over.set()
    except Exception:
        return  # the client is gone, or sends nonsense: no client to answer
    finally:
        if duplicate is not None:
            duplicate.close()


def _duplicate(environ: WSGIEnvironment, stream: Any) -> socket.socket | None:
    """Return another handle of the client's socket, on uWSGI and cheroot; None elsewhere."""
    if "uwsgi.version" in environ:
        return socket.socket(fileno=os.dup(sys.modules["uwsgi"].connection_fd()))
    if str(environ.get("SERVER_SOFTWARE"))[:8] == "Cheroot/":
        return socket.socket(fileno=os.dup(stream.rfile.fileno()))
    return None


def _bound(
    sock: socket.socket, body: Body, ending: Callable[[], bool], over: threading.Event
) -> None:
    """Close the reading side of `sock` when the client has had its time, if not `over` before."""
    end, seen = time.monotonic() + DRAIN_SECONDS, 0
    while not over.wait(IDLE):
        idle, seen = body.dropped == seen, body.dropped
        if time.monotonic() >= end or (idle and ending()):
            with contextlib.suppress(OSError):  # closed meanwhile
                sock.shutdown(socket.SHUT_RD)
            return
