"""What is used of what there is."""

from __future__ import annotations


class Usage:
    """Bytes used of the bytes there are, and who says so."""

    __slots__ = ("limit", "source", "used")

    def __init__(self, used: int, limit: int, source: str) -> None:
        self.used = used
        self.limit = limit
        self.source = source

    def __repr__(self) -> str:
        return f"Usage({self.used}, {self.limit}, {self.source!r})"
