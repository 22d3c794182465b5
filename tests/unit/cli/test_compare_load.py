"""The clients of `lowmem-wsgi compare`: what counts as an answer, and how long they ask."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from lowmem_wsgi.cli.compare.load import Client, drive

Answers = Callable[[socket.socket], None]


@pytest.fixture
def answering() -> Iterator[Callable[[Answers], int]]:
    """Start a server that answers each connection so. Return its port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(16)

    def start(answer: Answers) -> int:
        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:  # closed
                    return
                with connection:
                    connection.recv(65536)
                    try:
                        answer(connection)
                    except OSError:  # the client has gone
                        pass

        threading.Thread(target=serve, daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def sends(data: bytes) -> Answers:
    return lambda connection: connection.sendall(data)


def trickle(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x")
        time.sleep(0.01)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: Text/HTML\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (HEAD + b"Content-Length: 5\r\n\r\nhello", 200),
        (HEAD + b"\r\nhello", 200),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 200),
        (HEAD + b"Content-Length: 6\r\n\r\nhello", 0),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n9\r\nhello", 0),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", 0),
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", 503),
        (b"no such protocol\r\n\r\n", 0),
        (b"", 0),
    ],
)
def test_an_answer_is_whole_or_none(
    sent: bytes, status: int, answering: Callable[[Answers], int]
) -> None:
    answer = Client(answering(sends(sent)), "localhost", keep=3).get("/")
    assert answer.status == status
    assert answer.failed is (status != 200)
    if status == 200:
        assert (answer.kind, answer.body) == ("text/html", b"hel")  # codespell:ignore


def test_an_answer_without_end_fails_when_patience_ends(
    answering: Callable[[Answers], int],
) -> None:
    answer = Client(answering(trickle), "localhost").get("/", patience=0.2)
    assert answer.status == 0
    assert answer.seconds >= 0.2


def test_a_redirect_is_not_followed(answering: Callable[[Answers], int]) -> None:
    moved = b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n"
    answer = Client(answering(sends(moved)), "localhost").get("/")
    assert (answer.status, answer.location, answer.failed) == (302, "/x", False)


def test_each_path_is_asked_at_least_once_and_no_more_than_the_time_allows(
    answering: Callable[[Answers], int],
) -> None:
    client = Client(answering(sends(HEAD + b"Content-Length: 0\r\n\r\n")), "localhost")
    paths = [f"/{number}" for number in range(5)]
    answers = drive(client, paths, itertools.count(), 0.0, lambda: True)
    assert [answer.path for answer in answers] == paths
    more = drive(client, paths, itertools.count(), 0.2, lambda: True)
    assert len(more) > 5
    assert more[5].path == "/0"


def test_no_more_is_asked_of_a_server_that_has_ended(
    answering: Callable[[Answers], int],
) -> None:
    client = Client(answering(sends(b"")), "localhost")
    left = iter([True, True, False])
    answers = drive(client, ["/"], itertools.count(), 60.0, lambda: next(left))
    assert [answer.failed for answer in answers] == [True, True]
