"""Decide how many workers fit into the memory."""

from __future__ import annotations

from ..settings import MB

# What a worker needs for a large request, in bytes.
FOR_A_REQUEST = 32 * MB


def fitting(warn: int, loaded: int, cores: float) -> int:
    """Return how many workers stay under `warn` bytes, with `loaded` bytes in the master.

    A new worker shares the loaded memory with the master. In time each worker has a copy of its
    own and as much again, and needs FOR_A_REQUEST. At most two workers a core, at least one.
    """
    each = 2 * loaded + FOR_A_REQUEST
    return max(1, min((warn - loaded) // each, int(2 * cores)))
