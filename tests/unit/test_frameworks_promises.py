"""What the frameworks are asked to tell of: of every app, and without ever failing in it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import falcon
import pytest
from django.core import signals
from flask import Flask, got_request_exception

from helpers.servers import clean_environ
from helpers.wsgi import call, make_environ
from lowmem_wsgi import LowMemory


def bare(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"ok"]


def flask() -> Flask:
    app = Flask("shop")

    @app.get("/")
    def view() -> str:
        raise MemoryError

    return app


@pytest.fixture
def served() -> Iterator[LowMemory]:
    """The receivers are there from an app's first request on."""
    app = LowMemory(flask())
    assert call(app, make_environ()).code == 503
    yield app
    app.close()


@pytest.mark.parametrize("own", [False, True], ids=["none of its own", "a handler of its own"])
def test_falcon_makes_no_500_of_a_memory_error_unless_the_app_has_a_handler_for_it(
    own: bool,
) -> None:
    class View:
        def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
            raise MemoryError

    def handle(request: Any, response: falcon.Response, error: Exception, params: Any) -> None:
        response.status = falcon.HTTP_507

    bare = falcon.App()
    bare.add_route("/", View())
    if own:
        bare.add_error_handler(MemoryError, handle)
    app = LowMemory(bare)
    assert call(app, make_environ()).code == (507 if own else 503)
    app.close()


# --- Each app is started


IN_TURN = """
    import sys

    from lowmem_wsgi import LowMemory
    from helpers.wsgi import call, make_environ
    import logging

    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")

    def bare(environ, start_response):
        start_response("200 OK", [])
        return [b"ok"]

    first = LowMemory(bare)
    assert call(first, make_environ()).code == 200
    assert "flask" not in sys.modules

    from flask import Flask

    app = Flask("shop")

    @app.get("/")
    def view():
        raise MemoryError

    second = LowMemory(app, max_upload="3MB")
    print(call(second, make_environ()).code, flush=True)
"""
AFTER_A_FORK = """
    import os
    pid = os.fork()
    if pid == 0:
        print(call(first, make_environ()).code, call(second, make_environ()).code, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
"""


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        env=clean_environ({"PYTHONPATH": os.pathsep.join(sys.path)}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_app_that_is_not_the_first_of_its_process_is_503_and_its_limits_are_logged() -> None:
    lines = run(IN_TURN).splitlines()
    assert "503" in lines
    (limits,) = [line for line in lines if "uploads to 3 MB (LOWMEM_MAX_UPLOAD)" in line]
    assert limits.startswith("lowmem-wsgi ")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_both_work_in_a_fork_of_the_process() -> None:
    assert "200 503" in run(IN_TURN + AFTER_A_FORK).splitlines()


def test_an_app_is_started_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lowmem_wsgi")
    first, second = LowMemory(bare), LowMemory(bare)
    for app in (first, second, first, second):
        call(app, make_environ())
    lines = [r for r in caplog.records if r.getMessage().startswith("lowmem-wsgi ")]
    assert len(lines) == 2
    for app in (first, second):
        app.close()


HEAVY = """
    import sys

    from lowmem_wsgi import LowMemory
    from helpers.wsgi import call, make_environ

    def importing(environ, start_response):
        import colorsys

        start_response("200 OK", [])
        return [b"ok"]

    def bare(environ, start_response):
        start_response("200 OK", [])
        return [b"ok"]

    sys.modules.pop("colorsys", None)
    first = LowMemory(importing, heavy_modules="colorsys")
    second = LowMemory(bare, heavy_modules="colorsys")
    first.start()
    assert call(second, make_environ()).code == 200
    assert call(first, make_environ("/report")).code == 200
    (row,) = first.status()["heavy"]
    print(row["module"], row["route"])
"""


def test_what_the_first_app_loads_is_told_with_its_route_though_a_second_was_started() -> None:
    assert run(HEAVY) == "colorsys GET /report\n"


# --- What receives their signals never raises


class Hostile:
    """Its attributes raise."""

    def __getattribute__(self, name: str) -> Any:
        raise ZeroDivisionError(name)


class ReadOnly(dict[str, Any]):
    def __setitem__(self, key: str, value: Any) -> None:
        raise TypeError("read only")


class Silent(RuntimeError):
    """Cannot be put in words."""

    def __str__(self) -> str:
        raise ZeroDivisionError


class Request:
    def __init__(self, environ: Any) -> None:
        self.environ = environ


REQUESTS = {
    "none": None,
    "of ASGI": object(),
    "without a dict": Request(None),
    "read only": Request(ReadOnly()),
    "hostile": Hostile(),
    "hostile environ": Request(Hostile()),
}
ERRORS = {"MemoryError": MemoryError(), "silent": Silent(), "another": KeyError("x")}


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("error", ERRORS)
def test_djangos_signal_is_received_whatever_the_request(
    served: LowMemory, kind: str, error: str
) -> None:
    request = REQUESTS[kind]
    import django.core.handlers.exception  # noqa: F401  (what sends it)

    call(LowMemory(bare), make_environ())  # Django is loaded by now
    try:
        raise ERRORS[error]
    except Exception:
        signals.got_request_exception.send(sender=None, request=request)
        signals.got_request_exception.send(sender=None)
    signals.got_request_exception.send(sender=None, request=request)


@pytest.mark.parametrize("kind", [*ERRORS, "none", "hostile"])
def test_flasks_signal_is_received_whatever_the_error(served: LowMemory, kind: str) -> None:
    error = ERRORS.get(kind) or REQUESTS[kind]
    app = flask()
    got_request_exception.send(app, exception=error)  # outside of a request
    got_request_exception.send(app)
    with app.test_request_context("/"):
        got_request_exception.send(app, exception=error)
        got_request_exception.send(app)
    with app.test_request_context("/") as context:
        kept, context.request.environ = context.request.environ, Hostile()  # type: ignore[assignment]
        got_request_exception.send(app, exception=error)
        context.request.environ = kept


def test_flasks_error_is_503_also_where_no_memory_is_left_to_note_it(
    served: LowMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = Flask("full")

    @app.get("/")
    def full() -> str:
        raise MemoryError

    def no_memory() -> bool:
        raise MemoryError

    wrapped = LowMemory(app)
    assert call(wrapped, make_environ()).code == 503
    monkeypatch.setattr("flask.has_request_context", no_memory)
    assert call(wrapped, make_environ()).code == 503


ASGI = """
    import asyncio, logging, sys, types

    from django.conf import settings

    settings.configure(
        ROOT_URLCONF="urls", ALLOWED_HOSTS=["*"], SECRET_KEY="x", LOGGING_CONFIG=None
    )
    import django
    from django.core.handlers.asgi import ASGIHandler
    from django.urls import path

    from lowmem_wsgi import LowMemory
    from helpers.wsgi import call, make_environ

    def view(request):
        raise KeyError("the app's own")

    urls = sys.modules["urls"] = types.ModuleType("urls")
    urls.urlpatterns = [path("", view)]
    django.setup()
    logging.basicConfig(level=logging.ERROR, stream=sys.stdout, format="%(name)s")

    def bare(environ, start_response):
        start_response("200 OK", [])
        return [b"ok"]

    assert call(LowMemory(bare), make_environ()).code == 200
    bodies = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive():
        if not bodies:
            await asyncio.sleep(600)
        return bodies.pop()

    async def send(message):
        if "status" in message:
            print(message["status"])

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    asyncio.run(ASGIHandler()(scope, receive, send))
"""


def test_django_answers_an_asgi_request_beside_a_wrapped_app() -> None:
    """In one process with a WSGI app of ours, as in a project that serves both."""
    lines = run(ASGI).splitlines()
    assert lines[-1] == "500"
    assert [line for line in lines if line.startswith(("django", "lowmem"))] == ["django.request"]
    errors = [line for line in lines if "Error" in line and not line.startswith(" ")]
    assert errors == ['KeyError: "the app\'s own"']
