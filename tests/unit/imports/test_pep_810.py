"""From Python 3.15 on, Python delays the imports itself (PEP 810): the same rules, on the real
thing."""

from __future__ import annotations

import builtins
import importlib
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers import forks
from lowmem_wsgi.imports import lazy, tracker

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 15), reason="before 3.15 LowMemory delays imports: see test_lazy.py"
)

python: Any = sys
Write = Callable[..., None]
HEAVY = ["heavyweight", "other"]


@pytest.fixture(autouse=True)
def delayed() -> Iterator[None]:
    """The imports of HEAVY are delayed. Afterwards nothing of that is left."""
    before, modes = set(sys.modules), (python.get_lazy_imports(), python.get_lazy_imports_filter())
    lazy.install(HEAVY)
    yield
    lazy.uninstall()
    if (found := tracker.installed()) is not None:
        found.stop()
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in {*HEAVY, "app", "light"}:
            del sys.modules[name]
    assert (python.get_lazy_imports(), python.get_lazy_imports_filter()) == modes


@pytest.fixture(autouse=True)
def heavyweight(write: Write) -> None:
    write("heavyweight", "LOADED = True\nclass Thing: pass\n")
    write("heavyweight.arms", "LONG = True\nfrom . import Thing\n")


def app(write: Write, text: str) -> ModuleType:
    """The app's module, imported."""
    write("app", text)
    return importlib.import_module("app")


def loaded(name: str = "heavyweight") -> bool:
    return name in sys.modules


@pytest.mark.parametrize(
    ("statement", "use"),
    [
        ("import heavyweight", "heavyweight.LOADED"),
        ("import heavyweight as h", "h.LOADED"),
        ("import heavyweight.arms", "heavyweight.arms.LONG"),
        ("import heavyweight.arms as arms", "arms.LONG"),
        ("from heavyweight import LOADED", "LOADED"),
        ("from heavyweight import arms", "arms.LONG"),
        ("from heavyweight.arms import LONG", "LONG"),
        ("import heavyweight as h, json", "h.LOADED"),
    ],
)
def test_a_statement_loads_nothing_and_the_first_use_does(
    write: Write, statement: str, use: str
) -> None:
    found = app(write, f"{statement}\ndef use():\n    return {use}\n")
    assert not loaded()
    assert found.use() is True
    assert loaded()
    assert [(row["module"], row["late"]) for row in tracker.loaded()] == [("heavyweight", True)]


@pytest.mark.parametrize(
    "text",
    [
        "from heavyweight import *",
        "import importlib; importlib.import_module('heavyweight')",
        "__import__('heavyweight')",
        "def f():\n  import heavyweight\nf()",
        "try:\n  import heavyweight\nexcept ImportError:\n  pass",
    ],
)
def test_what_needs_the_module_at_once_gets_it_at_once(write: Write, text: str) -> None:
    app(write, text)
    assert loaded()


def test_a_package_that_nobody_has_named_is_loaded_at_once(write: Write) -> None:
    write("light")
    app(write, "import light")
    assert loaded("light")


def test_what_cannot_be_found_is_missing_at_once(write: Write) -> None:
    for text in ("import other", "import heavyweight.legs", "from other import anything"):
        with pytest.raises(ModuleNotFoundError):
            app(write, text)


def test_what_is_loaded_already_is_bound_at_once(write: Write) -> None:
    heavy = importlib.import_module("heavyweight")
    assert vars(app(write, "import heavyweight"))["heavyweight"] is heavy
    assert [row["late"] for row in tracker.loaded()] == [False]


def test_inside_of_a_heavy_package_nothing_is_delayed(write: Write) -> None:
    write("other", "import heavyweight\n")
    found = app(write, "import other\ndef use():\n    return other.__name__\n")
    assert not loaded("other")
    assert found.use() == "other"
    assert loaded()


def test_an_error_at_the_first_use_names_the_import_statement(write: Write, tmp_path: Path) -> None:
    write("other", "1 / 0\n")
    found = app(write, "# the first line\nimport other\ndef use():\n    return other.x\n")
    for _ in range(2):  # a later use tries again
        with pytest.raises(ZeroDivisionError) as caught:
            found.use()
        text = "".join(traceback.format_exception(caught.value))
        assert f'File "{tmp_path / "app" / "__init__.py"}", line 2, in <module>' in text


def test_threads_that_use_it_first_at_once_all_see_the_whole_of_it(write: Write) -> None:
    write("other", "import time\nA = 1\ntime.sleep(0.2)\nB = 2\n")
    found = app(write, "import other\ndef use():\n    return other.B\n")
    seen: list[object] = []
    ready = threading.Barrier(8)

    def use() -> None:
        ready.wait()
        try:
            seen.append(found.use())
        except Exception as error:
            seen.append(error)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [2] * 8


def test_a_low_recursion_limit_does_not_end_the_import(write: Write) -> None:
    """The preset ultra sets 200, and each nested import takes some frames."""
    for number in range(40):
        write(f"other{number}", f"import other{number + 1}\n" if number < 39 else "")
    write("other", "import other0\n")
    found = app(write, "import other\ndef use(n):\n    return use(n - 1) if n else other\n")
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(200)
    try:
        assert found.use(60).__name__ == "other"
        assert sys.getrecursionlimit() == 200
    finally:
        sys.setrecursionlimit(before)
        for name in [name for name in sys.modules if name.startswith("other")]:
            del sys.modules[name]


def test_in_a_forked_worker_what_the_master_has_delayed_is_loaded(write: Write) -> None:
    found = app(write, "import heavyweight\ndef use():\n    return heavyweight.LOADED\n")
    assert forks.asked(lambda: found.use() is True)
    assert not loaded()


def test_what_was_delayed_is_loaded_after_uninstall_too(write: Write) -> None:
    found = app(write, "import heavyweight\ndef use():\n    return heavyweight.LOADED\n")
    lazy.uninstall()
    assert not loaded()
    assert found.use() is True
    write("light", "import other\n")
    write("other")
    importlib.import_module("light")
    assert loaded("other")


def test_import_itself_stays_pythons_own() -> None:
    assert type(builtins.__import__).__name__ == "builtin_function_or_method"


def test_a_sites_own_filter_is_put_back() -> None:
    def keep(importer: str, name: str, fromlist: object) -> bool:
        return name != "csv"

    lazy.uninstall()
    python.set_lazy_imports_filter(keep)
    try:
        lazy.install(HEAVY)
        assert python.get_lazy_imports_filter() is not keep
        lazy.uninstall()
        assert python.get_lazy_imports_filter() is keep
    finally:
        python.set_lazy_imports_filter(None)


def test_a_site_whose_imports_are_all_lazy_is_left_so() -> None:
    lazy.uninstall()
    python.set_lazy_imports("all")
    try:
        lazy.install(HEAVY)
        assert python.get_lazy_imports_filter() is None
        assert lazy.installed() == tuple(HEAVY)
        lazy.uninstall()
        assert python.get_lazy_imports() == "all"
    finally:
        python.set_lazy_imports("normal")
