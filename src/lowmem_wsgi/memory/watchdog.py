"""The thread that watches requests which take their time, and stops the one that eats the memory.

A loop of small objects fills 1 MB a millisecond, from one moment to the next. The watchdog is woken
by a request that comes while it sleeps, and stays awake while any is in flight. It looks the more
often the less is left: memory is filled at 4 GB/s at most, so that half of it is left at each look.

It is a thread of the system's own, also under gevent, where a thread of Python's would wait for the
very loop that it is to interrupt. So it logs nothing and waits for no lock of Python's.
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

# A request that is over sooner (seconds) is never looked at, unless memory is nearly full.
FIRST = 0.02
# Bytes left, divided by so many a second, are the seconds to the next look; at least and at most.
FILLED_AT, OFTEN, SELDOM = 8192 * MB, 0.002, 0.1
# With so much left (bytes), or this share of the limit where that is less, the suspect is
# interrupted: about 50 ms before the wall.
AT, AT_SHARE = 48 * MB, 1 / 4
# A process's own share of what is left is divided anew at each look, so it may come down to this
# share of that. The suspect must have taken so much of what is left.
OWN_SHARE, FAIR_SHARE = 1 / 3, 1 / 2
# A thread that imports is interrupted only with so much left in the container itself (bytes).
LAST = 8 * MB
# With so much left (bytes) the interpreter hands its lock over within PROMPTLY (seconds; usually
# 0.005): each system call of the watchdog lets go of it, and then waits for it as long as this.
NEAR, PROMPTLY = 128 * MB, 0.0005


def next_look(left: int | None) -> float:
    """Seconds to the next look, with so much left (bytes)."""
    return SELDOM if left is None else min(max(left / FILLED_AT, OFTEN), SELDOM)


def is_time(whole: int, left: int, limit: int, grown: int) -> bool:
    """Whether to interrupt a request that has grown by so much, in a container of `limit` that has
    so much left as a `whole`, and so much for this process (bytes).

    A request that has taken little of what there was is let be: the container was full before it.
    """
    at = min(AT, limit * AT_SHARE)
    near = whole <= at or left <= at * OWN_SHARE
    return near and grown >= max(MB, min(whole, at) * FAIR_SHARE)


class Watchdog:
    """`start` it while there is room for a thread; `wake` it with each request."""

    def __init__(self, ceiling: Ceiling, interrupt: Interrupt) -> None:
        self._ceiling = ceiling
        self._interrupt = interrupt
        self._usual: float | None = None  # the interpreter's switch interval, while ours is set
        self._fault = ""  # what ended the thread
        self.after_fork()

    def after_fork(self) -> None:
        """In a new child: there is no thread here, and nobody to put back what it has set."""
        self._relax()
        self.asleep = False  # and to be woken
        self._post: Any = None  # the thread's lock; another, or none, once it is stopped

    def start(self) -> None:
        """Where there is a ceiling to watch. Raises RuntimeError where no thread can be had."""
        if self._post is not None or not self._ceiling.possible():
            return
        fault, self._fault = self._fault, ""
        if fault:
            log.limited(
                logging.ERROR, "watchdog", "The watchdog failed and is started anew: %s", fault
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
        """End the thread."""
        post, self._post = self._post, None
        self.asleep = False
        if post is not None:
            _release(post)

    def wake(self) -> None:
        """A request begins. Call it where the watchdog is `asleep`; harmless elsewhere."""
        self.asleep = False
        post = self._post
        if post is not None:
            _release(post)

    def look(self) -> float | None:
        """Keep the ceiling, and interrupt who gets too near to it. Seconds to the next look; None
        where nothing is in flight."""
        try:
            return self._look()
        except MemoryError:  # the request that has it all is about to get the same
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
                if post is not self._post:  # stopped: nobody will wake this thread again
                    break
                self._relax()
                self._interrupt.forget()
                self.asleep = True
                if self._interrupt.work():  # it came before it could see that
                    self.asleep = False
                else:
                    post.acquire()
        except BaseException as error:  # `start` starts another, and logs this
            self._fault = f"{type(error).__name__}: {error}"
        finally:
            if post is self._post:
                self._post = None
            self._relax()

    def _watch(self, post: Any) -> None:
        """While there are requests in flight, and it is not stopped."""
        left = self._ceiling.left
        pause: float | None = 0.0 if left is not None and left <= NEAR else FIRST
        looked = False
        while pause is not None:
            post.acquire(True, pause)
            if post is not self._post:
                return
            # Look once more after the last request, too. A look in the middle of its growth counts
            # that twice, and such a limit would refuse the next request.
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
    except RuntimeError:  # another has just done so
        pass
