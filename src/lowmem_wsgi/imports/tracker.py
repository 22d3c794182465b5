"""Which heavy modules are loaded: since when, for which route, and what they cost.

A finder at the head of sys.meta_path, which finds nothing itself. It takes what the finders behind
it have found for a heavy module, and looks at the process's size before and after the load.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from types import ModuleType
from typing import Any

from ..settings import format_size
from ..system.procfs import OwnRss


def rss() -> int:
    """The process's resident set in bytes. Loads are rare: nothing is kept open for them."""
    reader = OwnRss()
    try:
        return reader()
    finally:
        reader.reopen()  # which closes


class Watch:
    """A finder for sys.meta_path, and what it has seen.

    `modules`: the heavy ones; what is below one (`pandas.io` of `pandas`) counts as it. `where`
    tells the route that the current thread is serving, or None; it is asked when a load begins.
    """

    def __init__(
        self,
        *,
        rss: Callable[[], int] = rss,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.modules: tuple[str, ...] = ()
        self.where: Callable[[], str | None] = _nowhere
        # Told when this thread begins to load something, and when it is done with all of that.
        self.begins: Callable[[], object] = _nowhere
        self.ends: Callable[[], object] = _nowhere
        # Those that a first use loads, and where that is (file:line), if it is known.
        self.late: dict[str, str | None] = {}
        self._rss = rss
        self._now = now
        self._clock = clock
        self._records: dict[str, dict[str, Any]] = {}
        self._pids: dict[str, int] = {}  # the process that loaded it: this one, or the master
        self._thread = threading.local()

    def start(self, modules: Iterable[str]) -> None:
        """Watch these too. Harmless when repeated."""
        self.modules = tuple(dict.fromkeys((*self.modules, *modules)))
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def watches(self, modules: Iterable[str]) -> bool:
        """Whether it has started, for all of these."""
        return self in sys.meta_path and set(modules) <= set(self.modules)

    def stop(self) -> None:
        """Watch no more. What was seen stays."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def family(self, name: str) -> str | None:
        """The heavy module that `name` is, or is a part of."""
        for module in self.modules:
            if name == module or name.startswith(module + "."):
                return module
        return None

    def loading(self) -> list[str]:
        """What this thread is about to load, the innermost last."""
        found: list[str] | None = getattr(self._thread, "loading", None)
        if found is None:
            found = self._thread.loading = []
        return found

    def loaded(self) -> list[dict[str, Any]]:
        """The heavy modules that are loaded, in the order of the setting.

        `module`; `loaded_at` (Unix seconds), `route`, `cost_bytes` (growth of the process's RSS)
        and `seconds`, all None where the module was loaded unseen; `late`: whether a first use
        loaded it; `first_use`: the file and line of that, None for what came with another. What
        one loads for another (numpy for pandas) is booked to the former alone.
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
        """What this process has loaded itself, and not a master before it forked: for the log."""
        return ", ".join(
            f"{record['module']} ({format_size(record['cost_bytes'])})"
            for record in self.loaded()
            if self._pids.get(record["module"]) == os.getpid()
        )

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """For the import system."""
        family = self.family(name)
        if family is None or family in self.loading():
            return None
        spec = behind(self, name, path, target)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader, self, family)  # type: ignore[assignment]
        return spec

    @contextlib.contextmanager
    def measured(self, family: str) -> Iterator[None]:
        """Book to `family` what happens within, less what is booked to others meanwhile."""
        if family in self.loading():
            yield
            return
        route = self.route()
        outermost = not self.loading()
        try:
            if outermost:
                _attempt(self.begins)  # a MemoryError where there is no room for it
            elif any(outer in self.late for outer in self.loading()):
                self.late.setdefault(family, None)
            self.loading().append(family)
            size, seconds = self._unbooked()
            yield
            size_now, seconds_now = self._unbooked()
        finally:
            if family in self.loading():
                self.loading().remove(family)
            if outermost:
                _attempt(self.ends)
        first = {"loaded_at": self._now(), "route": route, "cost_bytes": 0, "seconds": 0.0}
        first |= {"late": family in self.late, "first_use": self.late.get(family)}
        record = self._records.setdefault(family, first)
        self._pids.setdefault(family, os.getpid())
        record["cost_bytes"] += max(0, size_now - size)
        record["seconds"] = round(record["seconds"] + max(0.0, seconds_now - seconds), 6)

    def _unbooked(self) -> tuple[int, float]:
        """The process's size and the time, less what is booked: so that nothing is booked twice,
        neither what a load contains nor what another thread loads at the same time."""
        records = list(self._records.values())
        return (
            self._rss() - sum(record["cost_bytes"] for record in records),
            self._clock() - sum(record["seconds"] for record in records),
        )

    def route(self) -> str | None:
        """What `where` says; None also where it fails: who asks has something else to do."""
        try:
            return self.where()
        except Exception:
            return None


class _Loader:
    """Another's loader. It is in the spec only until the module is executed."""

    def __init__(self, loader: Any, watch: Watch, family: str) -> None:
        self.loader = loader
        self._watch = watch
        self._family = family

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)  # for those who only want to know

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        compiled = isinstance(self.loader, ExtensionFileLoader)  # which is loaded here
        with self._watch.measured(self._family) if compiled else contextlib.nullcontext():
            created: ModuleType | None = self.loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        restore(module, self.loader)
        with self._watch.measured(self._family):
            self.loader.exec_module(module)


def behind(
    finder: object, name: str, path: Sequence[str] | None, target: ModuleType | None = None
) -> ModuleSpec | None:
    """What the finders behind this one find."""
    others = list(sys.meta_path)
    if finder in others:
        del others[: others.index(finder) + 1]
    for other in others:
        find = getattr(other, "find_spec", None)  # a very old one has none
        spec: ModuleSpec | None = find(name, path, target) if find is not None else None
        if spec is not None:
            return spec
    return None


def restore(module: ModuleType, loader: Any) -> None:
    """Leave no trace in the module: it was loaded by that loader."""
    if module.__spec__ is not None:
        module.__spec__.loader = loader
    module.__loader__ = loader


def _attempt(whom: Callable[[], object]) -> None:
    try:
        whom()
    except MemoryError:
        raise
    except Exception:  # who asks is about to import
        pass


def _nowhere() -> None:
    return None


# The process's own.
WATCH = Watch()
loaded = WATCH.loaded
