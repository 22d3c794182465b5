"""Run a framework's own tests with every app of the framework wrapped in LowMemory.

    python wrapped.py FRAMEWORK PRESET RESULT pytest ARGUMENTS...
    python wrapped.py FRAMEWORK PRESET RESULT runtests.py ARGUMENTS...    (Django)

FRAMEWORK is bottle, django, falcon or flask; PRESET is balanced, memory or ultra, or bare, to wrap
nothing. The file RESULT gets, as JSON, which tests passed, and how many requests went through
LowMemory.
"""

from __future__ import annotations

import atexit
import importlib
import itertools
import json
import os
import runpy
import sys
import unittest
from collections.abc import Callable, Iterable
from http.cookies import SimpleCookie
from pathlib import Path
from types import MethodType
from typing import Any

import pytest

from lowmem_wsgi import LowMemory

requests = itertools.count()  # of all apps of this process
passed: list[str] = []


class Counted(LowMemory):
    """LowMemory, and a count of its requests."""

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        next(requests)
        return LowMemory.__call__(self, environ, start_response)


# --- How each framework's apps are wrapped


def flask() -> None:
    """As the README says: app.wsgi_app = LowMemory(app.wsgi_app)."""
    from flask import Flask

    _wrap_attribute(Flask, "wsgi_app")


def bottle() -> None:
    from bottle import Bottle

    _wrap_attribute(Bottle, "wsgi")


def falcon() -> None:
    import falcon

    _wrap_calls(falcon.App)


def django() -> None:
    """The WSGI handler, and the handler of Django's test client, which is no WSGI app."""
    from django.core.handlers.wsgi import WSGIHandler
    from django.test.client import ClientHandler

    _wrap_calls(WSGIHandler)
    ClientHandler.__call__ = _served(ClientHandler.__call__)


def _wrap_attribute(kind: Any, name: str) -> None:
    """Wrap a method of each app as the app is made."""
    init = kind.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        setattr(self, name, Counted(getattr(self, name)))

    kind.__init__ = __init__


def _wrap_calls(kind: Any) -> None:
    """Wrap each app at its first call, for apps that take no attribute."""
    call = kind.__call__
    wrapped: dict[int, tuple[Any, Counted]] = {}  # the app too, so that no other gets its id

    def __call__(self: Any, environ: Any, start_response: Any) -> Any:
        if id(self) not in wrapped:
            wrapped[id(self)] = self, Counted(MethodType(call, self))
        return wrapped[id(self)][1](environ, start_response)

    kind.__call__ = __call__


def _served(handle: Callable[..., Any]) -> Callable[..., Any]:
    """Return a handler for Django's test client that goes through LowMemory.

    The client's handler returns Django's response for an environ. So make a WSGI app of it, and
    give the client Django's response with the status and the headers that left LowMemory.
    """

    def __call__(self: Any, environ: Any) -> Any:
        made: list[Any] = []
        sent: list[Any] = []

        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            response = handle(self, environ)
            made.append(response)
            cookies = [("Set-Cookie", c.OutputString()) for c in response.cookies.values()]
            start_response(f"{response.status_code} Django", [*response.items(), *cookies])
            return [] if response.streaming else [response.content]  # tests read streams

        def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
            sent[:] = status, headers

        app.__dict__["app"] = self  # where LowMemory looks for the app's secret
        result: Any = Counted(app)(environ, start_response)
        body = b"".join(result)
        getattr(result, "close", bytes)()
        return _response(environ, made, sent[0], sent[1], body)

    return __call__


def _response(
    environ: Any, made: list[Any], status: str, headers: list[tuple[str, str]], body: bytes
) -> Any:
    from django.core.handlers.wsgi import WSGIRequest
    from django.http import HttpResponse

    if status.endswith(" Django"):
        response = made[0]
    else:  # an answer of LowMemory's own
        response = HttpResponse(body, status=int(status[:3]))
        response.wsgi_request = WSGIRequest(environ)
    response.cookies = SimpleCookie()
    for name in [*response.headers]:
        del response.headers[name]
    for name, value in headers:
        if name.lower() == "set-cookie":
            response.cookies.load(value)
        else:
            response.headers[name] = value
    return response


WRAP: dict[str, Callable[[], None]] = {
    "bottle": bottle,
    "django": django,
    "falcon": falcon,
    "flask": flask,
}


# --- Running the tests


class Recorder:
    """A plugin of pytest's: notes which tests pass."""

    def __init__(self) -> None:
        self._reports: dict[str, set[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._reports.setdefault(report.nodeid, set()).add(report.outcome)

    def pytest_sessionfinish(self) -> None:
        passed.extend(test for test, outcomes in self._reports.items() if outcomes == {"passed"})


def _note_unittest() -> None:
    success = unittest.TestResult.addSuccess

    def add_success(self: unittest.TestResult, test: unittest.TestCase) -> None:
        passed.append(test.id())
        success(self, test)

    unittest.TestResult.addSuccess = add_success  # type: ignore[method-assign]


def main(framework: str, preset: str, result: str, script: str, *arguments: str) -> None:
    importlib.import_module(framework)  # also where nothing is wrapped: a few tests look for this
    if preset != "bare":
        os.environ["LOWMEM_PRESET"] = preset
        WRAP[framework]()
    owner = os.getpid()

    @atexit.register
    def write() -> None:
        if os.getpid() == owner:  # tests fork
            found = {"passed": sorted(passed), "requests": next(requests)}
            Path(result).write_text(json.dumps(found), encoding="utf-8")

    # As if the tests had been started without this file.
    sys.argv = [script, *arguments]
    sys.path[0] = os.getcwd()
    if script == "pytest":
        sys.exit(pytest.main([*arguments], plugins=[Recorder()]))
    _note_unittest()
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
