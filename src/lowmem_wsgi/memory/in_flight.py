"""Keep the requests in flight in this process, of all its apps."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable


class InFlight:
    """The requests in flight. Thread-safe without a lock: the interpreter makes steps atomic."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        # A request's number -> the ident of its thread, method, path, and the app's id.
        self._requests: dict[int, tuple[int, str, str, int]] = {}
        # Return how many requests are in flight. (The dict's own method: each request calls this.)
        self.count: Callable[[], int] = self._requests.__len__
        self.latest: int = 0  # the number of the request that came last

    def enter(self, method: str, path: str, app: int) -> int:
        """Note a request in this thread, and return the request's number. `leave` must follow."""
        self.latest = number = next(self._numbers)
        self._requests[number] = threading.get_ident(), method, path, app
        return number

    def leave(self, number: int) -> None:
        """Remove a request that is over. Idempotent; takes no lock: a finalizer may call this."""
        self._requests.pop(number, None)

    def rank(self, number: int) -> int:
        """Return how many requests of the same app are in flight, up to and including this one."""
        requests = self._requests.copy()
        app = requests[number][3]
        return sum(request[3] == app and other <= number for other, request in requests.items())

    def threads(self) -> dict[int, int]:
        """Return the ident of each request's thread, by the request's number."""
        return {number: request[0] for number, request in self._requests.copy().items()}

    def here(self) -> tuple[str, str] | None:
        """Return method and path of the latest request that this thread serves, or None."""
        thread = threading.get_ident()
        requests = reversed(self._requests.copy().values())
        return next((request[1:3] for request in requests if request[0] == thread), None)

    def number_here(self) -> int:
        """Return the number of the latest request that this thread serves; 0 for none."""
        thread = threading.get_ident()
        requests = reversed(self._requests.copy().items())
        return next((number for number, request in requests if request[0] == thread), 0)

    def has(self, number: int) -> bool:
        return number in self._requests

    @property
    def total(self) -> int:
        """How many requests have come since the process began."""
        return value(self._numbers) - 1

    def forget(self) -> None:
        """Forget all requests: in a new child process they are the parent's."""
        self._requests.clear()


class Counters:
    """Counters by name. Thread-safe without a lock."""

    def __init__(self, *names: str) -> None:
        self._counts = {name: itertools.count() for name in names}

    def add(self, name: str) -> None:
        next(self._counts[name])

    def read(self) -> dict[str, int]:
        return {name: value(count) for name, count in self._counts.items()}


def value(count: itertools.count[int]) -> int:
    """Return the next value of `count` without taking it. (Only `repr` shows that value.)"""
    return int(repr(count)[len("count(") : -1])
