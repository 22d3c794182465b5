"""A request that eats up the memory is interrupted while there is some left.

The ceiling alone lets a loop of small objects fill the heap to the last byte. Then the
interpreter has none for the error either: since 3.11 it may spin for ever, the GIL held, for
want of an int of 32 bytes (ceval.c, `lasti`). So shortly before that MemoryError is raised in
the thread that is at it, from outside: `PyThreadState_SetAsyncExc`. One large allocation too
many needs none of this: it fails by itself, and leaves room.

Who is at it is not told by any figure of the system's. It is the one that has been computing:
growth takes time, and what waits for a client or a database does not grow.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping

# A request is suspected that was seen for so long (seconds), and had this share of that time from
# the processor: more than one that waits, where some threads share the interpreter.
LEAST, SHARE = 0.02, 0.15
# The same request is interrupted again after so many seconds: it may have caught the first.
AGAIN = 0.1


class Interrupt:
    """`work` gives what is in flight: any key for a request, and the ident of its thread."""

    def __init__(
        self,
        work: Callable[[], Mapping[object, int]] = dict,
        *,
        now: Callable[[], float] = time.monotonic,
        spent: Callable[[int | None], float | None] | None = None,
    ) -> None:
        self.work = work
        self._now = now
        self._spent = processor_seconds if spent is None else spent
        self._first: dict[object, tuple[float, float]] = {}  # key -> (when seen first, its time)
        self._struck: dict[object, float] = {}
        self.suspect: object = None
        self.looked = 0.0  # when it was looked first

    def look(self) -> None:
        """Take the time that each request's thread has had; name the suspect, or none."""
        work = dict(self.work())
        now, native = self._now(), {t.ident: t.native_id for t in threading.enumerate()}
        first: dict[object, tuple[float, float]] = {}
        most, self.suspect = 0.0, None
        for key, ident in work.items():
            spent = self._spent(native.get(ident))
            if spent is None:
                continue
            first[key] = since, before = self._first.get(key, (now, spent))
            used = spent - before
            if now - since >= LEAST and used > most and used >= SHARE * (now - since):
                most, self.suspect = used, key
        self._first, self.looked = first, self.looked or now
        self._struck = {key: at for key, at in self._struck.items() if key in work}

    def strike(self) -> bool:
        """Raise MemoryError in the suspect's thread. Whether it was."""
        key, now = self.suspect, self._now()
        ident = self.work().get(key)
        if ident is None or now - self._struck.get(key, 0.0) < AGAIN:
            return False
        self._struck[key] = now
        if _raise_in(ident, MemoryError) and self.work().get(key) == ident:
            return True
        _raise_in(ident, None)  # the request has ended meanwhile: the next one is not to have it
        return False

    def knows(self) -> bool:
        """Whether it has looked for long enough to suspect anybody."""
        return self.looked > 0 and self._now() - self.looked > LEAST

    def forget(self) -> None:
        """Memory is well again, or this is a new child."""
        self._first, self._struck, self.suspect = {}, {}, None
        self.looked = 0.0


def processor_seconds(thread: int | None) -> float | None:
    """Processor time of a thread of this process, by the system's number for it; None where it is
    gone, or not told. No system call that lets go of the interpreter's lock.

    `pthread_getcpuclockid` would make the clock's number of the ident, and crash where the thread
    has ended meanwhile, or is a greenlet. So it is made here, as the kernel does.
    """
    if thread is None or sys.platform != "linux":
        return None
    try:
        return time.clock_gettime(~thread << 3 | 6)  # a thread's, and what it ran
    except OSError:
        return None


def _raise_in(ident: int, kind: type[BaseException] | None) -> bool:
    """Raise it in that thread, or (None) take back what is not raised yet."""
    try:
        import ctypes  # loaded already, by malloc_trim

        set_async = ctypes.pythonapi.PyThreadState_SetAsyncExc
        raised = None if kind is None else ctypes.py_object(kind)
        return bool(set_async(ctypes.c_ulong(ident), raised))
    except (ImportError, AttributeError):
        return False
