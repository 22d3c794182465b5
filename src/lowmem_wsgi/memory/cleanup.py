"""The ladder: one step after another that frees memory, each saying what it freed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from .collector import Collector, malloc_trim
from .reading import OwnRss


class Ladder:
    """Runs the steps and keeps the figures of the last run. Thread-safe."""

    def __init__(self, collector: Collector, now: Callable[[], float] = time.time) -> None:
        self._steps: tuple[tuple[str, Callable[[], object]], ...] = (
            ("collect", collector.thaw),
            ("trim", malloc_trim),
        )
        self._rss = OwnRss()
        self._now = now
        self._lock = threading.Lock()
        self.count = 0
        self.last: dict[str, Any] | None = None

    def run(self) -> dict[str, Any]:
        """All steps, now. `before_bytes`, `after_bytes`, `freed_bytes`, and the same by step."""
        with self._lock:
            before = left = self._rss()
            steps = []
            for name, step in self._steps:
                began = time.perf_counter()
                step()
                seconds = time.perf_counter() - began
                was, left = left, self._rss()
                steps.append({"step": name, "freed_bytes": was - left, "seconds": seconds})
            self.count += 1
            self.last = {
                "at": self._now(),
                "before_bytes": before,
                "after_bytes": left,
                "freed_bytes": before - left,
                "steps": steps,
            }
            return self.last
