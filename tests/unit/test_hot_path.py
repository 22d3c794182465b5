"""What each request, and each reading, goes through: calls of functions of the library."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import lowmem_wsgi
from helpers.wsgi import call, make_environ
from lowmem_wsgi import LowMemory

PACKAGE = str(Path(lowmem_wsgi.__file__).parent)


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]


def calls(work: Callable[[], object]) -> list[str]:
    """The library's functions that are called, in order. The fewest of some tries: now and then
    something else is due. Comprehensions and generator expressions are part of their function, as
    Python 3.12 has them."""
    tries = []
    for _ in range(10):
        seen: list[str] = []

        def note(frame: FrameType, event: str, arg: object, seen: list[str] = seen) -> None:
            code = frame.f_code
            part = code.co_name in ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
            if event == "call" and code.co_filename.startswith(PACKAGE) and not part:
                seen.append(f"{code.co_filename[len(PACKAGE) + 1 :]} {code.co_name}")

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            work()
        finally:
            sys.setprofile(before)
        tries.append(seen)
    return min(tries, key=len)


@pytest.fixture
def wrapped() -> LowMemory:
    app = LowMemory(hello)
    for _ in range(100):  # until it is warm
        assert call(app, make_environ()).code == 200
    return app


def test_a_request_takes_few_steps_and_opens_no_cold_module(wrapped: LowMemory) -> None:
    seen = calls(lambda: call(wrapped, make_environ()))
    assert len(seen) <= 35, "\n".join(seen)
    assert len({step.split()[0] for step in seen}) <= 13


def test_the_preset_memory_takes_fewer() -> None:
    app = LowMemory(hello, preset="memory")
    for _ in range(100):
        assert call(app, make_environ()).code == 200
    seen = calls(lambda: call(app, make_environ()))
    assert len(seen) <= 30, "\n".join(seen)
    assert not any(step.startswith(("guards/sessions", "guards/uploads")) for step in seen)


def test_a_reading_takes_few_steps(wrapped: LowMemory) -> None:
    wrapped.runtime.monitor.stop()
    seen = calls(wrapped.runtime.monitor.tick)
    assert len(seen) <= 64, "\n".join(seen)
    # Once for the level; once for the ceiling, which must read this process before the container.
    assert seen.count("system/cgroup.py glance") + seen.count("system/cgroup.py read") <= 2
