"""Track which heavy modules are loaded: since when, for which route, and at what cost.

The tracker is the package's only finder. It is stored at the head of sys.meta_path and nowhere
else. The tracker finds nothing itself. For a heavy module, the tracker takes the result of the
finders behind it, measures the process before and after the load, and fills a late module.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from ..settings import format_size
from ..system.procfs import OwnRss

if TYPE_CHECKING:
    from .lazy import LateImports


def install(modules: Iterable[str]) -> Tracker:
    """Also track these modules from now on. Return the installed tracker."""
    tracker = installed()
    if tracker is None:
        tracker = Tracker()
        sys.meta_path.insert(0, tracker)
    tracker.watch(modules)
    return tracker


def listen(
    listener: Listener, modules: Iterable[str], *, until: Callable[[Callable[[], object]], object]
) -> None:
    """Track these modules, and call `listener` at their loads, from now on.

    `until`: called with each function that undoes a part of this.
    """
    new = installed() is None
    tracker = install(modules)
    if tracker.attach(listener):
        until(lambda: tracker.detach(listener))
    if new:
        until(tracker.stop)


def installed() -> Tracker | None:
    """Return the tracker in sys.meta_path, if there is one."""
    return next((finder for finder in sys.meta_path if isinstance(finder, Tracker)), None)


def loaded() -> list[dict[str, Any]]:
    """See `Tracker.loaded`. Empty without a tracker."""
    tracker = installed()
    return [] if tracker is None else tracker.loaded()


def own() -> str:
    """See `Tracker.own`. Empty without a tracker."""
    tracker = installed()
    return "" if tracker is None else tracker.own()


def rss() -> int:
    """Return the process's RSS in bytes. Keeps no file open, because loads are rare."""
    reader = OwnRss()
    try:
        return reader()
    finally:
        reader.reopen()  # closes the file


class Listener(Protocol):
    """The tracker calls these methods at loads, in the thread that loads."""

    def where(self) -> str | None:
        """Return the route that this thread serves, or None."""
        ...

    def load_begins(self) -> None:
        """Called when this thread is about to load heavy modules. Raise MemoryError to forbid."""
        ...

    def load_ends(self) -> None:
        """Called when this thread has loaded the modules, or failed. Must be idempotent."""
        ...


class Tracker:
    """A finder for sys.meta_path, and the loads that the finder has seen.

    `rss`: return the process's RSS in bytes. `now`: Unix time in seconds. `clock`: a monotonic
    clock in seconds. A fork needs no reset: the records hold the pid that made them.
    """

    def __init__(
        self,
        *,
        rss: Callable[[], int] = rss,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        # The heavy modules. A submodule (`pandas.io` of `pandas`) counts as its heavy module.
        self.modules: tuple[str, ...] = ()
        self.late_imports: LateImports | None = None
        self._listeners: tuple[Listener, ...] = ()
        # Modules that a first use has loaded -> file and line of that use, if known.
        self._first_uses: dict[str, str | None] = {}
        self._rss = rss
        self._now = now
        self._clock = clock
        self._records: dict[str, dict[str, Any]] = {}
        self._pids: dict[str, int] = {}  # module -> pid that loaded it: this process or a parent
        self._thread = threading.local()

    def watch(self, modules: Iterable[str]) -> None:
        """Also track these modules. Idempotent."""
        self.modules = tuple(dict.fromkeys((*self.modules, *modules)))

    def attach(self, listener: Listener) -> bool:
        """Call `listener` at loads from now on. Return False if that is so already."""
        if listener in self._listeners:
            return False
        self._listeners += (listener,)
        return True

    def detach(self, listener: Listener) -> None:
        """Stop calling `listener`. Idempotent."""
        self._listeners = tuple(other for other in self._listeners if other is not listener)

    def fill_for(self, late_imports: LateImports) -> None:
        """Fill the late modules of `late_imports` when they are loaded."""
        self.late_imports = late_imports

    def stop(self) -> None:
        """Leave sys.meta_path. Idempotent."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def family(self, name: str) -> str | None:
        """Return the heavy module that `name` is, or belongs to; None for others."""
        for module in self.modules:
            if name == module or name.startswith(module + "."):
                return module
        return None

    def loading(self) -> list[str]:
        """Return the modules that this thread is loading, the innermost last."""
        found: list[str] | None = getattr(self._thread, "loading", None)
        if found is None:
            found = self._thread.loading = []
        return found

    def note_first_use(self, family: str, place: str | None) -> None:
        """Note that a first use at `place` (file:line) is about to load the module. Idempotent."""
        self._first_uses.setdefault(family, place)

    def loaded(self) -> list[dict[str, Any]]:
        """Return the heavy modules that are loaded, in the order of the setting.

        Each has `module`. `loaded_at` (Unix seconds), `route`, `cost_bytes` (growth of the
        process's RSS) and `seconds` are None for a load that the tracker has not seen. `late`:
        whether a first use loaded the module. `first_use`: file and line of that use, None for a
        module loaded by another. The cost of a module that another loads (numpy for pandas) counts
        only for that module itself.
        """
        unseen = dict.fromkeys(("loaded_at", "route", "cost_bytes", "seconds"))
        return [
            {
                "module": name,
                **self._records.get(name, {**unseen, "late": False, "first_use": None}),
            }
            for name in self.modules
            if name in sys.modules
        ]

    def own(self) -> str:
        """Return for the log the modules that this process has loaded since its fork."""
        return ", ".join(
            f"{record['module']} ({format_size(record['cost_bytes'])})"
            for record in self.loaded()
            if self._pids.get(record["module"]) == os.getpid()
        )

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a heavy module, with a measuring loader. Python calls this hook."""
        family = self.family(name)
        if family is None or (family in self.loading() and not self._is_put_off(name)):
            return None
        spec = behind(self, name, path, target)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader, self, name, family)  # type: ignore[assignment]
        return spec

    def _is_put_off(self, name: str) -> bool:
        return self.late_imports is not None and name in self.late_imports.waiting

    @contextlib.contextmanager
    def measured(self, family: str) -> Iterator[None]:
        """Attribute the growth and the time within this context to `family`.

        Growth and time attributed to other modules meanwhile do not count. Raises MemoryError if a
        listener forbids the load.
        """
        loading = self.loading()
        if family in loading:
            yield
            return
        route = self._route()
        outermost = not loading
        try:
            if outermost:
                if self._first_uses.get(family, "") is None:  # Python itself has delayed the import
                    self._first_uses[family] = _user()
                for listener in self._listeners:
                    _tell(listener.load_begins)
            elif any(outer in self._first_uses for outer in loading):
                self.note_first_use(family, None)
            loading.append(family)
            size, seconds = self._unbooked()
            yield
            size_now, seconds_now = self._unbooked()
        finally:
            if family in loading:
                loading.remove(family)
            if outermost:
                for listener in self._listeners:
                    _tell(listener.load_ends)
        first = {"loaded_at": self._now(), "route": route, "cost_bytes": 0, "seconds": 0.0}
        first |= {"late": family in self._first_uses, "first_use": self._first_uses.get(family)}
        record = self._records.setdefault(family, first)
        self._pids.setdefault(family, os.getpid())
        record["cost_bytes"] += max(0, size_now - size)
        record["seconds"] = round(record["seconds"] + max(0.0, seconds_now - seconds), 6)

    def _unbooked(self) -> tuple[int, float]:
        """Return the process's size (bytes) and the time (seconds), less all that is attributed.

        So nothing counts twice: neither a load within another, nor a load by another thread at the
        same time.
        """
        records = list(self._records.values())
        return (
            self._rss() - sum(record["cost_bytes"] for record in records),
            self._clock() - sum(record["seconds"] for record in records),
        )

    def _route(self) -> str | None:
        try:
            routes = (listener.where() for listener in self._listeners)
            return next((route for route in routes if route is not None), None)
        except Exception:  # must not make the import fail
            return None


def _user() -> str | None:
    """Return file and line of the code that this thread's import runs for, if known."""
    frame: FrameType | None = sys._getframe()
    skipped = (os.path.dirname(__file__), os.path.dirname(os.__file__) + os.sep + "contextlib")
    while frame is not None and frame.f_code.co_filename.startswith(("<frozen ", *skipped)):
        frame = frame.f_back
    return None if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _tell(method: Callable[[], None]) -> None:
    """Call a listener's method. Only a MemoryError makes the import fail."""
    try:
        method()
    except MemoryError:
        raise
    except Exception:
        pass


class _Loader:
    """A wrapper around a module's loader. Stays in the spec only until the module is executed."""

    def __init__(self, loader: Any, tracker: Tracker, name: str, family: str) -> None:
        self.loader = loader
        self._name = name
        self._family = family
        self._tracker = tracker

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)  # for code that reads the loader's attributes

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        compiled = isinstance(self.loader, ExtensionFileLoader)  # creating such a module loads it
        with self._tracker.measured(self._family) if compiled else contextlib.nullcontext():
            created: ModuleType | None = self.loader.create_module(spec)
        late = self._tracker.late_imports
        return late.module(self._name) if created is None and late is not None else created

    def exec_module(self, module: ModuleType) -> None:
        # Leave no trace in the module: show the module's own loader.
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        late = self._tracker.late_imports
        if late is None:
            with self._tracker.measured(self._family):
                self.loader.exec_module(module)
        else:
            with (
                late.frames(),
                self._tracker.measured(self._family),
                late.filled(self._name, module),
            ):
                self.loader.exec_module(module)


def behind(
    finder: object, name: str, path: Sequence[str] | None, target: ModuleType | None = None
) -> ModuleSpec | None:
    """Return the spec that the finders behind `finder` find, or None."""
    others = list(sys.meta_path)
    if finder in others:
        del others[: others.index(finder) + 1]
    for other in others:
        find = getattr(other, "find_spec", None)  # very old finders have none
        spec: ModuleSpec | None = find(name, path, target) if find is not None else None
        if spec is not None:
            return spec
    return None
