"""Modules that a test writes."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a module, by its name: `a` is a/__init__.py, `a.b` is a/b.py."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(name: str, text: str = "") -> None:
        path = tmp_path.joinpath(*name.split("."))
        package = not path.parent.joinpath("__init__.py").exists()
        file = path / "__init__.py" if package else path.with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
        importlib.invalidate_caches()

    return write
