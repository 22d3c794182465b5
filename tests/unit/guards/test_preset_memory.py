"""The preset `memory`: the memory engine alone."""

from __future__ import annotations

from typing import Any

from helpers.fakes import MB
from helpers.wsgi import call, make_environ, post
from lowmem_wsgi import LowMemory

COOKIE = ("Set-Cookie", "session=ana; Path=/; HttpOnly")
CACHED = ("Cache-Control", "public, max-age=31536000")


class App:
    """Says what it has got."""

    def __init__(self) -> None:
        self.environ: dict[str, Any] = {}

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.environ = environ
        if environ["PATH_INFO"] == "/fail":
            raise MemoryError
        start_response("200 OK", [("Content-Type", "text/plain"), COOKIE, CACHED])
        return [str(len(environ["wsgi.input"].read())).encode()]


def wrapped(**settings: Any) -> tuple[App, LowMemory]:
    app = App()
    return app, LowMemory(app, preset="memory", **settings)


def test_an_upload_of_any_size_reaches_the_app_in_the_servers_own_stream() -> None:
    app, lowmem = wrapped()
    environ = post("/", b"x" * MB)
    stream = environ["wsgi.input"]
    found = call(lowmem, environ)
    assert (found.code, found.body) == (200, str(MB).encode())
    assert app.environ["wsgi.input"] is stream
    assert app.environ["lowmem.limits"]["max_upload"] is None


def test_a_session_cookie_passes_as_it_is_both_ways() -> None:
    app, lowmem = wrapped()
    found = call(lowmem, make_environ(HTTP_COOKIE="session=ana"))
    assert app.environ["HTTP_COOKIE"] == "session=ana"
    assert COOKIE in found.headers


def test_a_static_file_is_cached_for_as_long_as_the_app_says() -> None:
    found = call(wrapped()[1], make_environ("/static/site.css"))
    assert found.header("Cache-Control") == CACHED[1]


def test_a_request_that_runs_out_of_memory_is_503_all_the_same() -> None:
    found = call(wrapped()[1], make_environ("/fail"))
    assert (found.code, found.header("Retry-After")) == (503, "2")


def test_a_length_that_is_none_is_the_apps_business_also_while_memory_is_short() -> None:
    app, lowmem = wrapped()
    lowmem.runtime.monitor.running = True  # so that no thread looks at the real memory
    lowmem.start()
    lowmem.runtime.admission.largest = 1000
    assert call(lowmem, make_environ(CONTENT_LENGTH="many")).code == 200
    assert app.environ["CONTENT_LENGTH"] == "many"


def test_a_rule_can_be_had_on_top_of_it() -> None:
    _, lowmem = wrapped(max_upload="100KB", session_cookies="session", static_max_age="30s")
    assert call(lowmem, post("/", b"x" * 200_000)).code == 413
    found = call(lowmem, make_environ("/static/site.css"))
    assert found.header("Cache-Control") == "private, max-age=30"
    assert not any(value == COOKIE[1] for _, value in found.headers)


def test_within_an_app_of_this_preset_a_cap_of_an_inner_one_holds() -> None:
    app = App()
    outer = LowMemory(LowMemory(app, max_upload="100KB"), preset="memory")
    assert call(outer, post("/", b"x" * 200_000)).code == 413
    assert call(outer, post("/", b"x" * 50_000)).code == 200
