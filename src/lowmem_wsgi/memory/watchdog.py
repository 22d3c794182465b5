"""The watchdog: a thread that watches long requests and interrupts the one that uses up the memory.

A loop of small objects can begin to fill 1 MB a millisecond at any moment. A request wakes the
watchdog if the watchdog sleeps. The watchdog stays awake while any request is in flight. The less
memory is left, the more often the watchdog looks: memory fills at 4 GB/s at most, so half of what
was left is still left at the next look.

The watchdog is a native thread, also under gevent: there a Python thread would wait for the loop
that the watchdog must interrupt. So the watchdog logs nothing and waits for none of Python's locks.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from .. import log
from ..settings import MB
from ..system.native import original
from .ceiling import Ceiling
from .interrupt import Interrupt

# Seconds a request runs before the first look, unless memory is nearly full.
FIRST = 0.02
# The seconds to the next look are the bytes left divided by FILLED_AT (bytes a second), but at
# least OFTEN and at most SELDOM.
FILLED_AT, OFTEN, SELDOM = 8192 * MB, 0.002, 0.1
# Bytes left at which the watchdog interrupts the suspect: AT, or AT_SHARE of the limit if that is
# less. About 50 ms before memory is full.
AT, AT_SHARE = 48 * MB, 1 / 4
# Each look divides the memory left among the processes again. So the watchdog acts on a process's
# own share only at OWN_SHARE of those bytes. The suspect must have grown by FAIR_SHARE of the
# memory left.
OWN_SHARE, FAIR_SHARE = 1 / 3, 1 / 2
# A thread that imports is interrupted only with this much (bytes) or less left in the container.
LAST = 8 * MB
# With less than NEAR bytes left, the interpreter hands over its lock within PROMPTLY seconds
# (usually 0.005). Each system call of the watchdog releases the lock and then waits that long.
NEAR, PROMPTLY = 128 * MB, 0.0005


def next_look(left: int | None) -> float:
    """Return the seconds to the next look, with `left` bytes left; None: not known."""
    return SELDOM if left is None else min(max(left / FILLED_AT, OFTEN), SELDOM)


def is_time(whole: int, left: int, limit: int, grown: int) -> bool:
    """Return whether to interrupt the suspect. All figures are in bytes.

    `whole`: left in the container; `left`: left for this process; `limit`: the container's;
    `grown`: growth since the suspect was first seen. A request that has grown by little goes on:
    the container was full before that request.
    """
    at = min(AT, limit * AT_SHARE)
    near = whole <= at or left <= at * OWN_SHARE
    return near and grown >= max(MB, min(whole, at) * FAIR_SHARE)


class Watchdog:
    """The watchdog of one process.

    Call `start` while there is room for a thread, and `wake` at each request that finds the
    watchdog `asleep`.
    """

    def __init__(self, ceiling: Ceiling, interrupt: Interrupt) -> None:
        self._ceiling = ceiling
        self._interrupt = interrupt
        self._usual: float | None = None  # the usual switch interval, while PROMPTLY is set
        self._fault = ""  # the error that ended the thread
        self.after_fork()

    def after_fork(self) -> None:
        """Restore the switch interval in a new child process, which has no watchdog thread."""
        self._relax()
        self.asleep: bool = False  # True: the thread waits for `wake`
        self._post: Any = None  # the running thread's lock; another value stops the thread

    def start(self) -> None:
        """Start the thread, if there is a ceiling to watch. Idempotent while the thread runs.

        Raises RuntimeError if no thread can start.
        """
        if self._post is not None or not self._ceiling.possible():
            return
        fault, self._fault = self._fault, ""
        if fault:
            log.limited(
                logging.ERROR, "watchdog", "The watchdog failed, and starts again: %s", fault
            )
        self._interrupt.begin()
        self._post = post = original("_thread", "allocate_lock")()
        post.acquire()
        try:
            original("_thread", "start_new_thread")(self._run, (post,))
        except BaseException:
            self._post = None
            raise

    def stop(self) -> None:
        """End the thread. Does not wait."""
        post, self._post = self._post, None
        self.asleep = False
        if post is not None:
            _release(post)

    def wake(self) -> None:
        """Wake the watchdog as a request begins. Call this if `asleep`; harmless otherwise.

        Any thread may call this.
        """
        self.asleep = False
        post = self._post
        if post is not None:
            _release(post)

    def look(self) -> float | None:
        """Adjust the ceiling, and interrupt the suspect if too little memory is left.

        Return the seconds to the next look; None when no request is in flight.
        """
        try:
            return self._look()
        except MemoryError:  # the request that holds the memory is about to get the same error
            self._ceiling.open_reserve()
            return OFTEN

    def _look(self) -> float | None:
        ceiling, interrupt = self._ceiling, self._interrupt
        ceiling.keep()
        if not interrupt.look(ceiling.anonymous) and not interrupt.work():
            return None
        left, usage = ceiling.left, ceiling.usage
        if left is None or usage is None:
            return SELDOM
        if left <= NEAR:
            self._hurry()
        else:
            self._relax()
        if is_time(ceiling.whole, left, usage.limit, interrupt.grown):
            ceiling.open_reserve()
            interrupt.strike(spare_imports=usage.limit - usage.used > LAST)
        return next_look(left)

    def _run(self, post: Any) -> None:
        try:
            while post is self._post:
                self._watch(post)
                if post is not self._post:  # stopped: no caller will wake this thread again
                    break
                self._relax()
                self._interrupt.forget()
                self.asleep = True
                if self._interrupt.work():  # a request that came before `asleep` was set
                    self.asleep = False
                else:
                    post.acquire()
        except BaseException as error:  # `start` logs this and starts another thread
            self._fault = f"{type(error).__name__}: {error}"
        finally:
            if post is self._post:
                self._post = None
            self._relax()

    def _watch(self, post: Any) -> None:
        """Look again and again while requests are in flight, until stopped."""
        left = self._ceiling.left
        pause: float | None = 0.0 if left is not None and left <= NEAR else FIRST
        looked = False
        while pause is not None:
            post.acquire(True, pause)
            if post is not self._post:
                return
            # Look once more after the last request has ended. A look during that request's growth
            # counts the growth twice, and such a limit would refuse the next request.
            pause = self.look() if looked or self._interrupt.work() else None
            looked = True

    def _hurry(self) -> None:
        if self._usual is None:
            self._usual = sys.getswitchinterval()
            sys.setswitchinterval(min(self._usual, PROMPTLY))

    def _relax(self) -> None:
        usual, self._usual = self._usual, None
        if usual is not None:
            sys.setswitchinterval(usual)


def _release(post: Any) -> None:
    try:
        post.release()
    except RuntimeError:  # released just now by another thread
        pass
