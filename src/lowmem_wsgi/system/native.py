"""Threads and locks of the system's own, also where gevent or eventlet has replaced Python's.

A greenlet runs only while all others wait. A thread that must run while another computes cannot be
one, and must not touch a lock that is one.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any


def original(module: str, name: str) -> Any:
    """Return a function as Python has it, before any monkey-patching."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None:
        return monkey.get_original(module, name)
    patcher = sys.modules.get("eventlet.patcher")
    found = importlib.import_module(module) if patcher is None else patcher.original(module)
    return getattr(found, name)
