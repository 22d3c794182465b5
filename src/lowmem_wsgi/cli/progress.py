"""Tell on stderr what is measured now, if that is a terminal."""

from __future__ import annotations

import sys

_WIDTH = 16  # of the bar, in characters


class Progress:
    """A line on a terminal that each step overwrites, with a bar once the number is known."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._done = 0
        self._all = 0

    def expect(self, runs: int) -> None:
        """Count `runs` from now on."""
        self._done, self._all = 0, runs

    def tell(self, what: str) -> None:
        """Begin the next step."""
        self._done += 1
        self._write(f"\r\x1b[Kmeasuring {_count(self._done, self._all)}{what} …")

    def clear(self) -> None:
        self._write("\r\x1b[K")

    def _write(self, words: str) -> None:
        if self._shown:
            sys.stderr.write(words)
            sys.stderr.flush()


def _count(step: int, steps: int) -> str:
    """Return the bar and the count; "" where the number of steps is not known."""
    if not steps:
        return ""
    step = min(step, steps)
    full = _WIDTH * (step - 1) // steps
    return f"{'#' * full}{'-' * (_WIDTH - full)} [{step}/{steps}] "
