"""The site of the gauntlet by the letter of the source document: see letter.py."""

from __future__ import annotations

from edge import app as edge
from gauntlet_site import app as app
from gauntlet_site import desk
from letter import collect

for part in (desk, edge):
    part.after_request(collect)
