"""The limits in force, and how to say them to a person."""

import os
from collections.abc import Mapping
from typing import Any

from flask import request

# LowMemory reads these variables when it wraps the app, which is after this; whoever starts the app
# may say otherwise. Where a file may be larger than elsewhere: a sheet of 50,000 clients has 2 MB.
os.environ.setdefault("LOWMEM_UPLOAD_LIMITS", "/import/excel=4MB")
# What a browser shows when LowMemory refuses a request.
REFUSED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "templates", "refused.html")
os.environ.setdefault("LOWMEM_ERROR_PAGE", REFUSED)

# What LowMemory puts in environ["lowmem.limits"] when nothing is configured: without the
# middleware the app keeps to the same figures.
DEFAULTS: Mapping[str, Any] = {
    "home_rows": 5,
    "max_rows": 10,
    "batch_size": 5,
    "cache_timeout": 15.0,
    "pool_size": 1,
    "max_upload": 512 * 1024,
    "session_lifetime": 600.0,
}


def limits() -> Mapping[str, Any]:
    """The limits for this request: the middleware's, else the same defaults."""
    given: Mapping[str, Any] = request.environ.get("lowmem.limits", DEFAULTS)
    return given


def level() -> str:
    """How short memory was as this request began: "ok", "warn" or "critical"."""
    return str(request.environ.get("lowmem.level", "ok"))


def wrapped() -> bool:
    """Whether the middleware is there to enforce the limits on uploads and sessions."""
    return "lowmem.limits" in request.environ


def size(count: int) -> str:
    """Bytes for people: 524288 is "512 KB"."""
    if count < 1024:
        return "1 byte" if count == 1 else f"{count} bytes"
    number, unit = (count / 1024, "KB") if count < 1024 * 1024 else (count / 1024 / 1024, "MB")
    return f"{number:.1f}".removesuffix(".0") + f" {unit}"


def duration(seconds: float) -> str:
    """Seconds for people: 600.0 is "10 minutes"."""
    if seconds < 120:
        return f"{seconds:.4g} seconds"
    if seconds < 7200:
        return f"{seconds / 60:.4g} minutes"
    return f"{seconds / 3600:.4g} hours"
