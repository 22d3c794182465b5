"""Measure the bytes in use by malloc, and give free heap memory back to the system (glibc).

The bytes in use show a leak where RSS does not. A route that frees memory leaves holes in the heap.
The leak of the next route fills the holes, and RSS grows only with a later, innocent route.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from .native import has_gil

# The assumed size (bytes) of an object of Python's own allocator, which reports the number of
# objects and not their sizes: 16 to 512 bytes each, a string or a small dictionary in the middle.
OBJECT = 96

# Fields of struct mallinfo2 and mallinfo (mallinfo(3)), in bytes: mapped singly, in use in the
# heaps, free in the heaps, and of that at the end of the first heap.
FIELDS = 10
MAPPED, USED, FREE, TOP = 4, 7, 8, 9

# The sizes of holes, their headers included, and free blocks that glibc's cache of a thread may
# hold and counts as in use (bytes).
HOLES, HEADER = (*(1 << power for power in range(22, 11, -1)), *range(4080, 16, -16)), 8
CACHED = 256 * 1024

# Bytes that malloc is asked for, to see whether glibc counts them.
PROBE = 1024 * 1024


# Domains of Python's allocators (enum PyMemAllocatorDomain).
RAW, OBJECTS = 0, (1, 2)

# Variable of glibc -> the parameter of mallopt(3) that sets the same at run time, and the value:
# one heap for all threads, so that free memory is in one place; blocks from 4 MB and free memory
# from 8 MB at the heap's end go back at once.
MALLOPT = {
    "MALLOC_ARENA_MAX": (-8, 1),
    "MALLOC_TRIM_THRESHOLD_": (-1, 8 * 1024 * 1024),
    "MALLOC_MMAP_THRESHOLD_": (-3, 4 * 1024 * 1024),
}


# The variables that the user has set to nothing, so that they stay unset: names with commas.
UNSET = "_LOWMEM_UNSET"


def use_system_malloc(
    environ: Mapping[str, str] = os.environ, *, gil: bool | None = None
) -> Callable[[], None] | None:
    """Let the C library hold the new objects from now on. Return a function that undoes this.

    Python's own allocator gives memory back only in arenas of 1 MB, and one small object keeps an
    arena. The C library gives back any free page (malloc_trim). Objects made before stay where they
    are, in Python's allocator, which needs less memory for them.

    As the C API asks for at run time, the new allocator wraps the old one: new blocks come from the
    allocator of the domain "raw", and the old `realloc` and `free` hand over to that allocator what
    is not theirs (PyMem_SetAllocator). Nothing of Python runs in between.

    One kind of block stays with Python's allocator, because the old `realloc` makes it: the items
    of a list that grows, up to 512 bytes (64 items) a list.

    None, and nothing is done, without glibc, without a GIL, with another allocator than Python's
    default (such as under tracemalloc), and if `environ` has PYTHONMALLOC. A variable of MALLOPT in
    `environ`, or named in its UNSET, stands too; what mallopt sets is not undone. Afterwards
    `sys.getallocatedblocks` counts wrongly. `gil`: for tests.
    """
    if not (has_gil() if gil is None else gil) or environ.get("PYTHONMALLOC"):
        return None
    try:
        import ctypes

        library, python = ctypes.CDLL(None), ctypes.pythonapi
        get, put, mallopt = python.PyMem_GetAllocator, python.PyMem_SetAllocator, library.mallopt
        library.gnu_get_libc_version  # noqa: B018  # glibc alone has it
        if not is_glibcs():
            return None
    except (ImportError, OSError, AttributeError, MemoryError):  # a sandbox may forbid ctypes
        return None

    class Allocator(ctypes.Structure):  # PyMemAllocatorEx
        _fields_ = [
            (name, ctypes.c_void_p) for name in ("ctx", "malloc", "calloc", "realloc", "free")
        ]

    def current(domain: int) -> Any:
        found = Allocator()
        get(domain, ctypes.byref(found))
        return found

    raw, before = current(RAW), [current(domain) for domain in OBJECTS]
    if any(found.ctx is not None for found in (raw, *before)):
        return None
    if all(found.malloc == raw.malloc for found in before):
        return lambda: None  # done already: by another interpreter of this process
    mixed = [Allocator(None, raw.malloc, raw.calloc, old.realloc, old.free) for old in before]
    for parameter, value in missing(environ).values():
        mallopt(parameter, value)
    for domain, new in zip(OBJECTS, mixed, strict=True):
        put(domain, ctypes.byref(new))

    def undo() -> None:
        for domain, new, old in zip(OBJECTS, mixed, before, strict=True):
            if bytes(current(domain)) == bytes(new):  # else somebody wraps ours
                put(domain, ctypes.byref(old))

    return undo


def missing(environ: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Return the rows of MALLOPT that the user has neither set nor kept unset.

    GLIBC_TUNABLES sets the same: glibc.malloc.arena_max for MALLOC_ARENA_MAX.
    """
    known = {*environ, *environ.get(UNSET, "").split(",")}
    tunables = environ.get("GLIBC_TUNABLES", "")
    return {
        name: row
        for name, row in MALLOPT.items()
        if name not in known and f"{_tunable(name)}=" not in tunables
    }


def _tunable(name: str) -> str:
    """Return the name in GLIBC_TUNABLES of a variable of MALLOPT."""
    return "glibc." + name.rstrip("_").lower().replace("_", ".", 1)


def in_force(environ: Mapping[str, str], *, switched: bool) -> dict[str, str | None]:
    """Return what holds in this process of PYTHONMALLOC and MALLOC_ARENA_MAX; None: unset.

    `switched`: whether use_system_malloc has had an effect, which is that of the variables.
    """
    found = {name: environ.get(name) for name in ("PYTHONMALLOC", "MALLOC_ARENA_MAX")}
    if switched:
        found["PYTHONMALLOC"] = "malloc"
        if "MALLOC_ARENA_MAX" in missing(environ):
            found["MALLOC_ARENA_MAX"] = str(MALLOPT["MALLOC_ARENA_MAX"][1])
    return found


def find_in_use(*, objects: bool = True) -> Callable[[], int] | None:
    """Return a function that returns the bytes in use; None without glibc's malloc.

    `objects`: also count those that Python's own allocator holds.

    A call takes 3 to 30 µs if the heap is not in many pieces. The function keeps the GIL, so that
    the call does not wait to get the GIL back.
    """
    try:
        if not is_glibcs():
            return None
        mallinfo = _find_mallinfo()
    except (ImportError, OSError, AttributeError, TypeError):
        return None
    mapped, used = f"f{MAPPED}", f"f{USED}"
    blocks = getattr(sys, "getallocatedblocks", lambda: 0) if objects else lambda: 0

    def in_use() -> int:
        found = mallinfo()
        return int(getattr(found, mapped) + getattr(found, used) + OBJECT * blocks())

    return in_use


def is_glibcs() -> bool:
    """Return whether malloc is glibc's own; another may be preloaded (LD_PRELOAD), as jemalloc.

    Raises AttributeError without glibc, and OSError or ImportError without ctypes.
    """
    mallinfo, malloc, free = _find_mallinfo(), *_malloc_and_free()

    def in_use() -> int:
        found = mallinfo()
        return int(getattr(found, f"f{MAPPED}") + getattr(found, f"f{USED}"))

    before = in_use()
    block = malloc(PROBE)
    counted = in_use() - before >= PROBE
    free(block)
    return counted


def _malloc_and_free() -> tuple[Any, Any]:
    import ctypes

    library = ctypes.PyDLL(None)
    malloc, free = library.malloc, library.free
    malloc.argtypes, malloc.restype = [ctypes.c_size_t], ctypes.c_size_t
    free.argtypes, free.restype = [ctypes.c_size_t], None
    return malloc, free


def _find_mallinfo() -> Callable[[], Any]:
    """Return glibc's mallinfo2, or mallinfo before glibc 2.33, which counts up to 4 GB only."""
    import ctypes  # loaded already, by malloc_trim

    library = ctypes.PyDLL(None)
    new = hasattr(library, "mallinfo2")
    number = ctypes.c_size_t if new else ctypes.c_uint

    class Mallinfo(ctypes.Structure):
        _fields_ = [(f"f{index}", number) for index in range(FIELDS)]

    mallinfo = library.mallinfo2 if new else library.mallinfo
    mallinfo.argtypes, mallinfo.restype = [], Mallinfo
    return mallinfo


def fill_holes() -> int:
    """Take, for good, each free block of this thread's heap that lies between blocks in use.

    For a process that is about to fork. A child would put its first objects into these holes, and
    so copy a page for each hole that it fills. With the holes filled, the child's objects are side
    by side on new pages. The holes' pages are in memory anyway.

    Return the bytes taken, which are no more than were free; 0 without glibc.
    """
    try:
        import ctypes

        mallinfo, malloc, free = _find_mallinfo(), *_malloc_and_free()
        sbrk = ctypes.PyDLL(None).sbrk
        sbrk.argtypes, sbrk.restype = [ctypes.c_ssize_t], ctypes.c_size_t
    except (ImportError, OSError, AttributeError, TypeError):
        return 0
    info = mallinfo()
    # What is free below the end is a hole. malloc takes from the end only where no hole is large
    # enough.
    end = sbrk(0) - getattr(info, f"f{TOP}")
    left = most = getattr(info, f"f{FREE}") - getattr(info, f"f{TOP}") + CACHED
    for size in HOLES:
        while size <= left:
            block = malloc(size - HEADER)
            if not 0 < block < end:
                free(block)
                break
            left -= size
    return int(most - left)


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
