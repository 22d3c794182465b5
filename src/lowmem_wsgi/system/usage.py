"""Memory used and the limit, as one value."""

from __future__ import annotations

from typing import NamedTuple


class Usage(NamedTuple):
    """Bytes used, the limit in bytes, and the source of both figures."""

    used: int
    limit: int
    source: str


class Swap(NamedTuple):
    """Bytes of memory that are swapped out, and the most that may be, in bytes."""

    used: int
    limit: int
