"""The path of a request, and the path prefixes in settings that it is matched against."""

from __future__ import annotations

# In the environ: PATH_INFO as the client asked for it, taken before any dispatcher inside the app
# shifts a part of it to SCRIPT_NAME.
PATH = "lowmem.path"
# In the environ: the pattern of the request's route, by who knows it.
ROUTE = "lowmem.route"


def wsgi_path(path: str) -> str:
    """A path from the settings as PATH_INFO spells it: UTF-8 bytes as Latin-1 (PEP 3333)."""
    return path.encode().decode("latin-1")


def is_under(path: str, prefix: str) -> bool:
    """Whether `path` is `prefix` or below it: /import covers /import/x but not /important."""
    prefix = prefix.rstrip("/")
    return path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/")
