"""One line keeps a Python web app alive in 512 MB.

    from lowmem_wsgi import LowMemory

    app = LowMemory(app)  # any WSGI app; settings come from LOWMEM_* variables

Importing this package starts nothing: no thread, no changed global.
"""

from ._version import __version__
from .memory.pressure import on_pressure
from .middleware import LowMemory
from .settings import SettingsError

__all__ = ["LowMemory", "SettingsError", "__version__", "on_pressure"]
