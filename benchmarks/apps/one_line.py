"""The README's one line, around the app that BENCH_APP names (module:name)."""

from __future__ import annotations

import importlib
import os

from lowmem_wsgi import LowMemory

module, _, name = os.environ["BENCH_APP"].partition(":")
app = LowMemory(getattr(importlib.import_module(module), name))
