"""Clients that forgive nothing: an answer is whole, or it is a failure. None tries again."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from .servers import SLOWER


class Answer(NamedTuple):
    path: str
    sent: float | None  # when all of the request had left (monotonic); None where it could not
    status: int  # 0 where no answer came, or not a whole one
    text: str  # or the error


class Crowd:
    """Some clients, a thread each, that ask until `stop` or for `most` answers in all."""

    def __init__(
        self,
        port: int,
        clients: int,
        paths: tuple[str, ...],
        *,
        most: int | None = None,
        keep_alive: bool = False,
        pause: float = 0,
    ) -> None:
        self.answers: list[Answer] = []
        self._port = port
        self._paths = itertools.cycle(paths)
        self._numbers = iter(range(most)) if most is not None else itertools.count()
        self._keep_alive = keep_alive
        self._pause = pause
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    @property
    def failed(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status != 200]

    def stop(self) -> None:
        self._stopped.set()

    def join(self, seconds: float = 60) -> None:
        end = time.monotonic() + seconds * SLOWER
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        assert not any(thread.is_alive() for thread in self._threads), "a client got no answer"

    def _ask_on(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30 * SLOWER)
        for _ in self._numbers:
            if self._stopped.is_set():
                break
            self.answers.append(self._ask(connection, next(self._paths)))
            if self.answers[-1].sent is None:  # nobody is there any more
                break
            self._stopped.wait(self._pause)
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, path: str) -> Answer:
        sent = None
        try:
            headers = {} if self._keep_alive else {"Connection": "close"}
            connection.request("GET", path, headers=headers)
            sent = time.monotonic()
            response = connection.getresponse()
            answer = Answer(path, sent, response.status, response.read().decode())
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return Answer(path, sent, 0, repr(error))
        if not self._keep_alive:
            connection.close()
        return answer


@contextlib.contextmanager
def crowd(
    port: int,
    clients: int,
    *paths: str,
    most: int | None = None,
    keep_alive: bool = False,
    pause: float = 0,
) -> Iterator[Crowd]:
    """Clients that ask until the block ends, or for `most` requests; then all have answers."""
    found = Crowd(port, clients, paths, most=most, keep_alive=keep_alive, pause=pause)
    try:
        yield found
        if most is None:
            found.stop()
        found.join()
    finally:
        found.stop()
