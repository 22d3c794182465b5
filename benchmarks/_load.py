"""Clients that forgive nothing: an answer is whole and in time, or it is a failure."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Request = tuple[str, bytes | None]  # a path, and what to POST to it
AFTER_FAILURE = 0.05  # s: a server in trouble is not asked thousands of times a second


@dataclass(frozen=True)
class Answer:
    path: str
    began: float  # all three by time.monotonic, which is one clock for all processes
    sent: float | None  # when all of the request had left us
    ended: float
    status: int  # 0 where the answer did not come, or not whole
    error: str
    body: bytes

    @property
    def ok(self) -> bool:
        return self.status == 200

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Caller:
    """One client, with its cookies. A request fails with its connection: no second try."""

    def __init__(
        self,
        port: int,
        *,
        keep_alive: bool = False,
        timeout: float = 60,
        cookies: dict[str, str] | None = None,
    ) -> None:
        self._keep_alive = keep_alive
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        # Of its own, or shared with another, as the tabs of a browser do.
        self._cookies: dict[str, str] = {} if cookies is None else cookies

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """GET, or POST where there is a body."""
        if not self._keep_alive:
            headers["Connection"] = "close"
        if self._cookies:
            headers["Cookie"] = "; ".join(f"{k}={v}" for k, v in self._cookies.items())
        method = "GET" if body is None else "POST"
        began, sent = time.monotonic(), None
        status, error, content = 0, "", b""
        try:
            self._connection.request(method, path, body, headers)
            sent = time.monotonic()
            response = self._connection.getresponse()
            content = response.read()
            status = response.status
            for header in response.headers.get_all("Set-Cookie", []):
                name, _, value = header.partition(";")[0].partition("=")
                self._cookies[name] = value
        except (OSError, http.client.HTTPException) as failure:
            error = type(failure).__name__
            self._connection.close()
        if not self._keep_alive:
            self._connection.close()
        return Answer(path, began, sent, time.monotonic(), status, error, content)

    def close(self) -> None:
        self._connection.close()


def upload(port: int, path: str, size: int, timeout: float, *, chunked: bool = False) -> Answer:
    """Send a body of lines, and read the answer as soon as it comes, as curl and browsers do."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    began = time.monotonic()
    stop = threading.Event()

    def send(sock: socket.socket) -> None:
        # By the socket itself: with the answer there, the connection forgets its socket, and would
        # connect anew for the next piece.
        with contextlib.suppress(OSError):
            for piece in pieces(size):
                if stop.is_set():
                    return
                sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if chunked:
                sock.sendall(b"0\r\n\r\n")

    status, error, content = 0, "", b""
    try:
        connection.putrequest("POST", path)
        if chunked:
            connection.putheader("Transfer-Encoding", "chunked")
        else:
            connection.putheader("Content-Length", str(size))
        connection.putheader("Connection", "close")
        connection.endheaders()
        sender = threading.Thread(target=send, args=(connection.sock,), daemon=True)
        sender.start()
        response = connection.getresponse()
        stop.set()
        content = response.read()
        status = response.status
    except (OSError, http.client.HTTPException) as failure:
        error = type(failure).__name__
    stop.set()
    connection.close()
    return Answer(path, began, began, time.monotonic(), status, error, content)


def pieces(size: int) -> Iterator[bytes]:
    """The body of an upload, in pieces of 64 KB."""
    piece = b"a line\n " * (8 * 1024)
    for start in range(0, size, len(piece)):
        yield piece[: size - start]


class Crowd:
    """Some clients, a thread each, and all the answers they got so far."""

    def __init__(
        self,
        port: int,
        clients: int,
        request: Callable[[int], Request],
        *,
        most: int | None = None,
        pause: float = 0,
        keep_alive: bool = False,
        timeout: float = 60,
    ) -> None:
        self.answers: list[Answer] = []
        self._timeout = timeout
        self._port = port
        self._request = request
        self._most = most
        self._pause = pause
        self._keep_alive = keep_alive
        self._numbers = itertools.count()
        self._stopped = threading.Event()
        # Daemons: one that waits for an answer does not keep an interrupted benchmark from ending.
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        caller = Caller(self._port, keep_alive=self._keep_alive, timeout=self._timeout)
        while not self._stopped.is_set():
            number = next(self._numbers)
            if self._most is not None and number >= self._most:
                break
            answer = caller.ask(*self._request(number))
            self.answers.append(answer)
            trouble = answer.status == 0 or answer.status >= 500
            time.sleep(max(self._pause, AFTER_FAILURE) if trouble else self._pause)
        caller.close()

    @property
    def busy(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        self._stopped.set()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


@contextlib.contextmanager
def crowd(
    port: int, clients: int, request: str | Callable[[int], Request], **how: Any
) -> Iterator[Crowd]:
    """Clients that ask until the block ends, if not for `most` requests; then all have their
    answers. `request` may depend on the request's number; see Crowd for `how`."""
    found = Crowd(port, clients, request if callable(request) else lambda _: (request, None), **how)
    try:
        yield found
        found.stop()
        found.join()
    finally:
        found.stop()


def failures(answers: Sequence[Answer], *, but: tuple[int, ...] = (200,)) -> str:
    """What went wrong and how often, as text."""
    wrong = [answer for answer in answers if answer.status not in but]
    counted = Counter(answer.error or str(answer.status) for answer in wrong)
    return ", ".join(f"{count} {what}" for what, count in counted.most_common()) or "-"
