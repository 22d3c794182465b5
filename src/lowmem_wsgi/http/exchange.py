"""One request and its response, as PEP 3333 has it.

The awkward parts of WSGI in one place: `start_response` that comes late, twice with `exc_info`,
or is followed by `write()`; a response that fails before its first byte, and may then be
answered otherwise, or after it, and then may not; `close()` exactly once, come what may.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from .. import log

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    Headers = list[tuple[str, str]]


class Strikes(Protocol):
    """Who may raise a MemoryError in the thread of a request, from another thread."""

    striking: bool  # about to raise one

    def settle(self) -> None:
        """Wait until that is over, and drop an error that comes."""


class Exchange(ABC):
    """Calls an app for one request, and stands between it and the server until `close`.

    A subclass says what happens on the way. `strikes` is asked whenever the app has been left,
    before the server goes on.
    """

    __slots__ = (
        "__weakref__",
        "_again",
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
        self.environ = environ
        self.strikes = strikes
        self._server_start = start_response
        self.status: str | None = None  # the last that the app has given
        self.sent = False  # the server has status and headers
        self._out = False  # and may have sent a part of the answer
        self._rescued = False
        self._again: tuple[Any, Any, None] | None = (
            None  # exc_info, for a server that has had other headers
        )
        self._open = True  # last: an exchange that has this is complete

    # --- What a subclass says

    @abstractmethod
    def choose(self) -> WSGIApplication:
        """Return the app that answers."""

    def amend(self, status: str, headers: Headers) -> Headers:
        """Return the headers to send. Not asked of the answer of a `rescue`."""
        return headers

    def rescue(self, error: BaseException | None, sent: bool) -> WSGIApplication | None:
        """Return another app to answer instead; or None.

        Asked, until it names one, after the app has returned, raised `error` or yielded, or after
        `amend` has raised `error`. Where a part of the answer is `sent` it is told, and cannot
        answer.
        """
        return None

    @abstractmethod
    def started(self) -> None:
        """The app has called start_response, and is not done yet."""

    @abstractmethod
    def finish(self, closed: bool) -> None:
        """The request is over. Called until it returns, so each step must be idempotent.

        Not `closed`: the server dropped the response without a close().
        """

    # --- What the server calls

    def run(self) -> Iterable[bytes]:
        """Return the response of the app that `choose` names, for the server."""
        result: Iterable[bytes] = ()
        other = None
        try:
            try:
                result = self.choose()(self.environ, self.start_response)
                kind = type(result)
                whole = kind is list or kind is tuple
                wrapper = self.environ.get("wsgi.file_wrapper")
                if whole or (wrapper is not None and _is_file(result, wrapper)):
                    # All is there: it can still be answered otherwise, and after this no more.
                    other = self._other(None)
                    if other is None:
                        self.send_headers()
                        return Whole(self, result) if whole else self._file(result)
            except BaseException as error:
                other = self._other(error)
                if other is None:
                    raise
            if other is not None:
                replaced, result = result, ()
                result = self._replaced(replaced, other)
            return SizedStream(self, result) if hasattr(result, "__len__") else Stream(self, result)
        except BaseException:
            self._close_both(result)  # the server gets nothing that it could close
            raise

    # --- What the app calls

    def start_response(
        self, status: str, headers: Headers, exc_info: OptExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        if self.sent:
            if exc_info is None:
                raise AssertionError("start_response called twice without exc_info (PEP 3333)")
            try:
                # Raises exc_info, if the server has sent the headers already.
                headers = self.amend(status, headers)
                self._server_write = self._server_start(status, headers, exc_info)
            finally:
                exc_info = None  # a cycle through this frame
        elif self.status is not None and exc_info is None:
            raise AssertionError("start_response called twice without exc_info (PEP 3333)")
        else:
            self.status, self._headers = status, headers
            self.started()
        return self.write

    def write(self, data: bytes, /) -> None:
        if not self.sent and self.rescue(None, False) is not None:
            raise OSError("the body of this request could not be read")  # and run() answers
        self.send_headers()
        self._out = True
        self._server_write(data)

    # --- What the response below calls

    def send_headers(self) -> None:
        """Hand status and headers to the server, once there are any."""
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
        """The next chunk of a response whose headers are not sent yet, or of what answers instead.

        An app may yield empty chunks before it calls start_response. StopIteration where there is
        no chunk.
        """
        chunk: bytes | None = None
        try:
            if stream.chunks is None:
                stream.chunks = iter(())  # nothing more, should this fail
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
            replaced, stream.result = stream.result, ()  # closed once, come what may
            stream.result, stream.chunks = self._replaced(replaced, other), None
            return self.first(stream)
        if chunk is None:
            raise StopIteration
        return chunk

    def failed(self, error: BaseException) -> None:
        """The response failed after its first byte: the server must cut it off."""
        try:
            self.rescue(error, True)
        except MemoryError:
            pass  # `error` itself goes on to the server

    def close(self) -> None:
        """The request is over."""
        if not self._open:
            return
        try:
            self.finish(True)
        except MemoryError:  # aimed at the request that ends here; it comes once
            self.finish(True)
        self._open = False

    def __del__(self) -> None:
        # Test clients often forget close(), and a MemoryError may come before it: neither must
        # leave the request in flight for ever.
        if getattr(self, "_open", False):  # it has none where __init__ was interrupted
            self.finish(False)

    # --- In between

    def _other(self, error: BaseException | None) -> WSGIApplication | None:
        if self._out or self._rescued:
            return None
        try:
            other = self.rescue(error, False)
        except MemoryError:  # one from outside, which came when the app's own had come already
            other = self.rescue(error, False)
        if other is not None:
            self._rescued = True
            if self.sent and error is not None:
                # The server takes other headers with exc_info, as long as it has sent no byte.
                self._again, self.sent = (type(error), error, None), False
        return other

    def _replaced(self, result: Iterable[bytes], other: WSGIApplication) -> Iterable[bytes]:
        _close(result)
        self.status = None
        try:
            return other(self.environ, self.start_response)
        except MemoryError:  # another one, from outside
            self.status = None
            return other(self.environ, self.start_response)

    def _close_both(self, result: object) -> None:
        _close(result)
        self.close()

    def _file(self, result: Any) -> Iterable[bytes]:
        """A response of the server's own wsgi.file_wrapper: it must get this very object."""
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
            # Some servers' wrapper takes no attribute. The file goes out without us.
            self.close()
        return result  # type: ignore[no-any-return]


class Stream:
    """A response passed through: one yield for each yield of the app."""

    __slots__ = ("_begun", "_exchange", "chunks", "result")

    def __init__(self, exchange: Exchange, result: Iterable[bytes]) -> None:
        self._exchange = exchange
        self.result = result
        self.chunks: Iterator[bytes] | None = None
        self._begun = False  # a chunk was made and the headers are sent

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

    def _begin(self) -> bytes:
        exchange = self._exchange
        try:
            return exchange.first(self)
        except MemoryError:  # it may have come between two attempts to answer otherwise
            if exchange.sent:
                raise
            return exchange.first(self)
        finally:
            self._begun = exchange.sent

    def close(self) -> None:
        # Dropped before the exchange is closed, so that the passes find it gone.
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
    """The same for a response that knows its number of chunks: servers ask, to set a length."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self.result)  # type: ignore[arg-type]


class Whole(list[bytes]):
    """A response whose chunks are all there."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: Exchange, chunks: Iterable[bytes]) -> None:
        list.__init__(self, chunks)
        self._exchange = exchange

    def close(self) -> None:
        self.clear()
        self._exchange.close()


def _close(result: object) -> None:
    """Close a response that the server will not see. Its trouble with that is not the client's."""
    close = getattr(result, "close", None)
    if close is not None:
        try:
            close()
        except Exception:
            log.failure("Closing a response that was not sent")


def _is_file(result: object, wrapper: object) -> bool:
    # Gunicorn and most others have a class. Where it is a function (uWSGI), its result is known
    # by being a file.
    return isinstance(result, wrapper) if isinstance(wrapper, type) else hasattr(result, "fileno")
