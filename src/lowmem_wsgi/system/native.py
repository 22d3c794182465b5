"""Python's native threads and locks, the kind of its build, and its C library.

Gevent and eventlet replace threads by greenlets. A greenlet runs only while all others wait. A
thread that must run while another computes cannot be a greenlet, and must not use a greenlet's
lock.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def original(module: str, name: str) -> Any:
    """Return Python's own function, from before any monkey-patching."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None:
        return monkey.get_original(module, name)
    patcher = sys.modules.get("eventlet.patcher")
    found = importlib.import_module(module) if patcher is None else patcher.original(module)
    return getattr(found, name)


def has_gil() -> bool:
    """Return whether this build of Python has a global interpreter lock (PEP 703)."""
    return "t" not in getattr(sys, "abiflags", "")


def on_glibc() -> bool:
    """Return whether the C library is glibc, and not musl (Alpine) or macOS's."""
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (AttributeError, OSError, ValueError):  # no confstr, or no such name
        return False
