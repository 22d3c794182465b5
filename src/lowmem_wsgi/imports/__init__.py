"""Heavy packages: late imports, and the cost of each import."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .lazy import install, uninstall

__all__ = ["install", "uninstall"]


def __getattr__(name: str) -> object:
    """Return a name of `__all__`; raise AttributeError for others. Load `lazy` only when needed."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import lazy

    return getattr(lazy, name)
