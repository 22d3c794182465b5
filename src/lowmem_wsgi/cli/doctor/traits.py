"""What the loaded app is like: its settings, secret, templates and compiled files."""

from __future__ import annotations

import hashlib
import os
import sys
from typing import Any

from ...guards.keys import app_secrets, layers
from ...settings import Settings


def wrapped(app: Any) -> list[Any]:
    """Return each LowMemory around the app, without loading what is not loaded."""
    middleware = sys.modules.get("lowmem_wsgi.middleware")
    kind = getattr(middleware, "LowMemory", None)
    return [layer for layer in layers(app) if kind is not None and isinstance(layer, kind)]


def of_wrapped(settings: Settings) -> dict[str, Any]:
    """Return the settings in force, which keywords of the app may have set."""
    return {
        "warn_at": settings.warn_at,
        "ceiling_wanted": settings.ceiling is not False,
        "sessions": bool(settings.session_cookies),
        "token": settings.admin_token is not None,
        "setting": settings.secret_key is not None,
        "preset": settings.preset,
        "late": settings.lazy_heavy,
        "heavy": settings.heavy_modules,
        "max_in_flight": settings.max_in_flight,
    }


def compiled() -> dict[str, int]:
    """Return how many modules come from a file, and how many have no compiled file beside it."""
    specs = [getattr(module, "__spec__", None) for module in list(sys.modules.values())]
    files = [spec.cached for spec in specs if spec is not None and spec.cached]
    return {"modules": len(files), "uncompiled": sum(not os.path.exists(file) for file in files)}


def digest(app: Any) -> dict[str, Any]:
    secrets = app_secrets(app)
    if not secrets:
        return {"length": 0, "digest": ""}
    newest = secrets[-1].encode("utf-8", "surrogateescape")
    return {"length": len(newest), "digest": hashlib.sha256(newest).hexdigest()}


def templates(app: Any) -> dict[str, Any] | None:
    cache = jinja_cache(app)
    if cache is None:
        return None
    bound = getattr(cache, "capacity", None)
    return {"kept": len(cache), "bound": bound if bound is None or bound > 0 else None}


def jinja_cache(app: Any) -> Any:
    for layer in layers(app):
        # Flask makes the environment at first use; the first page would.
        environment = getattr(layer, "jinja_env", None)
        if environment is not None:
            return environment.cache
    return None
