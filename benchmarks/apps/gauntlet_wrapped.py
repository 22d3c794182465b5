"""The site of the gauntlet with the one line around it."""

from __future__ import annotations

from gauntlet_site import app as bare

from lowmem_wsgi import LowMemory

app = LowMemory(bare)
