"""The clients: each asks, waits for the whole answer, and asks again. None asks twice for one."""

from __future__ import annotations

import http.client
import itertools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

CLIENTS = 3  # the source document's three connections
# Seconds for one request, to its last byte.
PATIENCE = 30.0
# Seconds after which a client stops, though the list has not been asked once.
MOST_SECONDS = 60.0
# Seconds after a request that failed: a server in trouble is not asked a thousand times a second.
AFTER_FAILURE = 0.05
_PIECE = 1 << 16


class Answer(NamedTuple):
    """`status`: 0 where no whole answer came. `began` and `seconds`: by the monotonic clock."""

    path: str
    status: int
    began: float
    seconds: float
    kind: str = ""
    location: str = ""
    body: bytes = b""

    @property
    def failed(self) -> bool:
        return self.status == 0 or self.status >= 500


class Client:
    """Ask a server on this machine, on a new connection each time, as a proxy on HTTPS does."""

    def __init__(self, port: int, host: str, keep: int = 0) -> None:
        """`keep`: bytes of each answer's body to return; the rest is read as well."""
        self._port = port
        self._keep = keep
        self._headers = {
            "Host": host,
            "Connection": "close",
            "User-Agent": "lowmem-wsgi compare",
            "Accept": "text/html,*/*;q=0.8",
            "X-Forwarded-Proto": "https",
        }

    def get(self, path: str, patience: float = PATIENCE) -> Answer:
        """Ask once. An answer that is cut off, or takes longer than `patience` seconds, failed."""
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=patience)
        status, kind, location, body = 0, "", "", b""
        try:
            connection.request("GET", path, headers=self._headers)
            response = connection.getresponse()
            while piece := response.read1(_PIECE):  # read() waits for a full piece
                body += piece[: self._keep - len(body)] if self._keep > len(body) else b""
                if time.monotonic() - began > patience:
                    raise TimeoutError
            if response.length:  # fewer bytes than announced
                raise http.client.IncompleteRead(b"")
            kind = response.headers.get("Content-Type", "").lower()
            location = response.headers.get("Location", "")
            status = response.status
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        return Answer(path, status, began, time.monotonic() - began, kind, location, body)


def drive(
    client: Client,
    paths: Sequence[str],
    numbers: itertools.count[int],
    seconds: float,
    goes_on: Callable[[], bool],
) -> list[Answer]:
    """Ask for one path after the other, and again from the first, for so many seconds.

    Each path is asked once at least, if that takes no more than MOST_SECONDS. `numbers`: shared by
    the clients of a server. `goes_on`: False once the server has ended.
    """
    began = time.monotonic()
    answers = []
    for number in numbers:
        spent = time.monotonic() - began
        enough = spent > seconds and number >= len(paths)
        if enough or spent > max(seconds, MOST_SECONDS) or not goes_on():
            break
        answer = client.get(paths[number % len(paths)])
        answers.append(answer)
        if answer.failed:
            time.sleep(AFTER_FAILURE)
    return answers
