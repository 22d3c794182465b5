"""From Python 3.15 on: import modules at their first use wherever that is safe (PEP 810).

Python delays only statements at the top of a module, outside of `try` and `with`, and without `*`.
An error at the first use names the import statement. Of these statements, LowMemory lets Python
delay

* those in the standard library and in the packages of WILLING;
* those of modules of the standard library, in any module.

The app's own modules and all other packages are imported at once: an import may be there for what
the import does, such as `from . import views`, which registers routes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from typing import Any

from .never_late import ACTS, BREAKS

# Packages whose own imports may all wait: served so by tests/live/test_lazy_imports.py.
WILLING = frozenset(
    {
        *("lowmem_wsgi", "gunicorn"),
        *("flask", "werkzeug", "jinja2", "markupsafe", "click", "itsdangerous", "blinker"),
    }
)
# Python calls the filter in the middle of an import, so the filter must import nothing: these are
# complete before the filter is set.
_NEVER = frozenset((*BREAKS, *ACTS))
_STANDARD = frozenset(sys.stdlib_module_names)


def may_wait(importer: str | None, name: str, fromlist: Sequence[str] | None = None) -> bool:
    """Return whether the module `importer` may import `name` at the first use. Python's filter.

    `importer`: None for code without a module, such as a compiled template.
    """
    if importer is None:
        return False
    family, top = importer.partition(".")[0], name.partition(".")[0]
    if family in _NEVER or top in _NEVER:
        return False
    return family in WILLING or family in _STANDARD or top in _STANDARD


def start() -> None:
    """Let Python delay imports from now on, unless the site has set a filter of its own.

    Idempotent. Does nothing before Python 3.15.
    """
    python: Any = sys  # these functions are new in 3.15
    if hasattr(sys, "set_lazy_imports_filter") and python.get_lazy_imports_filter() is None:
        python.set_lazy_imports_filter(may_wait)
        python.set_lazy_imports("all")


def waiting() -> dict[str, int]:
    """Return the modules not loaded yet, with the bytes of each one's bytecode. For the log.

    Only those that a loaded module has asked for: what these would import is not known yet.
    """
    names = [name for name in getattr(sys, "lazy_modules", ()) if name not in sys.modules]
    found = ((name, _bytecode(name)) for name in sorted(names))
    return {name: size for name, size in found if size is not None}


def _bytecode(name: str) -> int | None:
    """Return the size of a module's bytecode; None if `name` is no module in a file."""
    parent, _, _ = name.rpartition(".")
    if parent and parent not in sys.modules:
        return None
    try:
        spec = PathFinder.find_spec(name, getattr(sys.modules.get(parent), "__path__", None))
        if spec is None or spec.cached is None or (parent and spec.parent == ""):
            return None
        return os.stat(spec.cached).st_size
    except (ImportError, OSError, ValueError, AttributeError):
        return None
