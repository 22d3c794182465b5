"""A MemoryError that comes while another is being dealt with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import pytest

from fakes import Clock
from lowmem_wsgi import LowMemory
from lowmem_wsgi.guards import out_of_memory
from lowmem_wsgi.memory.ceiling import Ceiling
from lowmem_wsgi.memory.interrupt import Interrupt
from lowmem_wsgi.memory.reading import Usage
from lowmem_wsgi.memory.sentry import OFTEN, Sentry
from wsgi import call, make_environ

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


class Full(Ceiling):
    """There is no memory for a look at it."""

    def keep(self) -> None:
        raise MemoryError


def test_the_sentry_goes_on_when_there_is_no_memory_for_a_look() -> None:
    ceiling = Full(True, lambda: Usage(0, 1, "test"), now=Clock())
    assert Sentry(ceiling, Interrupt(), lambda: True).look() == OFTEN
