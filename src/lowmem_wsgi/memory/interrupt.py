"""A request that eats up the memory is interrupted while there is some left.

The ceiling alone lets a loop of small objects fill the heap to the last byte. Then the
interpreter has none for the error either: since 3.11 it may spin for ever, the GIL held, for
want of an int of 32 bytes (ceval.c, `lasti`). So before that a MemoryError is raised in the
thread that is at it, from outside: `PyThreadState_SetAsyncExc`. One large allocation too many
needs none of this: it fails by itself, and leaves room.

No figure of the system's says who is at it. The suspect is the request that has been computing
while the process grew: what waits for a client or a database does not grow.
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

# A request is suspected that was seen for so long (seconds), and had this share of the processor
# time that the process had since: more than one that waits, where some threads share the
# interpreter. (A share of the clock's time says nothing where a container has a tenth of a CPU.)
LEAST, SHARE = 0.005, 0.15
# Of two that have had nearly as much (this share of the other's), the younger is suspected. What a
# request has done is forgotten after so many seconds: a stream is not blamed for all that has come
# since it began.
NEARLY, FORGET = 0.8, 10.0
# A thread that leaves an app waits so long (seconds) at most for a strike to be over.
SETTLED = 1.0
# A request that has caught the first error is interrupted again: after so many seconds, or where
# the process has grown further by so much (bytes).
AGAIN, FURTHER = 0.1, 2 * MB
# Where our own code is.
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
# The file of the code that imports (importlib/_bootstrap.py is frozen into the interpreter).
_IMPORTLIB = "<frozen importlib._bootstrap>"


class Sight(NamedTuple):
    """A request when it was seen first: the time, processor seconds of its thread and of the
    process, bytes in use."""

    at: float
    spent: float
    of_all: float
    size: int


class Interrupt:
    """Watches the requests in flight, and raises MemoryError in one of them.

    `work` gives what is in flight: any key for a request, and the ident of its thread. `inside`
    are the code objects of which one runs, in that thread, as long as the app does, and `through`
    those of ours that may run between it and the app. Without them a thread is taken to be inside.
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
        self.striking = False  # while an error is about to be raised
        self._now = now
        self._spent = processor_seconds if spent is None else spent
        self._spent_by_all = spent_by_all
        self._raise_in = _raise_in if raise_in is None else raise_in
        self._first: dict[object, Sight] = {}
        self._struck: dict[object, tuple[float, int]] = {}  # when, and bytes in use then
        self._size = 0
        self._serving = (0, 0)  # the thread that runs all greenlets: its ident, the kernel's number
        self.suspect: object = None
        self.grown = 0  # bytes, since the suspect was seen first

    def begin(self) -> None:
        """Call it in a thread that serves requests, before `look`."""
        self._serving = original("_thread", "get_ident")(), original("_thread", "get_native_id")()

    def look(self, size: int = 0) -> bool:
        """Take the time that each request's thread has had; name the suspect, or none.

        `size` in bytes is what the process uses now. Return whether any request is in flight.
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
        """The requests that threads are at. Of greenlets, the one that runs: the others wait."""
        work = dict(self.work())
        if not work or not _has_greenlets():
            return work
        serving = self._serving[0]
        frame = self._frame_inside(sys._current_frames().get(serving))
        # The next request's frame may be at the same place.
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
        """Whether the thread runs code of an app; and imports nothing there, with `spare_imports`.

        Code of ours that the app has called, or that handles an error of it, is let be.
        """
        frame = sys._current_frames().get(ident)
        if self._inside and frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
            return False  # about to leave: it looks at `striking` on its way
        while frame is not None and frame.f_code not in self._inside:
            if spare_imports and frame.f_code.co_filename == _IMPORTLIB:
                return False
            ours = self._inside and frame.f_code.co_filename.startswith(_PACKAGE)
            if ours and frame.f_code not in self._through:
                return False
            frame = frame.f_back
        return frame is not None or not self._inside

    def settle(self) -> None:
        """Call it in a thread that leaves an app, where `striking`: wait for that to be over.

        A MemoryError meant for the request that comes now is too late, and dropped: it must not
        reach the server.
        """
        sleep, end = original("time", "sleep"), self._now() + SETTLED
        while True:
            with contextlib.suppress(MemoryError):
                while self.striking and self._now() < end:
                    sleep(0.0001)
                sleep(0)  # an error that is on its way comes here
                return

    def strike(self, *, spare_imports: bool = False) -> bool:
        """Raise MemoryError in the suspect's thread. Whether it was.

        `spare_imports`: not while the thread imports. A package that is half imported often cannot
        be imported again.
        """
        key, now = self.suspect, self._now()
        ident = self._at_work().get(key)
        if ident is None:
            return False
        at, size = self._struck.get(key, (float("-inf"), 0))
        if now - at < AGAIN and self._size - size < FURTHER:
            return False
        self._struck[key] = now, self._size
        # The thread may run on between any two lines of this. Before it leaves the app it looks at
        # `striking`, and waits.
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
        """Nothing is in flight any more, or this is a new child."""
        self._first, self._struck, self.suspect = {}, {}, None
        self.grown = 0
        self.striking = False


def _has_greenlets() -> bool:
    """Whether Python's threads are greenlets here, all of them in one thread of the system's."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def _foreign_native_id(ident: int) -> int | None:
    """Return the kernel's number for a thread that `threading` has not started (Apache); None for
    one that is gone.

    pthread_getcpuclockid(3) crashes for a thread that has ended, so this asks for threads that run
    Python alone. A server that starts them past `threading` keeps them.
    """
    if sys.platform != "linux" or ident not in sys._current_frames():
        return None
    return ~(time.pthread_getcpuclockid(ident) >> 3)  # see processor_seconds


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
