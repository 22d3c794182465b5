"""Child processes of the commands: none outlives the command that has started it. Linux."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator

# prctl(2)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def end_with_parent() -> None:
    """Have the kernel kill this process when the thread that has started it ends. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def no_orphans() -> Iterator[None]:
    """Adopt the processes whose parent ends, such as a daemon of the app; at the end, kill them.

    Whatever child this process gets meanwhile counts as one of the app's.
    """
    prctl = ctypes.CDLL(None).prctl
    kept = _children()
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        # The children of one that is killed are adopted in turn.
        while orphans := _children() - kept:
            for pid in orphans:
                try:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                except PermissionError:  # of another user
                    kept.add(pid)
        prctl(_PR_SET_CHILD_SUBREAPER, 0)


def _children() -> set[int]:
    import psutil

    return {child.pid for child in psutil.Process().children()}
