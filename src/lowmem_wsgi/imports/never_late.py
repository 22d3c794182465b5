"""What must never be imported at its first use."""

from __future__ import annotations

# Packages that LowMemory never imports late, each with the reason.
BREAKS = {
    "cv2": "it takes itself out of sys.modules while it loads",
    "ddtrace": "it must instrument other packages before they are used",
    "eventlet": "it must patch the standard library before others take from it",
    "gevent": "it must patch the standard library before others take from it",
    "setuptools": "it must be imported before distutils, which it replaces",
    "tensorflow": "it exchanges its own module while it loads",
}

# Modules of the standard library whose import itself does something.
ACTS = frozenset({"antigravity", "readline", "rlcompleter", "site", "this"})
