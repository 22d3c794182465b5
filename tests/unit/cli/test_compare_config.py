"""Gunicorn's config of the bare app and of the source document's letter, without Gunicorn."""

from __future__ import annotations

import gc
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from lowmem_wsgi import LowMemory
from lowmem_wsgi.cli.compare import contenders

CONFIG = Path(contenders.__file__).with_name("gunicorn_config.py")
LETTER = dict(contenders.CONTENDERS[-1].variables)


class Worker:
    def __init__(self, wsgi: Any) -> None:
        self.wsgi = wsgi


def config(monkeypatch: pytest.MonkeyPatch, *, letter: bool = False) -> dict[str, Any]:
    for name, text in LETTER.items() if letter else ():
        monkeypatch.setenv(name, text)
    return runpy.run_path(str(CONFIG))


def hello(environ: Any, start_response: Any) -> list[bytes]:
    return [b"hello"]


def test_the_bare_app_is_served_without_a_wrap_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = LowMemory(LowMemory(hello))
    worker = Worker(wrapped)
    config(monkeypatch)["post_worker_init"](worker)
    assert worker.wsgi is hello
    flask = Flask("site")
    before = flask.wsgi_app
    flask.wsgi_app = LowMemory(flask.wsgi_app)  # type: ignore[method-assign]
    worker = Worker(LowMemory(flask))
    config(monkeypatch)["post_worker_init"](worker)
    assert worker.wsgi is flask
    assert flask.wsgi_app == before


def test_the_bare_app_has_no_setting_of_the_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    threshold, depth = gc.get_threshold(), sys.getrecursionlimit()
    found = config(monkeypatch)
    worker = Worker(hello)
    found["post_worker_init"](worker)
    assert worker.wsgi is hello
    assert (found["workers"], found["threads"], found["worker_class"]) == (1, 3, "gthread")
    assert found.keys().isdisjoint({"max_requests", "timeout", "worker_connections"})
    assert (gc.get_threshold(), sys.getrecursionlimit()) == (threshold, depth)


def test_the_letter_has_the_documents_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = config(monkeypatch, letter=True)
    numbers = {name: found[name] for name in ("workers", "worker_connections", "max_requests")}
    assert numbers == {"workers": 1, "worker_connections": 3, "max_requests": 3}
    assert found["timeout"] == 10
    collected: list[int] = []
    app = found["_collecting"](hello)

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            collected.append(info["generation"])

    gc.disable()
    gc.callbacks.append(note)
    try:
        assert app({}, None) == [b"hello"]
    finally:
        gc.callbacks.remove(note)
        gc.enable()
    assert collected == [2, 2, 2]


def test_the_letter_removes_the_documents_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    found = config(monkeypatch, letter=True)
    for name in ("pandas", "numpy.linalg", "matplotlib", "pandas_like"):
        monkeypatch.setitem(sys.modules, name, sys)
    kept = dict(sys.modules)
    try:
        found["_remove_heavy"]()
        assert not {"pandas", "numpy.linalg", "matplotlib"} & sys.modules.keys()
        assert "pandas_like" in sys.modules
    finally:
        sys.modules.update(kept)
