"""The house: who may import whom, and what an import costs."""

from __future__ import annotations

import ast
from pathlib import Path

import lowmem_wsgi

ROOT = Path(lowmem_wsgi.__file__).parent

# A room may import from the rooms of a higher number, and from its own. (DESIGN §5.)
LEVELS = {
    "__main__": -2,
    "cli": -1,
    "gunicorn": -1,
    "__init__": -1,
    "offload": 0,
    "middleware": 1,
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
# Rooms on one level keep apart.
NEIGHBOURS: set[tuple[str, str]] = set()


def room(module: str) -> str:
    return module.split(".")[0] or "__init__"


def imports(path: Path) -> set[str]:
    """The package's own modules that a file imports, for real or for types."""
    package = [*path.relative_to(ROOT).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            module = [*base, *(node.module.split(".") if node.module else [])]
            found |= {".".join([*module, alias.name]) for alias in node.names}
    return found


def test_imports_go_down_the_house_and_never_round() -> None:
    wrong = []
    for path in ROOT.rglob("*.py"):
        own = room(path.relative_to(ROOT).with_suffix("").parts[0])
        for name in imports(path):
            other = room(name)
            if other not in LEVELS or other == own:
                continue
            allowed = LEVELS[own] < LEVELS[other] or (own, other) in NEIGHBOURS
            if not allowed and not _for_types_only(path, name):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def _for_types_only(path: Path, name: str) -> bool:
    """Whether the import stands under `if TYPE_CHECKING:` alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            for inner in node.body:
                if isinstance(inner, ast.ImportFrom) and inner.level:
                    names = {alias.name for alias in inner.names}
                    if name.rpartition(".")[2] in names:
                        return True
    return False


def test_memory_knows_no_web_and_guards_know_no_memory() -> None:
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        part = path.relative_to(ROOT).parts[0]
        if part == "memory":
            assert "werkzeug" not in text, path
            assert "wsgi" not in text.replace("lowmem-wsgi", "").replace("lowmem_wsgi", ""), path
        if part == "guards":
            assert not any(name.startswith("memory") for name in imports(path)), path
