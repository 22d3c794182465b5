"""A MemoryError that comes while another is being dealt with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import pytest

from helpers.wsgi import call, make_environ
from lowmem_wsgi import LowMemory
from lowmem_wsgi.guards import out_of_memory

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def at_once(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    raise MemoryError


def at_its_first_chunk(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    start_response("200 OK", [])
    raise MemoryError
    yield b""


@pytest.mark.parametrize("app", [at_once, at_its_first_chunk])
def test_a_request_that_is_interrupted_as_it_fails_is_503_all_the_same(
    app: WSGIApplication, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go, calls = out_of_memory.let_go, []

    def interrupted(error: BaseException) -> None:
        calls.append(error)
        if len(calls) == 1:
            raise MemoryError  # as PyThreadState_SetAsyncExc has it raised, at any call
        let_go(error)

    monkeypatch.setattr(out_of_memory, "let_go", interrupted)
    wrapped = LowMemory(app)
    reply = call(wrapped, make_environ())
    assert reply.code == 503
    assert len(calls) == 2
    wrapped.close()


@pytest.mark.parametrize("app", [at_once, at_its_first_chunk])
def test_the_reserve_is_open_before_anything_is_done_about_it(
    app: WSGIApplication, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heap that is full to the last byte has no room for the answer."""
    wrapped, done = LowMemory(app), []
    let_go = out_of_memory.let_go

    def watched(error: BaseException) -> None:
        done.append("let go")
        let_go(error)

    monkeypatch.setattr(wrapped.runtime.ceiling, "open_reserve", lambda: done.append("open"))
    monkeypatch.setattr(out_of_memory, "let_go", watched)
    assert call(wrapped, make_environ()).code == 503
    assert done == ["open", "let go"]
    wrapped.close()


def a_library(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    raise ImportError("libheavy.so.1: failed to map segment from shared object")


def a_typo(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    raise ImportError("cannot import name 'heavy' from 'libraries'")


def test_a_library_that_cannot_be_mapped_is_503_and_another_failed_import_is_the_apps() -> None:
    wrapped = LowMemory(a_library)
    assert call(wrapped, make_environ()).code == 503
    wrapped.close()
    wrapped = LowMemory(a_typo)
    with pytest.raises(ImportError, match="cannot import name"):
        call(wrapped, make_environ())
    wrapped.close()
