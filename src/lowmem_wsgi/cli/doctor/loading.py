"""Load the app, and measure what that costs, by package."""

from __future__ import annotations

import contextlib
import gc
import inspect
import os
import sys
import time
from collections.abc import Iterator
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from types import FunctionType, ModuleType
from typing import Any

from ...imports.app_path import FACTORIES, NoSuchApp, hint, load, parse_app
from ...imports.tracker import behind
from ...system.procfs import OwnRss, read_statm
from .telling import Tell


def load_measured(path: str, tell: Tell) -> Any:
    costs = Costs(tell)
    base = costs.rss()
    sys.meta_path.insert(0, costs)
    began = time.perf_counter()
    try:
        app = load(path)
    finally:
        sys.meta_path.remove(costs)
    _refuse_factory(path, app)
    seconds = time.perf_counter() - began
    gc.collect()
    statm = read_statm()
    anonymous = statm.anonymous if statm else costs.rss()
    tell({"base": base, "loaded": costs.rss(), "anonymous": anonymous, "seconds": seconds})
    tell({"imports": costs.own, "of_app": costs.of_app})
    return app


def _refuse_factory(path: str, app: Any) -> None:
    """Raise NoSuchApp for a function that makes an app and is not called in the path."""
    named = parse_app(path)
    if named.call or not isinstance(app, FunctionType):
        return
    signature = inspect.signature(app)
    try:
        signature.bind({}, print)
    except TypeError:
        takes_two = False
    else:
        takes_two = named.name not in FACTORIES
    if not takes_two:
        raise NoSuchApp(f"{path} makes an app, and is none{hint(f'{path}()')}")


class Costs:
    """A finder that measures what each package costs that is not the standard library's.

    What a package loads of others, which were not loaded yet, counts for those.
    """

    def __init__(self, tell: Tell) -> None:
        self.own: dict[str, int] = {}
        self.of_app: list[str] = []  # modules of the app itself
        self.rss: OwnRss = OwnRss()
        self._tell = tell
        self._open: list[str] = []
        self._since = 0

    def find_spec(
        self, name: str, path: Any = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        family = name.partition(".")[0]
        if family in sys.stdlib_module_names or family in self._open:
            return None
        spec = behind(self, name, path, target)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            if family not in self.of_app and _is_of_app(spec.origin or ""):
                self.of_app.append(family)
            spec.loader = _Measured(spec.loader, self, family)  # type: ignore[assignment]
        return spec

    @contextlib.contextmanager
    def measured(self, family: str) -> Iterator[None]:
        self._book()
        self._open.append(family)
        if family not in self.own:
            self.own[family] = 0
            self._tell({"loading": family})
        try:
            yield
        finally:
            self._book()
            self._open.remove(family)

    def _book(self) -> None:
        """Book the growth since the last call to the innermost package that is loading."""
        now = self.rss()
        if self._open:
            self.own[self._open[-1]] += max(0, now - self._since)
        self._since = now


def _is_of_app(file: str) -> bool:
    """Return whether a module's file is the app's own, and not an installed package's."""
    return file.startswith(os.getcwd() + os.sep) and "-packages" not in file


class _Measured:
    """A loader that measures. Leaves no trace in the module."""

    def __init__(self, loader: Any, costs: Costs, family: str) -> None:
        self.loader, self._costs, self._family = loader, costs, family

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        compiled = isinstance(self.loader, ExtensionFileLoader)
        with self._costs.measured(self._family) if compiled else contextlib.nullcontext():
            created: ModuleType | None = self.loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        with self._costs.measured(self._family):
            self.loader.exec_module(module)
