"""The rules of the house (docs/architecture.md), each with a planted violation that it finds."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import lowmem_wsgi

ROOT = Path(lowmem_wsgi.__file__).parent
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
    *("server", "worker", "builtins", "mallinfo", "trim", "timer", "record", "error", "root"),
    *("module", "spec", "result", "__spec__", "app", "_leave", "_thread"),
}


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


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_the_rule_and_a_planted_violation_is_found(rule: Rule) -> None:
    wrong: list[str] = []
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        wrong += rule(name, ast.parse(path.read_text(encoding="utf-8")))
    assert wrong == []
    name, planted = RULES[rule]
    assert len(list(rule(name, ast.parse(planted)))) == 1


@pytest.mark.parametrize("package", ["lowmem_wsgi", "lowmem_wsgi.imports"])
def test_documented_names_are_in_all_and_are_there(package: str) -> None:
    module = importlib.import_module(package)
    assert len(module.__all__) == len(set(module.__all__))
    for name in module.__all__:
        assert getattr(module, name) is not None
