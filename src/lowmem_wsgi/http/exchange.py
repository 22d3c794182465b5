"""Handle one request and its response as PEP 3333 defines them.

This module holds the difficult parts of WSGI. An app may call `start_response` late, twice with
`exc_info`, or before `write()`. A response that fails before its first byte can be replaced, a
response that fails later cannot. LowMemory calls `close()` exactly once in every case.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .. import log

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    Headers = list[tuple[str, str]]


# Servers that read status and headers when the app returns, before they ask for the first chunk.
READ_HEADERS_EARLY = ("Granian",)


class Strikes(Protocol):
    """The object that may raise a MemoryError in a request's thread, from another thread."""

    striking: bool  # about to raise a MemoryError

    def settle(self) -> None:
        """Wait until the strike is over, and drop an error that arrives meanwhile."""


class Exchange(ABC):
    """Call an app for one request, and stand between the app and the server until `close`.

    A subclass defines the steps on the way. Each time the app returns, LowMemory checks `strikes`
    before the server goes on.

    The exchange itself is the response that the server gets if all chunks are in memory. It is no
    list: some servers (Granian, bjoern) and WebOb close no response that is one.
    """

    __slots__ = (
        "__weakref__",
        "_again",
        "_chunks",
        "_headers",
        "_open",
        "_out",
        "_rescued",
        "_server_start",
        "_server_write",
        "environ",
        "sent",
        "status",
        "strikes",
    )

    def __init__(
        self, environ: WSGIEnvironment, start_response: StartResponse, strikes: Strikes
    ) -> None:
        self.environ: WSGIEnvironment = environ
        self.strikes: Strikes = strikes
        self._server_start = start_response
        self.status: str | None = None  # the app's last status
        self.sent: bool = False  # the server has status and headers
        self._out = False  # the server may have sent a part of the answer
        self._rescued = False
        self._chunks: Sequence[bytes] = ()  # of a response that is in memory
        self._again: tuple[Any, Any, None] | None = (
            None  # exc_info, for a server that already has other headers
        )
        self._open = True  # last: __init__ is complete once this is set

    # --- A subclass defines these

    @abstractmethod
    def choose(self) -> WSGIApplication:
        """Return the app that answers."""

    def amend(self, status: str, headers: Headers) -> Headers:
        """Return the headers to send. Not called for the answer of a `rescue`."""
        return headers

    def rescue(self, error: BaseException | None, sent: bool) -> WSGIApplication | None:
        """Return another app to answer instead, or None.

        Called after the app has returned, raised `error` or yielded, or after `amend` has raised
        `error`, until a call returns an app. `sent`: a part of the answer has left, so LowMemory
        ignores the returned app.
        """
        return None

    @abstractmethod
    def started(self) -> None:
        """Called when the app has called start_response and has not finished yet."""

    @abstractmethod
    def finish(self, closed: bool) -> None:
        """End the request. Called until a call returns, so each step must be idempotent.

        `closed`: False if the server dropped the response without a close().
        """

    # --- The server calls these

    def run(self) -> Iterable[bytes]:
        """Run the app that `choose` returns. Return its response, for the server."""
        result: Iterable[bytes] = ()
        other = None
        try:
            try:
                result = self.choose()(self.environ, self.start_response)
                kind = type(result)
                whole = kind is list or kind is tuple
                wrapper = self.environ.get("wsgi.file_wrapper")
                if whole or (wrapper is not None and _is_file(result, wrapper)):
                    # The response is complete. This is the last moment to replace the answer.
                    other = self._other(None)
                    if other is None:
                        self.send_headers()
                        if not whole:
                            return self._file(result)
                        self._chunks = result  # type: ignore[assignment]
                        return self
            except BaseException as error:
                other = self._other(error)
                if other is None:
                    raise
            if other is not None:
                replaced, result = result, ()
                result = self._replaced(replaced, other)
            stream = (SizedStream if hasattr(result, "__len__") else Stream)(self, result)
            if self.environ.get("SERVER_SOFTWARE") in READ_HEADERS_EARLY:
                result = ()  # the stream closes what it holds
                try:
                    stream.begin()
                except BaseException:
                    stream.close()
                    raise
            return stream
        except BaseException:
            self._close_both(result)  # the server gets no response to close
            raise

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._chunks)

    def __len__(self) -> int:
        return len(self._chunks)

    def close(self) -> None:
        """End the request. Idempotent."""
        if not self._open:
            return
        self._chunks = ()  # so that the GC passes can free them
        try:
            self.finish(True)
        except MemoryError:  # from the watchdog, for the request that ends here; comes only once
            self.finish(True)
        self._open = False

    # --- The app calls these

    def start_response(
        self, status: str, headers: Headers, exc_info: OptExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        if self.sent:
            if exc_info is None:
                raise AssertionError("start_response called twice without exc_info (PEP 3333)")
            try:
                # The server raises exc_info if it has sent the headers already.
                headers = self.amend(status, headers)
                self._server_write = self._server_start(status, headers, exc_info)
            finally:
                exc_info = None  # break the reference cycle through this frame
        elif self.status is not None and exc_info is None:
            raise AssertionError("start_response called twice without exc_info (PEP 3333)")
        else:
            self.status, self._headers = status, headers
            self.started()
        return self.write

    def write(self, data: bytes, /) -> None:
        if not self.sent and self.rescue(None, False) is not None:
            raise OSError("the body of this request could not be read")  # run() then answers
        self.send_headers()
        self._out = True
        self._server_write(data)

    # --- The response classes below call these

    def send_headers(self) -> None:
        """Pass status and headers to the server, if the app has set them. Idempotent."""
        if self.sent or self.status is None:
            return
        if not self._rescued:
            headers = self.amend(self.status, self._headers)
            self.sent = True
            self._server_write = self._server_start(self.status, headers)
            return
        again, self._again = self._again, None
        self.sent = True
        given = (
            (self.status, self._headers) if again is None else (self.status, self._headers, again)
        )
        self._server_write = self._server_start(*given)

    def first(self, stream: Stream) -> bytes:
        """Return the next chunk of a response, or of its replacement, before the headers are sent.

        An app may yield empty chunks before the app calls start_response. Raises StopIteration if
        there is no chunk.
        """
        chunk: bytes | None = None
        try:
            if stream.chunks is None:
                stream.chunks = iter(())  # no chunks, if the next line fails
                stream.chunks = iter(stream.result)
            chunk = next(stream.chunks, None)
            other = self._other(None)
            if other is None:
                self.send_headers()
                self._out = self.sent
        except BaseException as error:
            other = self._other(error)
            if other is None:
                raise
        if other is not None:
            replaced, stream.result = stream.result, ()  # so that the result is closed only once
            stream.result, stream.chunks = self._replaced(replaced, other), None
            return self.first(stream)
        if chunk is None:
            raise StopIteration
        return chunk

    def failed(self, error: BaseException) -> None:
        """Note an error after the response's first byte. The server must cut the response off."""
        try:
            self.rescue(error, True)
        except MemoryError:
            pass  # `error` itself goes on to the server

    def __del__(self) -> None:
        # Test clients often forget close(), and a MemoryError may come before close(). Neither may
        # leave the request in flight for ever.
        if getattr(self, "_open", False):  # absent if __init__ was interrupted
            self.finish(False)

    # --- Helpers

    def _other(self, error: BaseException | None) -> WSGIApplication | None:
        if self._out or self._rescued:
            return None
        try:
            other = self.rescue(error, False)
        except MemoryError:  # from the watchdog, after the app's own MemoryError
            other = self.rescue(error, False)
        if other is not None:
            self._rescued = True
            if self.sent and error is not None:
                # With exc_info the server accepts other headers until it has sent the first byte.
                self._again, self.sent = (type(error), error, None), False
        return other

    def _replaced(self, result: Iterable[bytes], other: WSGIApplication) -> Iterable[bytes]:
        _close(result)
        self.status = None
        try:
            return other(self.environ, self.start_response)
        except MemoryError:  # another MemoryError, from the watchdog
            self.status = None
            return other(self.environ, self.start_response)

    def _close_both(self, result: object) -> None:
        _close(result)
        self.close()

    def _file(self, result: Any) -> Iterable[bytes]:
        """Return a response of wsgi.file_wrapper. The server must get the same object."""
        close = getattr(result, "close", None)

        def close_both() -> None:
            try:
                if close is not None:
                    close()
            finally:
                self.close()

        try:
            result.close = close_both
        except (AttributeError, TypeError):
            # The wrapper of some servers accepts no attribute. End the request now, before the
            # server sends the file.
            self.close()
        return result  # type: ignore[no-any-return]


class Stream:
    """A response that LowMemory passes through: one yield for each yield of the app."""

    __slots__ = ("_begun", "_exchange", "chunks", "result")

    def __init__(self, exchange: Exchange, result: Iterable[bytes]) -> None:
        self._exchange = exchange
        self.result: Iterable[bytes] = result
        self.chunks: Iterator[bytes] | None = None
        self._begun = False  # the first chunk is made and the headers are sent

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self.chunks) if self._begun else self._begin()  # type: ignore[arg-type]
        except StopIteration:
            raise
        except BaseException as error:
            if self._exchange.sent:
                self._exchange.failed(error)
            raise
        finally:
            if self._exchange.strikes.striking:
                self._exchange.strikes.settle()

    def begin(self) -> None:
        """Make chunks until the headers are sent, and keep the chunks for the server."""
        early = []
        while not self._begun:
            try:
                early.append(self._begin())
            except StopIteration:
                break
        self.chunks = itertools.chain(early, self.chunks or ())

    def _begin(self) -> bytes:
        exchange = self._exchange
        try:
            return exchange.first(self)
        except MemoryError:  # may come between two attempts to replace the answer
            if exchange.sent:
                raise
            return exchange.first(self)
        finally:
            self._begun = exchange.sent

    def close(self) -> None:
        # Drop the response before closing the exchange, so that the GC passes can free it.
        result = self.result
        self.result, self.chunks, self._begun = (), iter(()), True
        try:
            close = getattr(result, "close", None)
            if close is not None:
                close()
        finally:
            del result
            self._exchange.close()


class SizedStream(Stream):
    """A stream that knows its number of chunks: servers read that number to set Content-Length."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self.result)  # type: ignore[arg-type]


def _close(result: object) -> None:
    """Close a response that the server will not see. Log an error of its close()."""
    close = getattr(result, "close", None)
    if close is not None:
        try:
            close()
        except Exception:
            log.failure("Closing a response that was not sent")


def _is_file(result: object, wrapper: object) -> bool:
    # In Gunicorn and most servers the wrapper is a class. If the wrapper is a function (uWSGI), its
    # result is a file.
    return isinstance(result, wrapper) if isinstance(wrapper, type) else hasattr(result, "fileno")
