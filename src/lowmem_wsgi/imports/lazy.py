"""Late imports: `import pandas as pd` at the top of an app costs nothing until `pd` is used.

    import lowmem_wsgi.imports

    lowmem_wsgi.imports.install(["pandas", "numpy"])  # before the app; uninstall() undoes it

Python 3.15 does this itself (PEP 810) when it is asked to. Before 3.15, this module does what that
PEP describes, by the same rules:

* LowMemory puts off statements: `import pandas`, `import matplotlib.pyplot as plt`. `from numpy
  import array` needs the module at once, and so does import_module. (Python 3.15 puts off `from`.)
* LowMemory puts off only modules that it can find, so that `except ImportError` works as ever.
* The statement binds a module-to-be, which is not in sys.modules before its first use: code that
  looks through sys.modules, or looks there to see what is in use, meets (and wakes) no half of one.
* The first use is a plain import, with its lock: threads wait for each other, and Python sees a
  circular wait. Whoever imports the module first, in whatever way, fills the module-to-be, so that
  there is never a second module.

Only `builtins.__import__` sees statements, so LowMemory replaces it: 0.2 µs for each that is run. A
finder in sys.meta_path would have to leave something unfinished in sys.modules;
importlib.util.LazyLoader does, and its users suffered (gh-114763, numpy#22045, lazy-loader#55).
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import logging
import opcode
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from types import FrameType, ModuleType
from typing import Any, ClassVar, NamedTuple

from .. import log
from ..settings import Settings
from . import tracker
from .tracker import Tracker, behind

# What the import system reads and sets before it executes a module.
_OF_IMPORT = frozenset(
    {
        *("__class__", "__name__", "__package__", "__file__", "__path__", "__loader__"),
        *("__cached__", "__spec__"),
    }
)
# Asked of whatever is in a module's namespace, by tools that only look round (doctest, pytest,
# inspect, cloudpickle). A module-to-be answers these with what is known of it, and stays unloaded.
QUIET = _OF_IMPORT | {
    *("__bases__", "__reduce_ex__", "__wrapped__", "__test__", "__warningregistry__"),
    *("_mock_name", "_pytestfixturefunction"),
    "pytest_mock_example_attribute_that_shouldnt_exist",
}

# Never put off, each for its reason.
BREAKS = {
    "cv2": "it takes itself out of sys.modules while it loads",
    "ddtrace": "it must instrument other packages before they are used",
    "eventlet": "it must patch the standard library before others take from it",
    "gevent": "it must patch the standard library before others take from it",
    "setuptools": "it must be imported before distutils, which it replaces",
    "tensorflow": "it exchanges its own module while it loads",
}


class ImportedLate(ImportError):
    """Names the statement that was put off: the cause of an error at the first use."""


class Late(ModuleType):
    """A module-to-be. An ordinary module from the moment that it is loaded."""

    late_imports: ClassVar[LateImports]  # of its subclass: see LateImports

    def __getattribute__(self, name: str) -> Any:
        own: str = _get(self, "__name__")
        put_off = own not in sys.modules
        # A spec is wanted by the import system of what it loads, else by importlib.reload.
        if name in QUIET and not (name == "__spec__" and put_off):
            return _get(self, name)
        late_imports = type(self).late_imports
        below = late_imports.waiting.get(f"{own}.{name}") if put_off else None
        if below is not None and _in_a_statement(sys._getframe(1)):
            return below.late
        module = late_imports.load(own, sys._getframe(1))
        return _get(self, name) if module is self else getattr(module, name)

    def __setattr__(self, name: str, value: object) -> None:
        module = self if name in _OF_IMPORT else _used(self, sys._getframe(1))
        if module is self:
            ModuleType.__setattr__(self, name, value)
        else:
            setattr(module, name, value)

    def __delattr__(self, name: str) -> None:
        module = _used(self, sys._getframe(1))
        if module is self:
            ModuleType.__delattr__(self, name)
        else:
            delattr(module, name)

    def __repr__(self) -> str:
        return f"<module {_get(self, '__name__')!r}, to be loaded at its first use>"

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[[str], object], tuple[str]]:
        return importlib.import_module, (_get(self, "__name__"),)


_get = ModuleType.__getattribute__
_IMPORT_FROM = opcode.opmap["IMPORT_FROM"]


def _used(late: Late, user: FrameType) -> ModuleType:
    return type(late).late_imports.load(_get(late, "__name__"), user)


def _in_a_statement(frame: FrameType) -> bool:
    """Return whether the frame is in the middle of `import a.b as c`, which takes b from a.

    Python runs that as it runs `a.b`. There, a may have another thing by the name of its submodule:
    a must be loaded first.
    """
    return frame.f_lasti >= 0 and frame.f_code.co_code[frame.f_lasti] == _IMPORT_FROM


def _inside(module: object) -> dict[str, Any]:
    """Return the module's namespace, without waking the module."""
    try:
        found: dict[str, Any] = object.__getattribute__(module, "__dict__")
    except AttributeError:  # a thing that stands for a module
        return {}
    return found


class _Waiting(NamedTuple):
    late: Late
    blank: dict[str, object]  # the namespace before the module is loaded
    where: str  # the statement's file and line


def install(modules: Iterable[str] | None = None, *, python: Any = sys) -> None:
    """From now on, put off the imports of these modules until their first use. Idempotent.

    `modules`: names, or a text with commas; by default those of LOWMEM_HEAVY_MODULES. Modules that
    are loaded already stay loaded. Raises SettingsError for a name that is no module's.
    """
    if modules is not None and not isinstance(modules, str):
        modules = tuple(modules)
    wanted = Settings.load({} if modules is None else {"heavy_modules": modules}).heavy_modules
    for name in wanted:
        reason = BREAKS.get(name.partition(".")[0])
        if reason is not None:
            log.once(
                logging.WARNING,
                ("not imported late", name),
                "%s is not imported late: %s (settings: LOWMEM_LAZY_HEAVY, LOWMEM_HEAVY_MODULES)",
                *(name, reason),
            )
    found = tracker.install(wanted)
    late = found.late_imports
    if late is None:
        late = LateImports(found)
        found.fill_for(late)
    late.start(tuple(name for name in wanted if name.partition(".")[0] not in BREAKS), python)


def uninstall() -> None:
    """Put off no more. Modules that were put off are still loaded at their first use."""
    late = _installed()
    if late is not None:
        late.stop()


def installed() -> tuple[str, ...]:
    """Return the modules whose imports are put off."""
    late = _installed()
    return late.names if late is not None and late.on else ()


def waiting() -> dict[str, str]:
    """Return the modules that are put off and not loaded, each with the file and line of its
    import statement."""
    late = _installed()
    found = {} if late is None else late.waiting
    return {name: kept.where for name, kept in list(found.items()) if name not in sys.modules}


def _installed() -> LateImports | None:
    found = tracker.installed()
    return None if found is None else found.late_imports


class LateImports:
    """Puts off the imports of `names`, and has their modules loaded at the first use."""

    def __init__(self, tracker: Tracker) -> None:
        self.names: tuple[str, ...] = ()
        self.waiting: dict[str, _Waiting] = {}
        self.on = False
        self._tops: frozenset[str] = frozenset()
        self._tracker = tracker
        self._kind = type("Late", (Late,), {"late_imports": self})
        self._real = builtins.__import__
        self._replaced = False  # whether others may call __import__
        self._undo: list[Callable[[], object]] = []
        self._frames: dict[int, _Frames] = {}  # by pid: a fork begins with its own

    def start(self, names: tuple[str, ...], python: Any = sys) -> None:
        """Put off the imports of these modules. Idempotent."""
        self.names = names
        self._tops = frozenset(name.partition(".")[0] for name in names)
        if self.on:
            return
        self.on = True
        if hasattr(python, "set_lazy_imports_filter"):
            self._ask_python(python)
        else:
            self._replace_import()

    def stop(self) -> None:
        """Put off no more. Idempotent."""
        self.on = False
        while self._undo:
            self._undo.pop()()

    # --- The statement

    def _replace_import(self) -> None:
        if not self._replaced:
            self._real, self._replaced = builtins.__import__, True
            builtins.__import__ = self.__import__
        self._undo.append(self._put_back)

    def _put_back(self) -> None:
        if builtins.__import__ == self.__import__:  # else another has replaced ours, and calls it
            builtins.__import__, self._replaced = self._real, False

    def __import__(
        self,
        name: str,
        globals: Any = None,
        locals: Any = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        # None is what a statement without `from` says, and nobody else.
        if fromlist is None and name.partition(".")[0] in self._tops and name not in sys.modules:
            found = self._put_off(name) if self.on and not level else None
            if found is not None:
                return found
        return self._real(name, globals, locals, fromlist, level)

    def _put_off(self, name: str) -> ModuleType | None:
        """Return what `import name` binds, if the import can wait."""
        try:
            specs = self._specs(name)
            if specs is None:
                return None
            where = _place(sys._getframe(2))
            for spec in specs:
                blank = _blank(spec)
                late = self._kind(spec.name)
                _inside(late).update(blank)
                late = self.waiting.setdefault(spec.name, _Waiting(late, blank, where)).late
                parent, _, child = spec.name.rpartition(".")
                if parent in sys.modules:
                    setattr(sys.modules[parent], child, late)
            top = name.partition(".")[0]
            return sys.modules.get(top) or self.waiting[top].late
        except ImportError:  # of a parent: the real import says the same
            return None
        except Exception:
            log.failure("Putting off an import")
            return None

    def _specs(self, name: str) -> list[ModuleSpec] | None:
        """Return the specs of `name` and of its parents, as far as they are not loaded yet. None
        where the import cannot wait."""
        # A heavy package that imports its own kin may count on what that does.
        if not self._is_late(name) or self._tracker.loading():
            return None
        found: list[ModuleSpec] = []
        path: Sequence[str] | None = None
        parts = name.split(".")
        for number, child in enumerate(parts, 1):
            prefix = ".".join(parts[:number])
            module = sys.modules.get(prefix)
            if module is None and number < len(parts) and not self._is_late(prefix):
                module = importlib.import_module(prefix)
            if module is not None:
                path = getattr(module, "__path__", None)
                continue
            parent = sys.modules.get(prefix.rpartition(".")[0])
            if parent is not None and child in _inside(parent) and prefix not in self.waiting:
                return None  # the package has another thing by that name
            spec = self._find(prefix, path)
            if spec is None:
                return None
            found.append(spec)
            path = spec.submodule_search_locations
        return found

    def _is_late(self, name: str) -> bool:
        return any(name == late or name.startswith(late + ".") for late in self.names)

    def _find(self, name: str, path: Sequence[str] | None) -> ModuleSpec | None:
        """Return the spec, if the module is Python code in a file. (To make a compiled module is to
        load it, and a namespace weighs nothing.)"""
        if "." in name and path is None:
            return None
        spec = behind(self._tracker, name, path)
        if spec is None or not spec.has_location or isinstance(spec.loader, ExtensionFileLoader):
            return None
        return spec

    # --- The first use

    def load(self, name: str, user: FrameType) -> ModuleType:
        """Import the module now, for the code in that frame. Return what sys.modules has then: the
        package may have put another object there."""
        family = self._tracker.family(name)
        if family is not None and name not in sys.modules:
            self._tracker.note_first_use(family, _place(user))
        try:
            with self._frames.setdefault(os.getpid(), _Frames()):
                for _ in range(_AGAIN):
                    self._real(name)
                    if name in sys.modules:  # else another thread's import of it has failed now
                        break
        except Exception as error:
            self._name_statement(error, name)
            raise
        module = sys.modules[name]
        if not issubclass(type(module), Late):
            self._attach(module, name)
        return module

    def module(self, name: str) -> Late | None:
        """Return the module-to-be that a load of `name` is to fill, if there is one."""
        waiting = self.waiting.get(name)
        return None if waiting is None else waiting.late

    @contextlib.contextmanager
    def filled(self, name: str, module: ModuleType) -> Iterator[None]:
        """The module is executed within. Make an ordinary module of a module-to-be, or what it was
        before where the code fails, for the next to try."""
        try:
            yield
        except BaseException:
            waiting = self.waiting.get(name)
            if waiting is not None and waiting.late is module:
                ModuleType.__setattr__(module, "__class__", self._kind)
                _inside(module).clear()
                _inside(module).update(waiting.blank)
            raise
        if type(module) is self._kind and sys.modules.get(name) is module:
            ModuleType.__setattr__(module, "__class__", ModuleType)
        self.waiting.pop(name, None)
        self._attach(module, name)

    def _attach(self, module: ModuleType, name: str) -> None:
        """Let the submodules that are still put off be found in a loaded package, as if they were
        imported."""
        for below, waiting in list(self.waiting.items()):
            parent, _, child = below.rpartition(".")
            if parent == name and below not in sys.modules and child not in _inside(module):
                with contextlib.suppress(AttributeError, TypeError):  # not of every stand-in
                    setattr(module, child, waiting.late)

    def _name_statement(self, error: BaseException, name: str) -> None:
        """Put the statement at the root of the error, where a traceback begins."""
        waiting = self.waiting.get(name)
        root = error
        while (cause := root.__cause__ or root.__context__) is not None:
            if isinstance(cause, ImportedLate):
                return
            root = cause
        if waiting is not None:
            root.__cause__ = ImportedLate(
                f"import of {name} was put off at {waiting.where} (setting: LOWMEM_LAZY_HEAVY)"
            )

    # --- Python 3.15 and later (PEP 810)

    def _ask_python(self, python: Any) -> None:
        """Have Python put off the imports. A `lazy import` of another package than `names` is then
        made at once: Python's filter does not see whether a statement asks for it."""
        mode, before = python.get_lazy_imports(), python.get_lazy_imports_filter()
        if mode == "all":  # all imports are late already
            return

        def wanted(importer: str, name: str, fromlist: Sequence[str] | None) -> bool:
            family = self._tracker.family(name)
            if family is None or name.partition(".")[0] not in self._tops or not self._specs(name):
                return False
            self._tracker.note_first_use(family, None)
            return True

        python.set_lazy_imports_filter(wanted)
        python.set_lazy_imports("all")
        self._undo.append(lambda: python.set_lazy_imports_filter(before))
        self._undo.append(lambda: python.set_lazy_imports(mode))


_AGAIN = 100  # failed imports of other threads, at most, before this thread's own begins


class _Frames:
    """Room on the stack for imports: each module within another takes seven frames, and the
    recursion limit of `ultra`, 200, is too low for pandas in the middle of a request."""

    def __init__(self, frames: int = 1000) -> None:
        self._frames = frames
        self._inside: list[int] = []  # the limit before, for each import under way
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self._inside.append(self._inside[0] if self._inside else sys.getrecursionlimit())
            sys.setrecursionlimit(max(self._frames, sys.getrecursionlimit()))

    def __exit__(self, *_: object) -> None:
        with self._lock:
            before = self._inside.pop()
            if not self._inside and sys.getrecursionlimit() == self._frames:
                sys.setrecursionlimit(before)


def _blank(spec: ModuleSpec) -> dict[str, object]:
    known: dict[str, object] = {"__name__": spec.name, "__doc__": None, "__package__": spec.parent}
    known |= {"__loader__": spec.loader, "__spec__": spec, "__file__": spec.origin}
    if spec.submodule_search_locations is not None:
        known["__path__"] = spec.submodule_search_locations
    return known


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
