"""The thread that stands by the ceiling while memory is short.

The monitor climbs the ladder then, and that takes its time: a second, with a heap of millions of
objects and other threads at work. A loop of small objects fills 100 MB meanwhile.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable

from .. import log
from ..settings import MB, format_size
from .ceiling import Ceiling
from .interrupt import Interrupt

# Bytes left under the ceiling: NEAR it the sentry looks OFTEN (seconds), else SELDOM; AT it the
# request that eats them is interrupted. Such a loop takes a millisecond for 1 MB.
NEAR, AT, OFTEN, SELDOM = 64 * MB, 16 * MB, 0.005, 0.02
# Each system call of the sentry lets go of the interpreter's lock, and then waits for it as long as
# this (seconds; usually 0.005) for each thread that computes. In force while it is at work.
PROMPTLY = 0.0005
# Called where so much (bytes) went from one look of the monitor's to the next; it stays for so long
# (seconds).
FAST, AT_LEAST = 16 * MB, 1.0


class Sentry:
    """`start` it while there is room for a thread; `call` it, and it stays while it is `needed`."""

    def __init__(
        self,
        ceiling: Ceiling,
        interrupt: Interrupt,
        needed: Callable[[], bool],
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self._ceiling = ceiling
        self._interrupt = interrupt
        self._needed = needed
        self._usual: float | None = None  # the interpreter's switch interval, while ours is set
        self.after_fork()

    def after_fork(self) -> None:
        """In a new child: there is no thread here, and nobody to put back what it has set."""
        self._relax()
        self._called = threading.Event()
        self._running = False
        self._until, self._left = 0.0, 0

    def start(self) -> None:
        """Where there is a ceiling to stand by. Raises RuntimeError where no thread can be had."""
        if self._running:
            return
        self._running = True
        try:
            self._running = self._ceiling.possible()
            if self._running:
                threading.Thread(
                    target=self._run, args=(self._called,), name="lowmem-sentry", daemon=True
                ).start()
        except BaseException:
            self._running = False
            raise

    def stop(self) -> None:
        """End the thread."""
        called, self._called = self._called, threading.Event()
        self._running = False
        called.set()

    def call(self) -> None:
        """Look for AT_LEAST so long, and on while it is needed."""
        self._until = self._now() + AT_LEAST
        self._called.set()

    def watch(self) -> None:
        """At each look of the monitor's: called where what is left under the ceiling falls fast."""
        left = self._ceiling.left
        if left is not None and self._left - left >= FAST:
            self.call()
        self._left = left or 0

    def look(self) -> float:
        """Keep the ceiling, and interrupt what gets too near to it. Seconds to the next time."""
        try:
            return self._look()
        except MemoryError:  # the request that has it all is about to get the same
            return OFTEN

    def _look(self) -> float:
        self._ceiling.keep()
        self._interrupt.look()
        left = self._ceiling.left
        if left is not None and left <= AT and self._interrupt.strike():
            log.limited(
                logging.WARNING,
                "interrupted",
                "🚨 %s left under the ceiling: a MemoryError was raised in the request that has "
                "been computing (setting: LOWMEM_CEILING)",
                format_size(max(0, left)),
            )
        return OFTEN if left is not None and left <= NEAR else SELDOM

    def _run(self, called: threading.Event) -> None:
        try:
            rest = threading.Event()  # never set: its wait is a sleep, under gevent as well
            while called is self._called:  # else it was stopped
                called.wait()
                called.clear()
                self._stand(called, rest)
        finally:
            if called is self._called:  # whatever ended it, `start` starts another
                self._running = False

    def _stand(self, called: threading.Event, rest: threading.Event) -> None:
        try:
            self._hurry()
            while called is self._called and (self._needed() or self._now() < self._until):
                rest.wait(self.look())
        except Exception:
            log.failure("The sentry")
        finally:
            self._relax()
        self._interrupt.forget()

    def _hurry(self) -> None:
        if self._usual is None:
            self._usual = sys.getswitchinterval()
        sys.setswitchinterval(min(self._usual, PROMPTLY))

    def _relax(self) -> None:
        usual, self._usual = self._usual, None
        if usual is not None:
            sys.setswitchinterval(usual)
