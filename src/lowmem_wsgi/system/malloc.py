"""Bytes that this process has allocated and not freed: they tell a leak from a hole that is filled.

RSS does not: a route that frees what it made leaves room in the heap, the next one's leak goes in
there, and RSS grows with the one after it, which is innocent.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

# An object of the interpreter's own allocator, which tells how many there are and not how large:
# from 16 to 512 bytes each, a string or a small dictionary in the middle (bytes).
OBJECT = 96

# Fields of struct mallinfo2 and mallinfo (mallinfo(3)). What is mapped by itself (the fifth), and
# what is in use of the heaps (the eighth).
FIELDS = 10
MAPPED, USED = 4, 7


def find_in_use() -> Callable[[], int] | None:
    """A function that tells it, in 3 to 30 µs where the heap is not in many pieces; None off glibc.

    It keeps the interpreter's lock, so that it need not wait to get it back.
    """
    try:
        import ctypes  # loaded already, by malloc_trim

        library = ctypes.PyDLL(None)
        # Before glibc 2.33 there was only the one that counts in ints: up to 4 GB.
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
    """Give free heap pages back to the system; whether there were any. False off glibc."""
    return bool(_find_malloc_trim()(0))


@functools.cache
def _find_malloc_trim() -> Callable[[int], int]:
    try:
        import ctypes  # 0.4 MB, so only when there is something to give back

        trim = ctypes.CDLL(None).malloc_trim
        trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
        return trim
    except (ImportError, OSError, AttributeError, TypeError):
        return lambda _: 0
