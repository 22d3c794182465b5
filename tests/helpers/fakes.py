"""A clock and a process that a test sets."""

from __future__ import annotations

MB = 1024 * 1024


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Process:
    """A process whose RSS a test sets; giving back brings it down to what is live."""

    def __init__(self, used: int = 50 * MB) -> None:
        self.rss = self.live = used
        self.given_back = 0

    def read(self) -> int:
        return self.rss

    def give_back(self) -> None:
        self.given_back += 1
        self.rss = self.live
