"""The rules of the house (docs/architecture.md), each with a planted violation that it finds."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import lowmem_wsgi

ROOT = Path(lowmem_wsgi.__file__).parent
TESTS = Path(__file__).parents[1]
Rule = Callable[[str, ast.Module], Iterator[str]]

# A room imports from rooms of a higher number, and from its own.
FLOORS = {
    "__main__": -3,
    "cli": -2,
    "gunicorn": -2,
    "__init__": -2,
    "offload": -1,
    "middleware": 0,
    "pipeline": 1,
    "runtime": 2,
    "admin": 3,
    "workers": 3,
    "guards": 3,
    "imports": 4,
    "memory": 4,
    "http": 4,
    "system": 5,
    "settings": 6,
    "metrics": 6,
    "log": 6,
    "_version": 7,
}
# Where a process keeps what it has one of. The child process of an offloaded call is one of its
# own; a Gunicorn config is read by the master alone.
KEEPERS = {"runtime.py", "offload/child.py", "gunicorn.py"}
# What a module may make at its top: constants.
CONSTANTS = {
    *("frozenset", "compile", "Struct", "TypeVar", "ParamSpec", "getLogger", "tuple", "namedtuple"),
    *("Path", "Kind", "maybe", "_matching", "sysconf", "with_name", "sorted", "getattr", "len"),
    *(
        "Refusal",
        "busy",
        "RouteFigures",
        "Counter",
        "_integer",
        "calcsize",
        "join",
        "float",
        "dict",
    ),
    *("MappingProxyType", "_no_more", "bytes", "fromkeys", "range", "EncodingWarning"),
}
# Objects of others that LowMemory changes on purpose: servers, the interpreter, foreign libraries.
OTHERS = {
    *(
        "server",
        "worker",
        "builtins",
        "mallinfo",
        "trim",
        "malloc",
        "free",
        "sbrk",
        "gthread",
        "record",
        "error",
        "root",
    ),
    *("module", "spec", "result", "__spec__", "app", "_leave", "_thread"),
    "bootstrap",  # of importlib, in the process that measures imports
}
# What sets an attribute by its name, or an item, and what changes a collection.
BY_NAME = {"setattr", "delattr"}
OF_MAPPINGS = {"setitem", "delitem"}
OF_COLLECTIONS = {
    *("append", "appendleft", "add", "insert", "extend", "update", "setdefault"),
    *("pop", "popleft", "popitem", "remove", "discard", "clear"),
}
PRIVATE = re.compile(r"\._(?!_)")


# --- The rules: each yields what is wrong in a module


def imports_go_down(name: str, tree: ast.Module) -> Iterator[str]:
    own = name.removesuffix(".py").split("/")[0]
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level or node in for_types:
            continue
        package = name.split("/")[:-1]
        base = package[: len(package) - node.level + 1]
        module = [*base, *(node.module.split(".") if node.module else [])]
        for found in [module[0]] if module else [alias.name for alias in node.names]:
            if found in FLOORS and found != own and FLOORS[own] >= FLOORS[found]:
                yield f"{name}:{node.lineno} imports {found}, which is above or beside"


def nothing_sets_anothers_attributes(name: str, tree: ast.Module) -> Iterator[str]:
    """A module may fill the objects of the classes that it defines itself, as it makes them."""
    own = {
        attribute.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for attribute in ast.walk(node)
        if isinstance(attribute, ast.Attribute)
        and isinstance(attribute.ctx, ast.Store)
        and getattr(attribute.value, "id", "") == "self"
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store):
            continue
        owner = getattr(node.value, "id", getattr(node.value, "attr", "the result of a call"))
        if owner not in ("self", "cls", *OTHERS) and node.attr not in own:
            yield f"{name}:{node.lineno} sets {ast.unparse(node)}"


def no_state_at_the_top(name: str, tree: ast.Module) -> Iterator[str]:
    if name in KEEPERS:
        return
    for node in tree.body:
        value = getattr(node, "value", None)
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            words = [x.id for t in targets for x in ast.walk(t) if isinstance(x, ast.Name)]
            constant = all(word.lstrip("_").isupper() or word == "__all__" for word in words)
            made = value.func if isinstance(value, ast.Call) else None
            call = getattr(made, "id", getattr(made, "attr", None))
            mutable = isinstance(value, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp))
            if (mutable and not constant) or (call is not None and call not in CONSTANTS):
                yield f"{name}:{node.lineno} keeps {', '.join(words)} at the top of a module"
    for inner in ast.walk(tree):
        if isinstance(inner, ast.Global):
            yield f"{name}:{inner.lineno} changes a global"


def one_place_knows_of_forks(name: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node.attr != "register_at_fork":
            continue
        if name not in ("runtime.py", "offload/admission.py"):
            yield f"{name}:{node.lineno} registers a hook for forks"


def memory_knows_no_web_and_guards_no_levers(name: str, tree: ast.Module) -> Iterator[str]:
    own = name.split("/")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            web = module.startswith(("werkzeug", "wsgiref", "_typeshed.wsgi", "http"))
            if own == "memory" and web:
                yield f"{name}:{node.lineno} knows of the web"
            if own == "guards" and module.startswith("memory"):
                yield f"{name}:{node.lineno} knows a lever of memory"


def no_test_sets_what_is_private(name: str, tree: ast.Module) -> Iterator[str]:
    """Of no object but `self`: not by a statement, nor by monkeypatch, nor by what changes a
    collection."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            path = ast.unparse(node)
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            path = ast.unparse(node.value)
        elif isinstance(node, ast.Call):
            path = set_by(node)
        else:
            continue
        if PRIVATE.search(path.removeprefix("self._").removeprefix("cls._")):
            yield f"{name}:{node.lineno} sets {path}"


def set_by(call: ast.Call) -> str:
    """What a call sets, or changes: `owner.attribute`; nothing where it does neither."""
    owner, _, function = ast.unparse(call.func).rpartition(".")
    if function in OF_COLLECTIONS:
        return owner
    if function in BY_NAME and call.args:
        # An object and a name, or both in one text.
        words = [x.value if isinstance(x, ast.Constant) else ast.unparse(x) for x in call.args]
        dotted = isinstance(call.args[0], ast.Constant)
        return str(words[0]) if dotted else ".".join(map(str, words[:2]))
    if function in OF_MAPPINGS and call.args:
        return ast.unparse(call.args[0])
    return ""


RULES: dict[Rule, tuple[str, str]] = {
    imports_go_down: ("memory/levels.py", "from ..runtime import current"),
    nothing_sets_anothers_attributes: (
        "workers/lifecycle.py",
        "def start(self, engine):\n    engine.ceiling.workers = self.count",
    ),
    no_state_at_the_top: ("memory/levels.py", "seen = []"),
    one_place_knows_of_forks: ("memory/levels.py", "import os\nos.register_at_fork"),
    memory_knows_no_web_and_guards_no_levers: ("memory/levels.py", "from werkzeug import http"),
}
OF_TESTS: dict[Rule, tuple[str, str]] = {
    no_test_sets_what_is_private: ("unit/test_runtime.py", "monitor._retry_at = 0.0"),
}


@pytest.mark.parametrize("rule", [*RULES, *OF_TESTS], ids=lambda rule: rule.__name__)
def test_the_house_keeps_the_rule_and_a_planted_violation_is_found(rule: Rule) -> None:
    root = TESTS if rule in OF_TESTS else ROOT
    wrong: list[str] = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        wrong += rule(name, ast.parse(path.read_text(encoding="utf-8")))
    assert wrong == []
    name, planted = {**RULES, **OF_TESTS}[rule]
    assert len(list(rule(name, ast.parse(planted)))) == 1


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        ("worker._rss = 1", 1),
        ("self.worker._rss = 1", 1),
        ("self._worker._rss = 1", 1),
        ("worker._started += 1", 1),
        ("del worker._rss", 1),
        ("app._pipeline.keys = 1", 1),
        ("page._map[0] = 1", 1),
        ("runtime._current.clear()", 1),
        ("runtime._current[0].undo.append(1)", 1),
        ("setattr(worker, '_rss', 1)", 1),
        ("monkeypatch.setattr(worker, '_rss', 1)", 1),
        ("monkeypatch.setattr(app._pipeline, 'keys', 1)", 1),
        ("monkeypatch.setattr('lowmem_wsgi.runtime._apps', ())", 1),
        ("monkeypatch.delattr(worker, '_rss')", 1),
        ("monkeypatch.setitem(app._known, 'a', 1)", 1),
        ("self._rss = 1", 0),
        ("self._files[worker._place] = self._rss", 0),
        ("self._files.append(worker._rss)", 0),
        ("worker.rss = worker._rss", 0),
        ("worker.__class__ = Other", 0),
        ("_began.clear()", 0),
        ("monkeypatch.setattr(_thread, 'start_new_thread', worker._run)", 0),
        ("monkeypatch.setattr('_thread.start_new_thread', worker._run)", 0),
        ("monkeypatch.setitem(sys.modules, '_thread', worker._run)", 0),
    ],
)
def test_what_sets_something_private(planted: str, found: int) -> None:
    assert len(list(no_test_sets_what_is_private("unit/test_x.py", ast.parse(planted)))) == found


@pytest.mark.parametrize("package", ["lowmem_wsgi", "lowmem_wsgi.imports"])
def test_documented_names_are_in_all_and_are_there(package: str) -> None:
    module = importlib.import_module(package)
    assert len(module.__all__) == len(set(module.__all__))
    for name in module.__all__:
        assert getattr(module, name) is not None
