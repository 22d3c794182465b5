"""Giving free memory back to the system.

A garbage collection gives nothing back: the C library keeps freed pages until `malloc_trim(3)`.
LowMemory trims after notable growth, at most TRIM_DUTY of the time, and less often where trimming
frees little.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ..settings import MB

# Growth worth giving back: at least this much, and this share of what the process uses.
TRIM_BYTES = 1 * MB
TRIM_SHARE = 1 / 25
# Trimming takes at most this share of the time, but rests no longer than so many seconds ...
TRIM_DUTY = 1 / 20
TRIM_REST = 0.5
# ... except that the rest doubles, up to so many seconds, each time that trimming gave little. So
# much growth since the last trim ends the rest, and so much memory that was freed since.
TRIM_REST_IN_VAIN = 60.0
TRIM_NOW_BYTES = 32 * MB
# To ask the allocator what is in use takes 1 ms where its heap is in many pieces. LowMemory asks
# for at most this share of the time.
ASK_DUTY = 1 / 100


class Trimmer:
    """Decides when to trim, and trims. For one thread at a time.

    `rss` returns the RSS of the process in bytes; `in_use` the bytes that are allocated, or the RSS
    where that is not known; `give_back` trims; `now` is a monotonic clock in seconds. `on`: whether
    `trim` does anything.
    """

    def __init__(
        self,
        rss: Callable[[], int],
        give_back: Callable[[], object],
        *,
        in_use: Callable[[], int] | None = None,
        on: bool = True,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._rss = rss
        self._in_use = in_use or rss
        self._give_back = give_back
        self.on: bool = on
        self._now = now
        self._trimmed_at, self._rest = now(), 0.0
        self._ask_at = self._trimmed_at
        self.forget()

    def demand(self, trim: bool) -> None:
        """Trim from now on, where `trim` is true."""
        self.on = self.on or trim

    def forget(self) -> None:
        """In a new child: what was freed so far is the parent's."""
        self.count: int = 0
        self.freed_bytes: int = 0
        # RSS when last idle after a trim, or lower where RSS fell by itself; RSS after the last
        # trim.
        self.floor: int = self._rss()
        self._trimmed_rss = self.floor
        # Bytes of RSS that were not allocated after the last trim.
        self._trimmed_free = 0

    def is_due(self, now: float, used: int) -> bool:
        """Return whether a trim is worth it, at an RSS of `used` bytes."""
        self.floor = min(self.floor, used)
        growth = used - self.floor
        if not self.on or growth < TRIM_BYTES or growth < self.floor * TRIM_SHARE:
            return False
        much = used - self._trimmed_rss >= TRIM_NOW_BYTES
        if much or now - self._trimmed_at >= self._rest:
            return True
        return growth >= TRIM_NOW_BYTES and now >= self._ask_at and self._freed_much(now, used)

    def _freed_much(self, now: float, used: int) -> bool:
        """Return whether requests have freed much since the last trim: RSS does not show that.

        A trim beside a request that still holds its memory gives little, and a rest follows.
        """
        free = used - self._in_use()
        self._ask_at = now + (self._now() - now) / ASK_DUTY
        return free - self._trimmed_free >= TRIM_NOW_BYTES

    def trim_growth(self, now: float, used: int, alone: bool) -> int:
        """Trim, and rest as long as the result suggests. Return the RSS after it, in bytes."""
        growth = used - self.floor
        left = self.trim(used, alone, self._in_use())
        rest = min((self._trimmed_at - now) / TRIM_DUTY, TRIM_REST)
        in_vain = used - left < growth / 4
        self._rest = min(max(rest, 2 * self._rest), TRIM_REST_IN_VAIN) if in_vain else rest
        return left

    def trim(self, used: int, alone: bool, in_use: int = 0) -> int:
        """Trim now. Return the RSS after it, in bytes; `used` is the RSS before it.

        Allocates nothing before it gives back. `in_use`: bytes allocated before it, where known.
        `alone`: no request is in flight, so what is left is what the app keeps. Beside requests it
        is theirs as well: taken for the floor, it would hide what they leave behind.
        """
        if not self.on:
            return used
        self._give_back()
        self.count += 1
        left = self._rss()
        self.freed_bytes += max(0, used - left)
        self._trimmed_at, self._trimmed_rss = self._now(), left
        # What another thread has freed or taken meanwhile is not known to be given back.
        self._trimmed_free = left - max(in_use, self._in_use())
        if alone or left < self.floor:
            self.floor = left
        return left
