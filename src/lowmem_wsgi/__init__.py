"""One line keeps a Python web app alive in 512 MB.

    from lowmem_wsgi import LowMemory

    app = LowMemory(app)  # any WSGI app; settings come from LOWMEM_* variables

Importing this package starts no thread and changes no global. Python loads each name at first use,
so a child process that needs only `offload` loads no middleware. (The function `offload` is loaded
at once: otherwise an import of the package `lowmem_wsgi.offload` would take its name.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._version import __version__
from .offload.api import offload

if TYPE_CHECKING:
    from .middleware import LowMemory
    from .offload.errors import (
        OffloadBusy,
        OffloadDied,
        OffloadError,
        OffloadMemoryError,
        OffloadTimeout,
        OffloadTooLarge,
    )
    from .runtime import on_pressure
    from .settings import SettingsError

__all__ = [
    "LowMemory",
    "OffloadBusy",
    "OffloadDied",
    "OffloadError",
    "OffloadMemoryError",
    "OffloadTimeout",
    "OffloadTooLarge",
    "SettingsError",
    "__version__",
    "offload",
    "on_pressure",
]

_HOMES = {
    "LowMemory": ".middleware",
    "SettingsError": ".settings",
    "on_pressure": ".runtime",
}


def __getattr__(name: str) -> object:
    """Load a name of `__all__` from its module. Raise AttributeError for any other name."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(_HOMES.get(name, ".offload.errors"), __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
