"""What a request's route is called."""

from __future__ import annotations

import time
from typing import Any

import bottle
import flask
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.wsgi import call, make_environ
from lowmem_wsgi import LowMemory
from lowmem_wsgi.http.paths import ROUTE
from lowmem_wsgi.http.route_names import (
    LONGEST,
    MOST,
    NOT_FOUND,
    Names,
    folded,
    route_pattern,
)


def name_of(environ: dict[str, Any], status: str | None = "200 OK") -> str:
    return Names("/static/")(environ, status, route_pattern(environ))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("/clients/17", "/clients/<n>"),
        ("/clients/17/files/2", "/clients/<n>/files/<n>"),
        ("/clients/new", "/clients/new"),
        ("/o/6f1c0ffe-54a1-4b0e-9d0f-000000000001", "/o/<id>"),
        ("/o/5f3e9a7b", "/o/<id>"),
        ("/blob/dGhpcyBpcyBhIHRva2VuIDEyMw", "/blob/<id>"),
        ("/facade", "/facade"),
        ("/dashboards-of-the-department", "/dashboards-of-the-department"),
        ("/v2/report", "/v2/report"),
        ("", ""),
    ],
)
def test_what_looks_like_an_id_is_folded(path: str, expected: str) -> None:
    assert folded(path) == expected


def test_flask_tells_its_rule() -> None:
    app = flask.Flask(__name__)
    seen = []

    @app.get("/clients/<int:number>")
    def client(number: int) -> str:
        return str(number)

    def watched(environ: dict[str, Any], start_response: Any) -> Any:
        def started(*given: Any) -> Any:
            seen.append(name_of(environ))
            return start_response(*given)

        return app(environ, started)

    call(watched, make_environ(path="/clients/17"))
    call(watched, make_environ(path="/clients/17", SCRIPT_NAME="/shop"))
    assert seen == ["GET /clients/<int:number>", "GET /shop/clients/<int:number>"]


def test_bottle_tells_its_rule() -> None:
    app = bottle.Bottle()
    app.get("/clients/<number:int>")(str)
    environ = make_environ(path="/clients/17")
    call(app, environ)
    assert name_of(environ) == "GET /clients/<number:int>"


def test_an_app_may_tell_it() -> None:
    assert name_of(make_environ(path="/x/y", **{ROUTE: "/x/<slug>"})) == "GET /x/<slug>"


@pytest.mark.parametrize("told", [None, 5, b"/x"])
def test_what_is_no_text_is_not_told(told: object) -> None:
    assert name_of(make_environ("/x") | {ROUTE: told}) == "GET /x"


def test_a_path_that_nobody_knows_gets_no_name_of_its_own() -> None:
    assert name_of(make_environ(path="/wp-login.php"), "404 NOT FOUND") == f"GET {NOT_FOUND}"


def test_a_method_that_a_client_makes_up_gets_none_either() -> None:
    assert name_of(make_environ(method="<script>", path="/")) == "? /"


def test_static_files_are_one_route() -> None:
    assert name_of(make_environ(path="/static/css/a.css")) == "GET /static/…"


def test_paths_are_remembered_within_bounds() -> None:
    names = Names("/static/")
    for number in range(3 * MOST):
        names(make_environ(path=f"/{number}/x"), "200 OK")
    assert len(names._known) <= MOST


@given(st.text(st.characters(max_codepoint=255)), st.text())
def test_any_path_has_a_name_on_one_line_of_bounded_length(path: str, method: str) -> None:
    name = name_of(make_environ(method=method, path="/" + path))
    assert len(name.encode()) <= LONGEST
    assert name.isprintable()


def test_a_request_that_fails_keeps_its_route() -> None:
    app = flask.Flask(__name__)

    @app.get("/clients/<int:number>")
    def client(number: int) -> str:
        raise MemoryError if number == 17 else ZeroDivisionError

    wrapped = LowMemory(app)
    for number in (17, 18):
        assert call(wrapped, make_environ(path=f"/clients/{number}")).code in (500, 503)
    found = wrapped.runtime.gc_runner.attribution.routes
    end = time.monotonic() + 10
    while "GET /clients/<int:number>" not in found and time.monotonic() < end:
        wrapped.runtime.gc_runner.attribute()  # does nothing while the monitor runs passes
    assert set(found) - {"(no request)"} == {"GET /clients/<int:number>"}


def test_a_long_path_is_not_remembered() -> None:
    names = Names("/static/")
    name = names(make_environ(path="/" + "x" * 100_000), "200 OK")
    assert len(name.encode()) <= LONGEST
    assert not names._known
