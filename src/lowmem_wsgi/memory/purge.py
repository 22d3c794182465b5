"""Dropping a heavy package from sys.modules, where that can free anything at all.

The source document deletes pandas and numpy from `sys.modules`. Measured: it frees 0.1 MB, and
the next import raises ImportError, because their compiled parts cannot be loaded twice. So a
package goes only if it is pure Python, nobody is importing it, and nothing outside holds on to
any of it: no other module, however deep, and no running function.
"""

from __future__ import annotations

import gc
import importlib.machinery
import sys
from collections.abc import Iterator
from types import FrameType, FunctionType, ModuleType

_COMPILED = tuple(importlib.machinery.EXTENSION_SUFFIXES)
_UNLOADABLE = (importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter)

Modules = dict[str, ModuleType]


def purge(name: str) -> str | None:
    """Drop package `name` from sys.modules. None where it went, else why it stays.

    Looks at all that the program can reach: about half a second for a heap of a million objects.
    """
    own = {
        key: module
        for key, module in list(sys.modules.items())
        if key == name or key.startswith(name + ".")
    }
    if name not in own:
        return "not loaded"
    reason = _unfit(own) or _used(own)
    if reason is None:
        for key in own:
            sys.modules.pop(key, None)
    return reason


def _unfit(own: Modules) -> str | None:
    for key, module in own.items():
        spec = getattr(module, "__spec__", None)
        file = getattr(module, "__file__", None) or ""
        if file.endswith(_COMPILED) or getattr(spec, "loader", None) in _UNLOADABLE:
            return f"{key} is compiled, and cannot be loaded again"
        if getattr(spec, "_initializing", False):
            return f"{key} is being imported"
    return None


def _used(own: Modules) -> str | None:
    """Who outside holds a module of `own`, or a thing that comes from one."""
    # Not to be walked through: modules from others, so that the holder named is the nearest, and
    # this search itself.
    modules = [module for module in list(sys.modules.values()) if _is_module(module)]
    seen = {id(sys.modules), id(own), id(modules), *(id(_inside(module)) for module in modules)}
    for holder, values in _holders(own):
        todo = values
        seen.add(id(todo))  # a frame may hold it
        while todo:
            value = todo.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            if _home(value) in own:
                return f"{holder} still uses it"
            todo += [each for each in gc.get_referents(value) if id(each) not in seen]
    return None


def _holders(own: Modules) -> Iterator[tuple[str, list[object]]]:
    """All other modules and all running functions, each with what it holds."""
    for key, module in list(sys.modules.items()):
        if key not in own and _is_module(module):
            yield key, list(_inside(module).values())
    for top in list(sys._current_frames().values()):
        frame: FrameType | None = top
        while frame is not None:
            if frame.f_code.co_filename != __file__:
                yield f"{frame.f_code.co_name}()", list(frame.f_locals.values())
            frame = frame.f_back


def _is_module(value: object) -> bool:
    return issubclass(type(value), ModuleType)


def _inside(module: ModuleType) -> dict[str, object]:
    # object's, and not the module's own: a late import comes to life at the first question.
    found: dict[str, object] = object.__getattribute__(module, "__dict__")
    return found


def _home(value: object) -> object:
    """The module a value is or comes from.

    Asks types and never the value: lazy objects (Django's settings, late imports) come to life at
    the first question, `isinstance` included.
    """
    kind = type(value)
    if _is_module(value):
        return _inside(value).get("__name__")  # type: ignore[arg-type]
    if issubclass(kind, FunctionType):
        return value.__module__
    if issubclass(kind, type):
        return type.__getattribute__(value, "__module__")
    return kind.__module__
