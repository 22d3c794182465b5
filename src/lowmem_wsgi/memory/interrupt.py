"""Interrupt a request that uses up the memory, while some memory is left.

With the ceiling alone, a loop of small objects fills the heap to the last byte. Then the
interpreter has no memory to raise the error: since Python 3.11 the interpreter may spin for ever,
holding the GIL, because an int of 32 bytes cannot be allocated (ceval.c, `lasti`). So LowMemory
raises a MemoryError in the request's thread earlier, from another thread
(`PyThreadState_SetAsyncExc`). A single allocation that is too large needs no interrupt: the
allocation fails and leaves room.

The system reports no figure of memory by thread. LowMemory suspects the request that has used the
processor while the process grew: a request that waits for a client or a database does not grow.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from types import CodeType, FrameType
from typing import Any, NamedTuple

from ..settings import MB
from ..system.native import original

# LowMemory suspects a request after LEAST seconds, if that request has used SHARE of the process's
# processor time since. A request that waits uses less, where several threads share the interpreter.
# (A share of wall-clock time means nothing in a container with a tenth of a CPU.)
LEAST, SHARE = 0.005, 0.15
# If a younger request has used NEARLY as much as another (a share), the younger is suspected. After
# FORGET seconds LowMemory measures a request from zero again, so that a long stream is not blamed
# for all the growth since the stream began.
NEARLY, FORGET = 0.8, 10.0
# A thread that leaves an app waits at most this long (seconds) for a strike to be over.
SETTLED = 1.0
# A request that has caught the first error is interrupted again: after AGAIN seconds, or when the
# process has grown by FURTHER bytes more.
AGAIN, FURTHER = 0.1, 2 * MB
# The directory of LowMemory's own code.
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
# The file of the code that imports (importlib/_bootstrap.py is frozen into the interpreter).
_IMPORTLIB = "<frozen importlib._bootstrap>"


class Sight(NamedTuple):
    """A request at the first look: time, processor seconds of its thread and of the process, and
    bytes in use."""

    at: float
    spent: float
    of_all: float
    size: int


class Interrupt:
    """Watch the requests in flight, and raise MemoryError in one of them.

    `work`: return the requests in flight, as any key of a request mapped to the ident of its
    thread. `inside`: code objects; while an app runs, its thread runs one of them. `through`: code
    objects of LowMemory that may run between `inside` and the app. Without `inside`, every thread
    counts as inside. `now`: a monotonic clock in seconds. `spent`, `spent_by_all`: return the
    processor seconds of a thread (None: not known) and of the process.
    """

    def __init__(
        self,
        work: Callable[[], Mapping[Any, int]] = dict,
        inside: Collection[CodeType] = (),
        through: Collection[CodeType] = (),
        *,
        now: Callable[[], float] = time.monotonic,
        spent: Callable[[int | None], float | None] | None = None,
        spent_by_all: Callable[[], float] = time.process_time,
        raise_in: Callable[[int, type[BaseException] | None], bool] | None = None,
    ) -> None:
        self.work = work
        self._inside = frozenset(inside)
        self._through = frozenset(through)
        self.striking: bool = False  # while an error is about to be raised
        self._now = now
        self._spent = processor_seconds if spent is None else spent
        self._spent_by_all = spent_by_all
        self._raise_in = _raise_in if raise_in is None else raise_in
        self._first: dict[object, Sight] = {}
        self._struck: dict[object, tuple[float, int]] = {}  # when, and bytes in use then
        self._size = 0
        self._serving = (0, 0)  # the thread that runs all greenlets: its ident, the kernel's number
        self.suspect: object = None
        self.grown: int = 0  # bytes since the first look at the suspect

    def begin(self) -> None:
        """Call this in a thread that serves requests, before `look`."""
        self._serving = original("_thread", "get_ident")(), original("_thread", "get_native_id")()

    def look(self, size: int = 0) -> bool:
        """Read the processor time of each request's thread; set `suspect`, or None.

        `size`: bytes that the process uses now. Return whether any request is in flight.
        """
        threads = self._at_work()
        now, natives = self._now(), self._native_ids(threads.values())
        first: dict[object, Sight] = {}
        of_all = self._spent_by_all()
        most = 0.0
        suspect: object = None
        grown = 0
        for key, ident in threads.items():
            spent = self._spent(natives.get(ident))
            if spent is None:
                continue
            sight = self._first.get(key)
            if sight is None or size < sight.size or now - sight.at > FORGET:
                sight = Sight(now, spent, of_all, size)
            first[key] = sight
            used = spent - sight.spent
            enough = used > most * NEARLY and used >= SHARE * (of_all - sight.of_all)
            if enough and now - sight.at >= LEAST:
                most, suspect, grown = max(most, used), key, size - sight.size
        self.suspect, self.grown = suspect, grown
        self._first = first
        self._struck = {key: then for key, then in self._struck.items() if key in threads}
        self._size = size
        return bool(threads)

    def _at_work(self) -> dict[object, int]:
        """Return the requests that threads serve; of greenlets only the running one."""
        work = dict(self.work())
        if not work or not _has_greenlets():
            return work
        serving = self._serving[0]
        frame = self._frame_inside(sys._current_frames().get(serving))
        # With the requests in the key, because the next request's frame may have the same id.
        return {} if frame is None else {(id(frame), *work): serving}

    def _native_ids(self, idents: Collection[int] = ()) -> dict[int | None, int | None]:
        """Return the kernel's number for each thread of Python's and of `idents`, by ident."""
        if _has_greenlets():
            return dict([self._serving])
        found = {thread.ident: thread.native_id for thread in threading.enumerate()}
        main = threading.main_thread()
        if self._spent(main.native_id) is None:
            # After a fork Python may still have the parent's number (before 3.12).
            found[main.ident] = os.getpid()
        for ident in idents:
            if ident not in found:
                found[ident] = _foreign_native_id(ident)
        return found

    def _frame_inside(self, frame: FrameType | None) -> FrameType | None:
        while frame is not None and frame.f_code not in self._inside:
            frame = frame.f_back
        return frame

    def _may_raise_in(self, ident: int, spare_imports: bool) -> bool:
        """Return whether the thread runs an app's code and may be interrupted there.

        False while the thread imports, with `spare_imports`. False in LowMemory's own code that the
        app has called or that handles an error of the app.
        """
        frame = sys._current_frames().get(ident)
        if self._inside and frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
            return False  # about to leave the app; the thread then checks `striking`
        while frame is not None and frame.f_code not in self._inside:
            if spare_imports and frame.f_code.co_filename == _IMPORTLIB:
                return False
            ours = self._inside and frame.f_code.co_filename.startswith(_PACKAGE)
            if ours and frame.f_code not in self._through:
                return False
            frame = frame.f_back
        return frame is not None or not self._inside

    def settle(self) -> None:
        """Wait for a strike to be over. Call this in a thread that leaves an app while `striking`.

        A MemoryError that arrives now is too late for the request. Drop the error, so that the
        server does not see it.
        """
        sleep, end = original("time", "sleep"), self._now() + SETTLED
        while True:
            with contextlib.suppress(MemoryError):
                while self.striking and self._now() < end:
                    sleep(0.0001)
                sleep(0)  # a pending error is raised here
                return

    def strike(self, *, spare_imports: bool = False) -> bool:
        """Raise MemoryError in the suspect's thread. Return whether LowMemory did.

        `spare_imports`: do not raise while the thread imports. A package that is half imported
        often cannot be imported again.
        """
        key, now = self.suspect, self._now()
        ident = self._at_work().get(key)
        if ident is None:
            return False
        at, size = self._struck.get(key, (float("-inf"), 0))
        if now - at < AGAIN and self._size - size < FURTHER:
            return False
        self._struck[key] = now, self._size
        # The thread may run on between any two lines of this method. Before the thread leaves the
        # app, the thread checks `striking` and waits.
        self.striking = True
        try:
            if not self._may_raise_in(ident, spare_imports):
                del self._struck[key]
                return False
            if self._raise_in(ident, MemoryError) and self._at_work().get(key) == ident:
                return True
            self._raise_in(ident, None)  # the request has ended meanwhile
            return False
        finally:
            self.striking = False

    def forget(self) -> None:
        """Reset: no request is in flight any more, or this is a new child process."""
        self._first, self._struck, self.suspect = {}, {}, None
        self.grown = 0
        self.striking = False


def _has_greenlets() -> bool:
    """Return whether Python's threads are greenlets here, all in one native thread."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def _foreign_native_id(ident: int) -> int | None:
    """Return the kernel's number for a thread that `threading` did not start (Apache's threads).

    None for a thread that has ended. pthread_getcpuclockid(3) crashes for such a thread, so
    LowMemory calls it only for threads that run Python. A server that starts threads without
    `threading` keeps its threads.
    """
    if sys.platform != "linux" or ident not in sys._current_frames():
        return None
    return ~(time.pthread_getcpuclockid(ident) >> 3)  # see processor_seconds


def processor_seconds(thread: int | None) -> float | None:
    """Return the processor seconds of a thread of this process; None if the thread has ended.

    `thread`: the kernel's number. None also where the system does not report the time (not Linux).
    Makes no system call that releases the GIL.

    `pthread_getcpuclockid` would compute the clock's number from the ident, and would crash for a
    thread that has ended or for a greenlet. So this function computes the number, as the kernel
    does.
    """
    if thread is None or sys.platform != "linux":
        return None
    try:
        return time.clock_gettime(~thread << 3 | 6)  # the clock of a thread, time that it ran
    except OSError:
        return None


def _raise_in(ident: int, kind: type[BaseException] | None) -> bool:
    """Raise `kind` in the thread; with None, cancel an exception that is not raised yet.

    Return whether the interpreter found the thread.
    """
    try:
        import ctypes  # loaded already by malloc_trim

        set_async = ctypes.pythonapi.PyThreadState_SetAsyncExc
        raised = None if kind is None else ctypes.py_object(kind)
        return bool(set_async(ctypes.c_ulong(ident), raised))
    except (ImportError, AttributeError):
        return False
