"""The app of edge.py with the one line around it."""

from __future__ import annotations

from edge import app as bare

from lowmem_wsgi import LowMemory

app = LowMemory(bare)
