"""Get Python's native threads and locks, also after gevent or eventlet has replaced them.

A greenlet runs only while all others wait. A thread that must run while another computes cannot be
a greenlet, and must not use a greenlet's lock.
"""

from __future__ import annotations

import importlib
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
