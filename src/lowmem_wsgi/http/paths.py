"""The path of a request, and how to match that path against the prefixes in settings."""

from __future__ import annotations

# Key of the environ: PATH_INFO as the client asked for it, read before a dispatcher inside the app
# moves a part to SCRIPT_NAME.
PATH = "lowmem.path"
# Key of the environ: the pattern of the request's route, set by code that knows the route.
ROUTE = "lowmem.route"


def wsgi_path(path: str) -> str:
    """Return a path from the settings as PATH_INFO spells it: UTF-8 as Latin-1 (PEP 3333)."""
    return path.encode().decode("latin-1")


def is_under(path: str, prefix: str) -> bool:
    """Return whether `path` is `prefix` or below: /import covers /import/x, not /important."""
    prefix = prefix.rstrip("/")
    return path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/")
