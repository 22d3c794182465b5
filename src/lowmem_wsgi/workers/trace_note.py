"""The site's last trace of a route, on the shared page: any worker starts, reads and stops it."""

from __future__ import annotations

import json
import mmap
import struct
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

HEAD = struct.Struct("<II")  # the length of the text; the number of the trace that is to stop
SIZE = 64 * 1024  # of which a trace touches what it writes
# Seconds after its time until a trace that tells nothing counts as failed.
LATE = 15.0


class TraceNote:
    """One JSON document on the page, at byte `at`.

    `locked`: exclude other processes and threads. `alive`: return whether a process is alive.
    """

    RUNNING = "running"  # the state of a trace that has not ended

    def __init__(
        self,
        page: mmap.mmap,
        at: int,
        locked: Callable[[], AbstractContextManager[None]],
        alive: Callable[[int], bool],
    ) -> None:
        self._map = page
        self._at = at
        self._locked = locked
        self._alive = alive

    def read(self) -> dict[str, Any] | None:
        """Return the last trace; None if there was none.

        A trace has failed if its worker is dead, or has told nothing for too long.
        """
        with self._locked():
            length, _ = HEAD.unpack_from(self._map, self._at)
            at = self._at + HEAD.size
            text = self._map[at : at + min(length, SIZE - HEAD.size)]
        try:
            found: dict[str, Any] = json.loads(text)
        except ValueError:  # none yet
            return None
        if found["state"] == self.RUNNING:
            why = None
            if not self._alive(found["pid"]):
                why = f"Worker {found['pid']} ended during the trace: the log says why."
            elif time.time() > found["began"] + found["seconds"] + LATE:
                why = "The worker tells nothing any more."
            if why is not None:
                found |= {"state": "failed", "why": f"{why} Trace again."}
        return found

    def begin(self, trace: dict[str, Any]) -> bool:
        """Write the trace with a number of its own, as `trace["trace"]`. False if one runs."""
        with self._locked():
            last = self.read()
            if last is not None and last["state"] == self.RUNNING:
                return False
            trace["trace"] = last["trace"] + 1 if last is not None else 1
            self.write(trace)
            return True

    def write(self, trace: dict[str, Any]) -> None:
        """Write the trace. Leaves out the last lines where the page has no room for them."""
        lines = trace.get("lines", [])
        while len(text := json.dumps({**trace, "lines": lines}).encode()) > SIZE - HEAD.size:
            lines = lines[:-1]
        with self._locked():
            stop = HEAD.unpack_from(self._map, self._at)[1]
            self._map[self._at : self._at + HEAD.size] = HEAD.pack(0, stop)  # none, if killed here
            at = self._at + HEAD.size
            self._map[at : at + len(text)] = text
            self._map[self._at : self._at + HEAD.size] = HEAD.pack(len(text), stop)

    def ask_to_stop(self, number: int) -> None:
        with self._locked():
            length, _ = HEAD.unpack_from(self._map, self._at)
            self._map[self._at : self._at + HEAD.size] = HEAD.pack(length, number)

    def asked_to_stop(self, number: int) -> bool:
        return bool(HEAD.unpack_from(self._map, self._at)[1] == number)
