"""Late imports: `import pandas as pd` at the top of an app costs nothing until `pd` is used.

    from lowmem_wsgi.imports import lazy

    lazy.install(["pandas", "numpy"])  # before the app is imported; lazy.uninstall() undoes it

Python 3.15 can do this itself (PEP 810), and is asked to where it can. Before, this module does
what that PEP describes, by the same rules:

* Put off is a statement, `import pandas` or `import matplotlib.pyplot as plt`. `from numpy import
  array` needs the module at once, and so does import_module; Python itself puts off `from`, too.
* It is put off only if the module can be found, so that `except ImportError` does what it is for.
* What it binds is the module-to-be, which is not in sys.modules before its first use: nobody who
  looks through sys.modules, or there to see what is in use, meets (or wakes) one half loaded.
* The first use is a plain import, with its lock: threads wait for each other, and Python sees a
  circular wait. Whoever imports the module first, by whatever way, it is the module-to-be that is
  filled, so that there is never a second one.

Only `builtins.__import__` sees statements, so that is what is replaced: 0.2 µs for each that is
run. A finder in sys.meta_path would have to leave something unfinished in sys.modules; that is
what importlib.util.LazyLoader does, and what its users suffered from (gh-114763, numpy#22045,
lazy-loader#55).
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import logging
import opcode
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from types import FrameType, ModuleType
from typing import Any, NamedTuple

from .. import log
from ..settings import Settings
from .tracker import WATCH, behind, restore

# What the import system reads and sets before it executes a module.
_OF_IMPORT = frozenset(
    {
        *("__class__", "__name__", "__package__", "__file__", "__path__", "__loader__"),
        *("__cached__", "__spec__"),
    }
)
# Asked of whatever is in a module's namespace, by those who only look round (doctest, pytest,
# inspect, cloudpickle): that is no use yet. A late module answers with what is known of it.
QUIET = _OF_IMPORT | {
    *("__bases__", "__reduce_ex__", "__wrapped__", "__test__", "__warningregistry__"),
    *("_mock_name", "_pytestfixturefunction"),
    "pytest_mock_example_attribute_that_shouldnt_exist",
}

# Left alone, each for its reason.
BREAKS = {
    "cv2": "it takes itself out of sys.modules while it loads",
    "ddtrace": "it must instrument other packages before they are used",
    "eventlet": "it must patch the standard library before others take from it",
    "gevent": "it must patch the standard library before others take from it",
    "setuptools": "it must be imported before distutils, which it replaces",
    "tensorflow": "it exchanges its own module while it loads",
}


class ImportedLate(ImportError):
    """Where the statement is that was put off. The cause of what went wrong at the first use."""


class Late(ModuleType):
    """A module-to-be. An ordinary module from the moment that it is loaded."""

    def __getattribute__(self, name: str) -> Any:
        own: str = _get(self, "__name__")
        put_off = own not in sys.modules
        # A spec is wanted by the import system of what it loads, else by importlib.reload.
        if name in QUIET and not (name == "__spec__" and put_off):
            return _get(self, name)
        below = _waiting.get(f"{own}.{name}") if put_off else None
        if below is not None and _in_a_statement(sys._getframe(1)):
            return below.late
        module = _load(own)
        return _get(self, name) if module is self else getattr(module, name)

    def __setattr__(self, name: str, value: object) -> None:
        module = self if name in _OF_IMPORT else _load(_get(self, "__name__"))
        if module is self:
            ModuleType.__setattr__(self, name, value)
        else:
            setattr(module, name, value)

    def __delattr__(self, name: str) -> None:
        module = _load(_get(self, "__name__"))
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


def _in_a_statement(frame: FrameType) -> bool:
    """Whether it is in the middle of `import a.b as c`, which takes b from a."""
    return frame.f_lasti >= 0 and frame.f_code.co_code[frame.f_lasti] == _IMPORT_FROM


def _inside(module: object) -> dict[str, Any]:
    """Its namespace, without waking it."""
    try:
        found: dict[str, Any] = object.__getattribute__(module, "__dict__")
    except AttributeError:  # a thing that stands for a module
        return {}
    return found


class _Waiting(NamedTuple):
    late: Late
    blank: dict[str, object]  # what is in it before it is loaded
    where: str  # the statement's file and line


_waiting: dict[str, _Waiting] = {}
_names: tuple[str, ...] = ()  # that are put off
_tops: frozenset[str] = frozenset()
_real = builtins.__import__
_replaced = False  # whether others may call _import
_undo: list[Callable[[], object]] = []


def install(modules: Iterable[str] | None = None, *, python: Any = sys) -> None:
    """From now on, put off the imports of these modules until their first use.

    `modules`: names, or a text with commas; those of LOWMEM_HEAVY_MODULES if not given. What is
    loaded already stays loaded. Raises SettingsError for what is no module's name. Harmless when
    repeated.
    """
    global _names, _tops  # noqa: PLW0603
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
    _names = tuple(name for name in wanted if name.partition(".")[0] not in BREAKS)
    _tops = frozenset(name.partition(".")[0] for name in _names)
    WATCH.start(wanted)
    _watch_forks()
    if _undo:
        return
    if hasattr(python, "set_lazy_imports_filter"):
        _ask_python(python)
    else:
        _replace_import()


def uninstall() -> None:
    """Put off no more. What was put off is still loaded at its first use."""
    while _undo:
        _undo.pop()()


def installed() -> tuple[str, ...]:
    """The modules whose imports are put off."""
    return _names if _undo else ()


def waiting() -> dict[str, str]:
    """What is put off and not loaded, each with the file and line of its import statement."""
    return {name: found.where for name, found in list(_waiting.items()) if name not in sys.modules}


# --- The statement


def _replace_import() -> None:
    global _real, _replaced
    sys.meta_path.insert(0, _FINDER)
    if not _replaced:
        _real, _replaced = builtins.__import__, True
        builtins.__import__ = _import
    _undo.append(_put_back)


def _put_back() -> None:
    global _replaced
    if _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)
    if builtins.__import__ is _import:  # else another has replaced ours, and calls it
        builtins.__import__, _replaced = _real, False


def _import(
    name: str,
    globals: Any = None,
    locals: Any = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> Any:
    # None is what a statement without `from` says, and nobody else.
    if fromlist is None and name.partition(".")[0] in _tops and name not in sys.modules:
        found = _put_off(name) if _undo and not level else None
        if found is not None:
            return found
    return _real(name, globals, locals, fromlist, level)


def _put_off(name: str) -> ModuleType | None:
    """What `import name` binds, if it can wait."""
    try:
        specs = _specs(name)
        if specs is None:
            return None
        where = _place(sys._getframe(2))
        for spec in specs:
            blank = _blank(spec)
            late = Late(spec.name)
            _inside(late).update(blank)
            late = _waiting.setdefault(spec.name, _Waiting(late, blank, where)).late
            parent, _, child = spec.name.rpartition(".")
            if parent in sys.modules:
                setattr(sys.modules[parent], child, late)
        top = name.partition(".")[0]
        return sys.modules.get(top) or _waiting[top].late
    except ImportError:  # of a parent: the real import says the same
        return None
    except Exception:
        log.failure("Putting off an import")
        return None


def _specs(name: str) -> list[ModuleSpec] | None:
    """Of `name` and its parents, what is not loaded yet. None where the import cannot wait."""
    # A heavy package that imports its own kin may count on what that does.
    if not _is_late(name) or WATCH.loading():
        return None
    found: list[ModuleSpec] = []
    path: Sequence[str] | None = None
    parts = name.split(".")
    for number, child in enumerate(parts, 1):
        prefix = ".".join(parts[:number])
        module = sys.modules.get(prefix)
        if module is None and number < len(parts) and not _is_late(prefix):
            module = importlib.import_module(prefix)
        if module is not None:
            path = getattr(module, "__path__", None)
            continue
        parent = sys.modules.get(prefix.rpartition(".")[0])
        if parent is not None and child in _inside(parent) and prefix not in _waiting:
            return None  # the package has another thing by that name, until the module is loaded
        spec = _find(prefix, path)
        if spec is None:
            return None
        found.append(spec)
        path = spec.submodule_search_locations
    return found


def _is_late(name: str) -> bool:
    return any(name == late or name.startswith(late + ".") for late in _names)


def _find(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """The spec, if the module is Python code in a file: what is compiled is loaded when it is
    made, and a namespace weighs nothing."""
    if "." in name and path is None:
        return None
    spec = behind(WATCH, name, path)
    if spec is None or not spec.has_location or isinstance(spec.loader, ExtensionFileLoader):
        return None
    return spec


def _blank(spec: ModuleSpec) -> dict[str, object]:
    known: dict[str, object] = {"__name__": spec.name, "__doc__": None, "__package__": spec.parent}
    known |= {"__loader__": spec.loader, "__spec__": spec, "__file__": spec.origin}
    if spec.submodule_search_locations is not None:
        known["__path__"] = spec.submodule_search_locations
    return known


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


# --- The first use


_AGAIN = 100  # threads at most, whose imports fail before ours begins


def _load(name: str) -> ModuleType:
    """Import it now. By another's doing it may be another module that is there then."""
    family = WATCH.family(name)
    if family is not None and name not in sys.modules:
        WATCH.late.setdefault(family, _place(sys._getframe(2)))
    try:
        with _ROOM:
            for _ in range(_AGAIN):
                _real(name)
                if name in sys.modules:  # else another thread's import of it has failed just now
                    break
    except Exception as error:
        _tell_where(error, name)
        raise
    module = sys.modules[name]
    if type(module) is not Late:
        _attach(module, name)
    return module


class _Room:
    """Frames for an import: each module within another takes seven, and ultra's recursion limit
    of 200 is too low for pandas in the middle of a request."""

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

    def after_fork(self) -> None:
        """In a new child: the imports under way were other threads'."""
        self._lock = threading.Lock()
        while self._inside:
            sys.setrecursionlimit(self._inside.pop())


_ROOM = _Room()


@functools.cache  # once a process: it cannot be undone
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_ROOM.after_fork)


def _tell_where(error: BaseException, name: str) -> None:
    """Put the statement at the root of the error, where a traceback begins."""
    waiting = _waiting.get(name)
    root = error
    while (cause := root.__cause__ or root.__context__) is not None:
        if isinstance(cause, ImportedLate):
            return
        root = cause
    if waiting is not None:
        root.__cause__ = ImportedLate(
            f"import of {name} was put off at {waiting.where} (setting: LOWMEM_LAZY_HEAVY)"
        )


class _Finder:
    """Sees to it that an import fills the module-to-be, where there is one."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """For the import system."""
        if name not in _waiting:
            return None
        spec = behind(self, name, path, target)
        if spec is not None and spec.has_location:
            spec.loader = _Loader(spec.loader, name)  # type: ignore[assignment]
        return spec


class _Loader:
    """Another's loader, for a module that is there already."""

    def __init__(self, loader: Any, name: str) -> None:
        self.loader = loader
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        waiting = _waiting.get(self._name)
        created: ModuleType | None = self.loader.create_module(spec)  # None, for Python code
        return waiting.late if created is None and waiting is not None else created

    def exec_module(self, module: ModuleType) -> None:
        restore(module, self.loader)
        try:
            self.loader.exec_module(module)
        except BaseException:
            waiting = _waiting.get(self._name)
            if waiting is not None and waiting.late is module:  # as it was, for the next to try
                ModuleType.__setattr__(module, "__class__", Late)
                _inside(module).clear()
                _inside(module).update(waiting.blank)
            raise
        if type(module) is Late and sys.modules.get(self._name) is module:
            ModuleType.__setattr__(module, "__class__", ModuleType)
        _waiting.pop(self._name, None)
        _attach(module, self._name)


_FINDER = _Finder()


def _attach(module: ModuleType, name: str) -> None:
    """What is still put off below a loaded package can be found in it, as if it were imported."""
    for below, waiting in list(_waiting.items()):
        parent, _, child = below.rpartition(".")
        if parent == name and below not in sys.modules and child not in _inside(module):
            with contextlib.suppress(AttributeError, TypeError):  # not of every stand-in
                setattr(module, child, waiting.late)


# --- Python 3.15 and later (PEP 810)


def _ask_python(python: Any) -> None:
    if python.get_lazy_imports() == "all":  # all imports are late already
        _undo.append(_nothing)
        return
    before = python.get_lazy_imports_filter()

    def wanted(importer: str, name: str, fromlist: Sequence[str] | None) -> bool:
        frame = sys._getframe(1)
        if _asked_for(name, frame.f_code.co_code, frame.f_lasti, frame.f_globals):
            return before is None or bool(before(importer, name, fromlist))
        family = WATCH.family(name)
        if family is None or name.partition(".")[0] not in _tops or not _specs(name):
            return False
        WATCH.late.setdefault(family, None)
        return True

    mode = python.get_lazy_imports()
    python.set_lazy_imports_filter(wanted)
    python.set_lazy_imports("all")
    _undo.append(lambda: python.set_lazy_imports_filter(before))
    _undo.append(lambda: python.set_lazy_imports(mode))


def _asked_for(name: str, code: bytes, at: int, namespace: dict[str, Any]) -> bool:
    """Whether the statement itself says that it is lazy: the keyword is a bit of IMPORT_NAME's
    argument, and `__lazy_modules__` is the older spelling."""
    return bool(code[at + 1] & 1) or name in namespace.get("__lazy_modules__", ())


def _nothing() -> None:
    """To be undone: nothing."""
