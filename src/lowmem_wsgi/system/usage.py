"""What is used of what there is."""

from __future__ import annotations

from typing import NamedTuple


class Usage(NamedTuple):
    """Bytes used of the bytes there are, and who says so."""

    used: int
    limit: int
    source: str
