"""Late imports: `import pandas as pd` at the top of an app costs nothing until the app uses `pd`.

    import lowmem_wsgi.imports

    lowmem_wsgi.imports.install(["pandas", "numpy"])  # before the app; uninstall() undoes this

Python 3.15 can delay imports itself (PEP 810). For earlier versions, this module does what PEP 810
describes, by the same rules:

* LowMemory delays statements: `import pandas`, `import matplotlib.pyplot as plt`. `from numpy
  import array` needs the module at once, and so does import_module. (Python 3.15 delays `from`.)
* LowMemory delays only modules that it can find, so that `except ImportError` works as usual.
* The statement binds a late module, which is not in sys.modules before its first use. So code that
  searches sys.modules finds no half-loaded module, and loads none.
* The first use is a plain import, with the import lock: threads wait for each other, and Python
  detects a circular wait. The first import of the module, in whatever way, fills the late module.
  So there is never a second module.

Only `builtins.__import__` sees statements, so LowMemory replaces that function, which costs 0.2 µs
for each statement run. A finder in sys.meta_path would have to leave an unfinished module in
sys.modules. importlib.util.LazyLoader does so, and its users had problems (gh-114763, numpy#22045,
lazy-loader#55).
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
from .never_late import BREAKS
from .tracker import Tracker, behind

# The attributes that the import system reads and sets before it executes a module.
_OF_IMPORT = frozenset(
    {
        *("__class__", "__name__", "__package__", "__file__", "__path__", "__loader__"),
        *("__cached__", "__spec__"),
    }
)
# Attributes that tools read from every object of a namespace (doctest, pytest, inspect,
# cloudpickle). A late module answers these with the values known so far, and stays unloaded.
QUIET = _OF_IMPORT | {
    *("__bases__", "__reduce_ex__", "__wrapped__", "__test__", "__warningregistry__"),
    *("_mock_name", "_pytestfixturefunction"),
    "pytest_mock_example_attribute_that_shouldnt_exist",
}


class ImportedLate(ImportError):
    """The cause of an error at the first use: names the import statement that was delayed."""


class Late(ModuleType):
    """A late module: not loaded yet. Becomes an ordinary module when it is loaded."""

    late_imports: ClassVar[LateImports]  # set on a subclass: see LateImports

    def __getattribute__(self, name: str) -> Any:
        own: str = _get(self, "__name__")
        put_off = own not in sys.modules
        # The import system reads the spec of a module that it loads; importlib.reload reads it too.
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
    """Return whether the frame is in the middle of `import a.b as c`, which reads b from a.

    Python reads b in the same way for the expression `a.b`. There, a may have another attribute
    with the submodule's name, so a must be loaded first.
    """
    return frame.f_lasti >= 0 and frame.f_code.co_code[frame.f_lasti] == _IMPORT_FROM


def _inside(module: object) -> dict[str, Any]:
    """Return the module's namespace, without loading the module."""
    try:
        found: dict[str, Any] = object.__getattribute__(module, "__dict__")
    except AttributeError:  # an object in place of a module
        return {}
    return found


class _Waiting(NamedTuple):
    late: Late
    blank: dict[str, object]  # the namespace before the module is loaded
    where: str  # file and line of the import statement


def install(modules: Iterable[str] | None = None) -> None:
    """Delay the imports of these modules until their first use, from now on. Idempotent.

    `modules`: names, or a text with commas; by default those of LOWMEM_HEAVY_MODULES. Modules that
    are loaded already stay loaded. Raises SettingsError for a name that is no module name.
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
    late.start(tuple(name for name in wanted if name.partition(".")[0] not in BREAKS))


def uninstall() -> None:
    """Delay no more imports. Modules delayed so far are still loaded at their first use."""
    late = _installed()
    if late is not None:
        late.stop()


def installed() -> tuple[str, ...]:
    """Return the names of the modules whose imports are delayed."""
    late = _installed()
    return late.names if late is not None and late.on else ()


def waiting() -> dict[str, str]:
    """Return the delayed modules not loaded yet, with file and line of each import statement."""
    late = _installed()
    found = {} if late is None else late.waiting
    return {name: kept.where for name, kept in list(found.items()) if name not in sys.modules}


def _installed() -> LateImports | None:
    found = tracker.installed()
    return None if found is None else found.late_imports


class LateImports:
    """Delay the imports of `names`, and load the modules at their first use."""

    def __init__(self, tracker: Tracker) -> None:
        self.names: tuple[str, ...] = ()
        self.waiting: dict[str, _Waiting] = {}
        self.on: bool = False
        self._tops: frozenset[str] = frozenset()
        self._tracker = tracker
        self._kind = type("Late", (Late,), {"late_imports": self})
        self._real = builtins.__import__
        self._replaced = False  # whether other code may call this object's __import__
        self._undo: list[Callable[[], object]] = []
        self._frames: dict[int, _Frames] = {}  # by pid, so that a fork begins with its own

    def start(self, names: tuple[str, ...]) -> None:
        """Delay the imports of these modules. Idempotent."""
        self.names = names
        self._tops = frozenset(name.partition(".")[0] for name in names)
        if self.on:
            return
        self.on = True
        if hasattr(sys, "set_lazy_imports_filter"):
            self._ask_python()
        else:
            self._replace_import()

    def stop(self) -> None:
        """Delay no more imports. Idempotent."""
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
        if builtins.__import__ == self.__import__:  # else a later hook calls this one
            builtins.__import__, self._replaced = self._real, False

    def __import__(
        self,
        name: str,
        globals: Any = None,
        locals: Any = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        # Only a statement without `from` passes None.
        if fromlist is None and name.partition(".")[0] in self._tops and name not in sys.modules:
            found = self._put_off(name) if self.on and not level else None
            if found is not None:
                return found
        return self._real(name, globals, locals, fromlist, level)

    def _put_off(self, name: str) -> ModuleType | None:
        """Return the module that `import name` binds, or None if the import cannot wait."""
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
        except ImportError:  # from a parent: the real import raises the same error
            return None
        except Exception:
            log.failure("Making an import late")
            return None

    def _specs(self, name: str) -> list[ModuleSpec] | None:
        """Return the specs of `name` and its parents that are not loaded yet.

        None if the import cannot wait.
        """
        # A heavy package may rely on the effects of importing its own parts.
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
                return None  # the package has another attribute with that name
            spec = self._find(prefix, path)
            if spec is None:
                return None
            found.append(spec)
            path = spec.submodule_search_locations
        return found

    def _is_late(self, name: str) -> bool:
        return any(name == late or name.startswith(late + ".") for late in self.names)

    def _find(self, name: str, path: Sequence[str] | None) -> ModuleSpec | None:
        """Return the spec if the module is Python code in a file, else None.

        (Creating a compiled module loads it. A namespace package takes no memory.)
        """
        if "." in name and path is None:
            return None
        spec = behind(self._tracker, name, path)
        if spec is None or not spec.has_location or isinstance(spec.loader, ExtensionFileLoader):
            return None
        return spec

    # --- The first use

    def load(self, name: str, user: FrameType) -> ModuleType:
        """Import the module now, for the code in frame `user`. Thread-safe.

        Return the object in sys.modules after the import: the package may have put another one
        there.
        """
        family = self._tracker.family(name)
        if family is not None and name not in sys.modules:
            self._tracker.note_first_use(family, _place(user))
        try:
            with self.frames():
                for _ in range(_AGAIN):
                    self._real(name)
                    if name in sys.modules:  # else another thread's import has just failed
                        break
        except Exception as error:
            self._name_statement(error, name)
            raise
        module = sys.modules[name]
        if not issubclass(type(module), Late):
            self._attach(module, name)
        return module

    def frames(self) -> _Frames:
        """Return a context with a higher recursion limit. Threads may overlap in it."""
        return self._frames.setdefault(os.getpid(), _Frames())

    def module(self, name: str) -> Late | None:
        """Return the late module that a load of `name` must fill, or None."""
        waiting = self.waiting.get(name)
        return None if waiting is None else waiting.late

    @contextlib.contextmanager
    def filled(self, name: str, module: ModuleType) -> Iterator[None]:
        """Execute a module within this context, to fill a late module.

        On success, the late module becomes an ordinary module. On an error, it becomes a blank late
        module again, for the next attempt.
        """
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
        """Set the submodules still delayed as attributes of their loaded package."""
        for below, waiting in list(self.waiting.items()):
            parent, _, child = below.rpartition(".")
            if parent == name and below not in sys.modules and child not in _inside(module):
                with contextlib.suppress(AttributeError, TypeError):  # an object without attributes
                    setattr(module, child, waiting.late)

    def _name_statement(self, error: BaseException, name: str) -> None:
        """Add the delayed statement as the root cause of the error, where a traceback begins."""
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

    def _ask_python(self) -> None:
        """Make Python delay the imports.

        If no imports were delayed before, a `lazy import` of a package outside `names` then runs at
        once: Python's filter does not see whether a statement says `lazy`.
        """
        python: Any = sys  # these functions are new in 3.15
        mode, before = python.get_lazy_imports(), python.get_lazy_imports_filter()
        if mode == "all" and before is None:  # Python already delays all imports
            return
        others = before if mode == "all" else _never

        def wanted(importer: str, name: str, fromlist: Sequence[str] | None) -> bool:
            family = self._tracker.family(name)
            if family is None or name.partition(".")[0] not in self._tops:
                return others(importer, name, fromlist)
            if not self._specs(name):
                return False
            self._tracker.note_first_use(family, None)
            return True

        python.set_lazy_imports_filter(wanted)
        python.set_lazy_imports("all")
        self._undo.append(lambda: python.set_lazy_imports_filter(before))
        self._undo.append(lambda: python.set_lazy_imports(mode))


def _never(importer: str, name: str, fromlist: Sequence[str] | None) -> bool:
    return False


_AGAIN = 100  # the most attempts, where imports of other threads fail


class _Frames:
    """Raise the recursion limit during an import. Thread-safe.

    Each nested module takes seven frames. The recursion limit of the preset `ultra`, 200, is too
    low for an import of pandas in the middle of a request.
    """

    def __init__(self, frames: int = 1000) -> None:
        self._frames = frames
        self._inside: list[int] = []  # the earlier limit, once for each import in progress
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
