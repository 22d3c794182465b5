"""List the limits in force, for the log."""

from __future__ import annotations

import sys

from ..settings import Settings, format_size


def in_force(settings: Settings) -> str:
    """Return the limits in force, each with the variable that sets it."""
    limits = [f"preset {settings.preset}"]
    if settings.max_upload is not None:
        limits.append(f"uploads to {format_size(settings.max_upload)} (LOWMEM_MAX_UPLOAD)")
    limits += [
        f"{path} to {format_size(size)} (LOWMEM_UPLOAD_LIMITS)"
        for path, size in (settings.upload_limits or {}).items()
    ]
    if settings.session_cookies:
        limits.append(f"sessions for {settings.session_lifetime:g} s (LOWMEM_SESSION_LIFETIME)")
    if settings.static_max_age is not None:
        age = f"{settings.static_max_age:g} s"
        limits.append(f"static files cached for {age} (LOWMEM_STATIC_MAX_AGE)")
    limits.append(f"{settings.gc_passes} passes after each request (LOWMEM_GC_PASSES)")
    if settings.max_in_flight is not None:
        limits.append(f"{settings.max_in_flight} requests at once (LOWMEM_MAX_IN_FLIGHT)")
    if settings.gc_threshold is not None:
        limits.append(f"collector's threshold {settings.gc_threshold} (LOWMEM_GC_THRESHOLD)")
    if settings.recursion_limit is not None:
        limits.append(f"recursion to {settings.recursion_limit} (LOWMEM_RECURSION_LIMIT)")
    lazy = sys.modules.get("lowmem_wsgi.imports.lazy")  # loaded only if in use
    late = lazy.installed() if lazy is not None else ()
    if late:
        limits.append(f"{', '.join(late)} imported late (LOWMEM_LAZY_HEAVY)")
    elif settings.lazy_heavy:
        limits.append(
            "nothing imported late: that takes our Gunicorn config, or imports.install() "
            "before the app's imports (LOWMEM_LAZY_HEAVY)"
        )
    limits += [
        f"no {name} (LOWMEM_{name.upper()})"
        for name in ("gc_freeze", "trim")
        if not getattr(settings, name)
    ]
    return ", ".join(limits)
