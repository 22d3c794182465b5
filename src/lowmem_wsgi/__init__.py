"""One line keeps a Python web app alive in 512 MB.

    from lowmem_wsgi import LowMemory

    app = LowMemory(app)  # any WSGI app; settings come from LOWMEM_* variables

Importing this package starts nothing: no thread, no changed global. Each name is loaded when it
is asked for, so that a child process which wants `offload` alone loads no middleware. (`offload` is
there at once, as importing the package `lowmem_wsgi.offload` would else take its name.)
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
    """What `__all__` promises, from the module where it lives."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(_HOMES.get(name, ".offload.errors"), __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
