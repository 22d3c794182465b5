"""Measure the bytes in use by malloc, and give free heap memory back to the system (glibc).

The bytes in use show a leak where RSS does not. A route that frees memory leaves holes in the heap.
The leak of the next route fills the holes, and RSS grows only with a later, innocent route.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

# The assumed size (bytes) of an object of Python's own allocator, which reports the number of
# objects and not their sizes: 16 to 512 bytes each, a string or a small dictionary in the middle.
OBJECT = 96

# Fields of struct mallinfo2 and mallinfo (mallinfo(3)): bytes mapped singly (the fifth), and bytes
# in use in the heaps (the eighth).
FIELDS = 10
MAPPED, USED = 4, 7


def find_in_use() -> Callable[[], int] | None:
    """Return a function that returns the bytes in use; None without glibc.

    A call takes 3 to 30 µs if the heap is not in many pieces. The function keeps the GIL, so that
    the call does not wait to get the GIL back.
    """
    try:
        import ctypes  # loaded already, by malloc_trim

        library = ctypes.PyDLL(None)
        # Before glibc 2.33 there is only mallinfo, which counts in ints: up to 4 GB.
        new = hasattr(library, "mallinfo2")
        number = ctypes.c_size_t if new else ctypes.c_uint

        class Mallinfo(ctypes.Structure):
            _fields_ = [(f"f{index}", number) for index in range(FIELDS)]

        mallinfo = library.mallinfo2 if new else library.mallinfo
        mallinfo.argtypes, mallinfo.restype = [], Mallinfo
        mapped, used = f"f{MAPPED}", f"f{USED}"
        objects = getattr(sys, "getallocatedblocks", lambda: 0)
    except (ImportError, OSError, AttributeError, TypeError):
        return None

    def in_use() -> int:
        found = mallinfo()
        return int(getattr(found, mapped) + getattr(found, used) + OBJECT * objects())

    return in_use


def malloc_trim() -> bool:
    """Give free heap pages back to the system. Return whether there were any (False off glibc)."""
    return bool(_find_malloc_trim()(0))


@functools.cache
def _find_malloc_trim() -> Callable[[int], int]:
    try:
        import ctypes  # takes 0.4 MB, so load only when there is memory to give back

        trim = ctypes.CDLL(None).malloc_trim
        trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
        return trim
    except (ImportError, OSError, AttributeError, TypeError):
        return lambda _: 0
