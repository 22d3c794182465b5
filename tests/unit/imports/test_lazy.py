"""`import heavyweight` costs nothing until it is used: the rules of it, on packages made here."""

from __future__ import annotations

import builtins
import doctest
import gc
import importlib
import inspect
import logging
import pickle
import pkgutil
import sys
import textwrap
import threading
import traceback
import unittest
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from helpers import forks
from lowmem_wsgi.imports import lazy, never_late, tracker
from lowmem_wsgi.imports.tracker import Tracker
from lowmem_wsgi.settings import SettingsError

Write = Callable[..., None]
HEAVY = ["heavyweight", "other"]


def children() -> list[str]:
    """The pids of this process's children; none where the system does not tell."""
    path = Path("/proc/thread-self/children")
    return path.read_text().split() if path.exists() else []


@pytest.fixture(autouse=True, scope="module")
def no_process_is_left_behind() -> Iterator[None]:
    before = children()
    yield
    assert children() == before


@pytest.fixture(autouse=True)
def late() -> Iterator[None]:
    """The imports of HEAVY are put off. Afterwards nothing of it is left."""
    before, real = set(sys.modules), builtins.__import__
    lazy.install(HEAVY)
    yield
    lazy.uninstall()
    stop_tracking()
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in {*HEAVY, "app", "broken", "compiled"}:
            del sys.modules[name]
    assert builtins.__import__ is real
    assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("lowmem")]


def stop_tracking() -> None:
    found = tracker.installed()
    if found is not None:
        found.stop()


@pytest.fixture
def heavyweight(write: Write) -> None:
    write(
        "heavyweight",
        """
        "What it is."
        import math
        LOADED = True
        class Thing: pass
        def lift(): "Lift it."
        """,
    )
    write("heavyweight.arms", "LONG = True\nfrom . import Thing\n")
    write("heavyweight.legs", "")


def loaded(name: str = "heavyweight") -> bool:
    return name in sys.modules


def run(code: str, file: str = "app.py") -> dict[str, Any]:
    """The namespace of a module of the app's with that text."""
    namespace: dict[str, Any] = {"__name__": "app", "__file__": file}
    exec(compile(textwrap.dedent(code), file, "exec"), namespace)
    return namespace


# --- When it is loaded

pytestmark = [
    pytest.mark.usefixtures("heavyweight"),
    pytest.mark.skipif(
        sys.version_info >= (3, 15), reason="Python 3.15 delays imports itself: see test_pep_810.py"
    ),
]


@pytest.mark.parametrize(
    ("code", "put_off"),
    [
        ("import heavyweight", {"heavyweight"}),
        ("import heavyweight as h", {"heavyweight"}),
        ("import heavyweight.arms", {"heavyweight", "heavyweight.arms"}),
        ("import heavyweight.arms as arms", {"heavyweight", "heavyweight.arms"}),
        ("import heavyweight, heavyweight.arms as a, sys", {"heavyweight", "heavyweight.arms"}),
        ("def f():\n  import heavyweight\nf()", {"heavyweight"}),
    ],
)
def test_a_statement_loads_nothing(code: str, put_off: set[str]) -> None:
    run(code)
    assert set(lazy.waiting()) == put_off
    assert not loaded()


@pytest.mark.parametrize(
    "code",
    [
        "from heavyweight import Thing",
        "from heavyweight import *",
        "from heavyweight import arms",
        "import importlib; importlib.import_module('heavyweight')",
        "__import__('heavyweight')",
        "import pkgutil; pkgutil.resolve_name('heavyweight:Thing')",
    ],
)
def test_what_needs_the_module_at_once_gets_it_at_once(code: str) -> None:
    early = run("import heavyweight")["heavyweight"]
    run(code)
    assert sys.modules["heavyweight"] is early  # and it is the one that was put off
    assert type(early) is ModuleType
    assert not lazy.waiting()


@pytest.mark.parametrize(
    "use",
    [
        "h.LOADED",
        "h.Thing()",
        "h.__doc__",
        "h.__dict__",
        "vars(h)",
        "dir(h)",
        "setattr(h, 'x', 1)",
        "hasattr(h, 'nothing')",
        "importlib.reload(h)",
    ],
)
def test_a_use_loads_it_and_it_is_a_module_like_any_other(use: str) -> None:
    found = run(f"import importlib\nimport heavyweight as h\n{use}")["h"]
    assert sys.modules["heavyweight"] is found
    assert type(found) is ModuleType
    assert found.LOADED
    spec = found.__spec__
    assert spec is not None
    assert spec.loader is found.__loader__
    assert not type(found.__loader__).__module__.startswith("lowmem_wsgi")
    assert "SourceFileLoader" in type(found.__loader__).__name__
    assert inspect.getsource(found.lift).startswith("def lift")
    assert repr(found) == f"<module 'heavyweight' from {found.__file__!r}>"
    assert found.__package__ == spec.parent == "heavyweight"
    assert importlib.reload(found) is found
    del found.LOADED
    assert not hasattr(found, "LOADED")


def test_a_deletion_is_a_use() -> None:
    namespace = run("import heavyweight as h\ndel h.LOADED")
    assert not hasattr(namespace["h"], "LOADED")
    assert namespace["h"].Thing


@pytest.mark.parametrize(
    "look",
    [
        "isinstance(h, type)",
        "isinstance(h, collections.abc.Callable)",
        "issubclass_of_no_class(h)",
        "inspect.unwrap(h)",
        "inspect.isclass(h) or inspect.isroutine(h) or inspect.ismodule(h)",
        "inspect.getfile(h)",
        "inspect.getmembers(sys.modules[__name__])",
        "inspect.getmodule(collections.abc.Callable.__call__)",
        "h.__name__ + h.__file__ + h.__path__[0] + h.__package__",
        "repr(h)",
        "h == 1, hash(h), bool(h), h is None",
        "doctest.DocTestFinder().find(sys.modules[__name__])",
        "importlib.util.find_spec('heavyweight')",
        "list(pkgutil.iter_modules(h.__path__))",
        "copyreg.dispatch_table.get(type(h)), h.__reduce_ex__(2)",
        "import_heavyweight_again()",
    ],
)
def test_a_look_is_no_use(look: str, write: Write) -> None:
    write(
        "app",
        """
        import collections.abc, copyreg, doctest, importlib.util, inspect, pkgutil, sys
        import heavyweight as h
        def issubclass_of_no_class(thing):
            try:
                issubclass(thing, int)
            except TypeError:
                pass
        def import_heavyweight_again():
            import heavyweight
            assert heavyweight is h
        """,
    )
    app = importlib.import_module("app")
    exec(look, vars(app))
    assert not loaded()
    assert app.h.LOADED


def test_nobody_who_looks_through_sys_modules_meets_it() -> None:
    """Matplotlib asks there whether pandas is in use, warnings are reset there, pickle searches
    there for a function's home."""
    run("import heavyweight as h, heavyweight.arms")
    for module in list(sys.modules.values()):
        getattr(module, "LOADED", None)
        getattr(module, "__warningregistry__", None)
    with unittest.TestCase().assertWarns(UserWarning):
        __import__("warnings").warn("x", UserWarning, stacklevel=1)
    pickle.dumps(len)
    assert not loaded()
    assert not loaded("heavyweight.arms")


def test_what_is_loaded_already_is_left_as_it_is() -> None:
    there = importlib.import_module("heavyweight")
    assert run("import heavyweight as h")["h"] is there
    assert not lazy.waiting()


def test_the_app_finds_what_it_pickled() -> None:
    late = run("import heavyweight as h")["h"]
    dumped = pickle.dumps(late)  # cloudpickle does, for a function that uses it
    assert not loaded()
    assert pickle.loads(dumped) is late
    assert pickle.loads(pickle.dumps(late.Thing)) is late.Thing


def test_the_record_names_the_line_of_the_first_use() -> None:
    namespace = run("import heavyweight as h\n\ndef f():\n  return h.LOADED", "/srv/app.py")
    assert tracker.loaded() == []
    assert namespace["f"]()
    (row,) = tracker.loaded()
    assert (row["module"], row["late"], row["first_use"]) == ("heavyweight", True, "/srv/app.py:4")


# --- Submodules


def test_a_package_that_is_used_leaves_its_submodule_put_off_and_has_it() -> None:
    namespace = run("import heavyweight, heavyweight.arms as arms")
    heavyweight = namespace["heavyweight"]
    assert heavyweight.LOADED
    assert not loaded("heavyweight.arms")
    assert heavyweight.arms is namespace["arms"]
    assert not loaded("heavyweight.arms")
    assert heavyweight.arms.LONG
    assert sys.modules["heavyweight.arms"] is namespace["arms"]
    assert heavyweight.arms.Thing is heavyweight.Thing


def test_a_submodule_of_a_loaded_package_is_put_off_each_time() -> None:
    """`matplotlib.use("Agg")` and then, in two modules, `import matplotlib.pyplot as plt`."""
    first = run("import heavyweight\nheavyweight.LOADED\nimport heavyweight.arms as arms")
    again = run("import heavyweight.arms as arms")
    assert loaded()
    assert not loaded("heavyweight.arms")
    assert again["arms"] is first["arms"]
    assert again["arms"].LONG


def test_a_submodule_that_is_used_loads_its_package_once(write: Write) -> None:
    write("heavyweight", "import sys\nsys.count = getattr(sys, 'count', 0) + 1\nclass Thing: pass")
    write("heavyweight.arms", "from . import Thing\nLONG = True")
    try:
        namespace = run("import heavyweight.arms\nimport heavyweight.legs as legs")
        assert namespace["heavyweight"].arms.LONG
        assert sys.count == 1  # type: ignore[attr-defined]
        assert not loaded("heavyweight.legs")
    finally:
        del sys.count  # type: ignore[attr-defined]


def test_a_package_that_imports_its_submodule_fills_the_one_that_was_put_off(write: Write) -> None:
    write("heavyweight", "from .arms import *\nfrom . import arms\nassert arms.__all__")
    write("heavyweight.arms", "__all__ = ['LONG']\nLONG = True")
    namespace = run("import heavyweight, heavyweight.arms as arms")
    assert namespace["heavyweight"].LONG
    assert type(namespace["arms"]) is ModuleType
    assert sys.modules["heavyweight.arms"] is namespace["arms"] is namespace["heavyweight"].arms


def test_a_package_may_call_another_thing_by_its_submodules_name(write: Write) -> None:
    write("heavyweight", "from .arms import arms")
    write("heavyweight.arms", "def arms(): return 'two'")
    namespace = run("import heavyweight.arms\nimport heavyweight.arms as a")
    assert namespace["heavyweight"].arms() == "two"  # as it is without us
    assert run("import heavyweight.arms as a")["a"]() == "two"


def test_a_heavy_module_below_a_light_package(write: Write) -> None:
    write("app", "LIGHT = True")
    write("app.heavy", "WEIGHT = 9")
    write("app.other", "")
    lazy.install([*HEAVY, "app.heavy"])
    namespace = run("import app.heavy as heavy\nimport app\nimport app.other")
    assert loaded("app.other")
    assert loaded("app")
    assert not loaded("app.heavy")
    assert namespace["app"].LIGHT
    assert namespace["app"].heavy.WEIGHT == namespace["heavy"].WEIGHT == 9


def test_inside_of_a_heavy_package_nothing_is_put_off(write: Write) -> None:
    write("other", "import heavyweight, sys\nFOUND = 'heavyweight' in sys.modules")
    assert run("import other")["other"].FOUND


def test_a_package_that_was_put_off_is_loaded_by_whoever_imports_a_part_of_it() -> None:
    """As compiled modules do, by PyImport_ImportModule."""
    late = run("import heavyweight")["heavyweight"]
    importlib.import_module("heavyweight.arms")
    assert sys.modules["heavyweight"] is late
    assert type(late) is ModuleType
    assert late.arms.LONG


# --- What is not there, or broken


@pytest.mark.parametrize("name", ["other", "heavyweight.nothing", "heavyweight.arms.hand"])
def test_what_cannot_be_found_is_missing_at_once(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=f"No module named '{name}'"):
        run(f"import {name}")
    namespace = run(f"try:\n  import {name}\nexcept ImportError:\n  missing = True")
    assert namespace["missing"]


def test_a_module_that_is_blocked_is_missing_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "heavyweight", None)
    with pytest.raises(ModuleNotFoundError):
        run("import heavyweight")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("1 / 0", ZeroDivisionError),
        ("import no_such_thing", ModuleNotFoundError),
        ("from math import no_such_thing", ImportError),
        ("x =", SyntaxError),
        ("try:\n  1 / 0\nexcept Exception as e:\n  raise OSError('?') from e", OSError),
        ("try:\n  1 / 0\nexcept Exception as e:\n  raise OSError('?')", OSError),
    ],
)
def test_what_is_broken_says_so_at_its_first_use_and_names_the_statement(
    write: Write, fault: str, error: type[Exception]
) -> None:
    write("other", f"HALF = 1\n{fault}" if error is not SyntaxError else fault)
    namespace = run("\n\nimport other", "/srv/site/app.py")
    for _ in range(2):  # it is tried again, as an import is
        with pytest.raises(error) as caught:
            namespace["other"].anything  # noqa: B018
        assert caught.type is error
        text = "".join(traceback.format_exception(caught.value))
        assert text.count("import of other was put off at /srv/site/app.py:3") == 1
        assert "LOWMEM_LAZY_HEAVY" in text
        if "1 / 0" in fault:
            assert "ZeroDivisionError" in text
        assert not loaded("other")
    write("other", "WHOLE = True")
    assert namespace["other"].WHOLE
    assert not hasattr(namespace["other"], "HALF")


def test_what_is_imported_without_us_has_its_error_untouched(write: Write) -> None:
    write("other", "1 / 0")
    run("import other")
    with pytest.raises(ZeroDivisionError) as caught:
        run("from other import x")
    assert caught.value.__cause__ is None


# --- Modules of their own kind


def test_a_module_that_takes_another_class(write: Write) -> None:
    write(
        "other",
        """
        import sys, types
        class Own(types.ModuleType):
            @property
            def answer(self): return 42
        sys.modules[__name__].__class__ = Own
        """,
    )
    other = run("import other")["other"]
    assert other.answer == 42
    assert type(other).__name__ == "Own"


def test_a_module_that_takes_another_class_and_fails_is_as_before(write: Write) -> None:
    write(
        "other",
        "import sys, types\nclass C(types.ModuleType): pass\n"
        "sys.modules[__name__].__class__ = C\n1 / 0",
    )
    other = run("import other")["other"]
    with pytest.raises(ZeroDivisionError):
        other.x  # noqa: B018
    write("other", "x = 1")
    assert other.x == 1


def test_a_module_that_puts_another_in_its_place(write: Write) -> None:
    write(
        "other",
        """
        import sys
        class Stand:
            answer = 42
        sys.modules[__name__] = stand = Stand()
        """,
    )
    namespace = run("import other")
    other = namespace["other"]
    assert other.answer == 42
    other.answer = 43
    assert sys.modules["other"].answer == 43
    del other.answer
    assert other.answer == 42
    assert run("import other")["other"] is sys.modules["other"]
    write("heavyweight", "import sys\nclass S: __slots__ = ()\nsys.modules[__name__] = S()")
    stand = run("import heavyweight, heavyweight.arms as arms")["heavyweight"]
    assert stand.__slots__ == ()


def test_a_module_with_getattr(write: Write) -> None:
    write(
        "other", "def __getattr__(name):\n  if name == 'x': return 1\n  raise AttributeError(name)"
    )
    other = run("import other")["other"]
    assert other.x == 1
    assert not hasattr(other, "y")


def test_a_module_that_looks_at_itself_while_it_loads(write: Write) -> None:
    write(
        "other",
        """
        import other, sys
        X = 1
        assert other.X == 1 and not hasattr(other, "Y")
        other.Z = 2
        assert Z == 2 and sys.modules[__name__] is other
        Y = 3
        """,
    )
    other = run("import other")["other"]
    assert (other.X, other.Y, other.Z) == (1, 3, 2)


def test_a_namespace_and_what_is_compiled_are_loaded_at_once(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    run("import other")
    assert loaded("other")
    compiled = next(
        name
        for name in ("_lsprof", "_zoneinfo", "_crypt", "_testcapi")
        if name not in sys.modules and find_spec(name) is not None
    )
    monkeypatch.delitem(sys.modules, compiled, raising=False)
    lazy.install([compiled])
    run(f"import {compiled}")
    assert loaded(compiled)
    assert not lazy.waiting()


# --- Threads


def together(count: int, work: Callable[[int], object]) -> list[object]:
    """What each of so many threads gets, all starting at once."""
    barrier, results = threading.Barrier(count), [None] * count

    def one(number: int) -> None:
        barrier.wait(30)
        try:
            results[number] = work(number)  # type: ignore[call-overload]
        except BaseException as error:
            results[number] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=one, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "deadlock"
    return list(results)


SLOW = """
import sys, time
sys.count = getattr(sys, "count", 0) + 1
A = 1
time.sleep(0.05)
class Thing: pass
B = 2
"""


def test_threads_that_use_it_first_at_once_all_see_the_whole_of_it(write: Write) -> None:
    write("heavyweight", SLOW)
    try:
        late = run("import heavyweight")["heavyweight"]
        uses: list[Callable[[], object]] = [
            lambda: late.B,
            lambda: run("from heavyweight import B")["B"],
            lambda: importlib.import_module("heavyweight").B,
            lambda: run("import heavyweight.legs\nimport heavyweight as h")["h"].B,
        ]
        assert together(8, lambda number: uses[number % 4]()) == [2] * 8
        assert sys.count == 1  # type: ignore[attr-defined]
        assert sys.modules["heavyweight"] is late
    finally:
        del sys.count  # type: ignore[attr-defined]


def test_threads_that_meet_a_broken_one_all_get_its_error(write: Write) -> None:
    write("other", "import time\ntime.sleep(0.02)\n1 / 0")
    late = run("import other")["other"]
    results = together(4, lambda number: late.x)
    assert {type(result) for result in results} == {ZeroDivisionError}


def test_two_packages_that_use_each_other_do_not_wait_for_each_other_for_ever(
    write: Write,
) -> None:
    for own, other in (("heavyweight", "other"), ("other", "heavyweight")):
        text = f"import time\nX = 1\ntime.sleep(0.05)\nimport {other}\n{other}.X\nY = 2"
        write(own, text)
    namespace = run("import heavyweight, other")
    late = [namespace["heavyweight"], namespace["other"]]
    assert together(2, lambda number: late[number].Y) == [2, 2]


def test_in_a_forked_worker_what_the_master_has_put_off_and_frozen_is_loaded() -> None:
    late = run("import heavyweight, heavyweight.arms")["heavyweight"]
    gc.collect()
    gc.freeze()

    def work() -> None:
        assert together(4, lambda number: late.LOADED) == [True] * 4
        assert late.arms.LONG
        assert type(late) is ModuleType

    forks.together(2, work)
    assert not loaded()


# --- Frames


def test_a_low_recursion_limit_is_lifted_for_the_import_alone(write: Write) -> None:
    """LOWMEM_PRESET=ultra has 200, and each module within a module takes seven frames."""
    write("heavyweight", "from .m0 import depth")
    for number in range(40):
        write(f"heavyweight.m{number}", f"from .m{number + 1} import depth")
    write("heavyweight.m40", "import sys\ndepth = sys.getrecursionlimit()")
    late = run("import heavyweight")["heavyweight"]
    before = sys.getrecursionlimit()
    depth = len(inspect.stack(0))
    sys.setrecursionlimit(depth + 100)
    try:
        assert late.depth >= 1000
        assert sys.getrecursionlimit() == depth + 100
    finally:
        sys.setrecursionlimit(before)


# --- On and off


@pytest.mark.parametrize("tracked", ["still", "no more"])
def test_what_was_put_off_is_loaded_after_uninstall_too(tracked: str) -> None:
    late = run("import heavyweight, heavyweight.arms")["heavyweight"]
    lazy.uninstall()
    if tracked == "no more":
        stop_tracking()
    assert run("import heavyweight.legs as legs")["legs"]
    assert late.LOADED
    assert late.arms.LONG
    assert late.Thing is sys.modules["heavyweight"].Thing
    assert lazy.installed() == ()
    lazy.uninstall()


def test_another_that_replaces_import_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, seen = builtins.__import__, []

    def theirs(name: str, *rest: Any) -> Any:
        seen.append(name)
        return ours(name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", theirs)
        run("import heavyweight")
        assert not loaded()
        lazy.uninstall()
        assert builtins.__import__ is theirs
        lazy.install(HEAVY)
        run("import heavyweight")
        assert not loaded()
        lazy.uninstall()
        run("import heavyweight.arms")
        assert loaded()
        lazy.install(HEAVY)
    assert seen.count("heavyweight") == 2


def test_a_hook_of_anothers_in_front_of_ours_sees_the_module_loaded() -> None:
    """As wrapt, and with it New Relic's and Datadog's agents, hook into imports."""
    seen: list[ModuleType] = []
    busy: list[str] = []

    class Hook:
        def find_spec(self, name: str, path: object, target: object = None) -> Any:
            if name != "heavyweight" or busy:
                return None
            busy.append(name)
            try:
                spec = find_spec(name)
            finally:
                busy.clear()
            assert spec is not None
            loader: Any = spec.loader

            def exec_module(module: ModuleType) -> None:
                loader.exec_module(module)
                seen.append(module)

            spec.loader = SimpleNamespace(  # type: ignore[assignment]
                create_module=loader.create_module, exec_module=exec_module
            )
            return spec

    hook = Hook()
    sys.meta_path.insert(0, hook)
    try:
        late = run("import heavyweight")["heavyweight"]
        assert not loaded()
        assert late.LOADED
    finally:
        sys.meta_path.remove(hook)
    assert seen == [late]
    assert sys.modules["heavyweight"] is late


def test_packages_that_break_are_left_alone_and_named(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    write("other", "")
    never_late.BREAKS["other"] = "it cannot wait"
    try:
        with caplog.at_level(logging.INFO, "lowmem_wsgi"):
            lazy.install(HEAVY)
            lazy.install(HEAVY)
    finally:
        del never_late.BREAKS["other"]
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        "other is not imported late: it cannot wait"
    ]
    run("import other")
    assert loaded("other")
    assert lazy.installed() == ("heavyweight",)


def test_the_modules_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWMEM_HEAVY_MODULES", "other,heavyweight,openpyxl")
    lazy.install()
    assert lazy.installed() == ("other", "heavyweight", "openpyxl")
    lazy.install("heavyweight, other")
    assert lazy.installed() == ("heavyweight", "other")
    with pytest.raises(SettingsError, match="hea vy"):
        lazy.install(["hea vy"])


def test_a_failure_of_ours_costs_lateness_and_no_import(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loading, troubles = Tracker.loading, [ZeroDivisionError("ours")]

    def failing_once(self: Tracker) -> list[str]:
        if troubles:
            raise troubles.pop()
        return loading(self)

    monkeypatch.setattr(Tracker, "loading", failing_once)
    assert run("import heavyweight")["heavyweight"].LOADED
    assert "Making an import late failed" in caplog.text


def test_what_looks_round_in_a_test_run_is_asked_quietly() -> None:
    """The names that pytest and doctest probe each object of a module for."""
    late = run("import heavyweight")["heavyweight"]
    for name in ("__wrapped__", "__test__", "_pytestfixturefunction", "__warningregistry__"):
        assert not hasattr(late, name)
    doctest.DocTestFinder().find(late.__class__)
    assert not list(pkgutil.iter_modules(late.__path__, "nothing.here."))[3:]
    assert not loaded()
