"""What the unit tests share."""

from __future__ import annotations

from hypothesis import settings

# How long an example takes says nothing on a machine that is loaded, or where coverage is measured.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
