"""A request that runs out of memory, in each framework; and requests turned away before they do."""

from __future__ import annotations

import importlib
import json
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import bottle
import pytest
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path
from flask import Flask

from helpers.fakes import MB
from helpers.wsgi import Response, call, make_environ, post, validated
from lowmem_wsgi import LowMemory, OffloadBusy, OffloadError, OffloadMemoryError, OffloadTooLarge
from lowmem_wsgi.guards import out_of_memory
from lowmem_wsgi.memory.admission import SMALL
from lowmem_wsgi.memory.levels import CRITICAL, OK, WARN
from lowmem_wsgi.system.shortage import is_shortage
from lowmem_wsgi.system.usage import Usage

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

TEXT = [("Content-Type", "text/plain")]


class Big(bytearray):
    """What fills the memory, and can be watched."""


class View:
    """What the view of each app does: hold something big, and fail."""

    error: BaseException | type[BaseException] = MemoryError

    def __init__(self) -> None:
        self.held: list[weakref.ref[Big]] = []

    def __call__(self) -> str:
        big = Big(100_000)
        self.held.append(weakref.ref(big))
        try:
            self.attempt()
        except KeyError:  # as often: while another error is handled, that holds something itself
            raise self.error from None
        return "never"

    def attempt(self) -> None:
        big = Big(100_000)
        self.held.append(weakref.ref(big))
        raise KeyError

    def holding(self) -> list[bool]:
        return [ref() is not None for ref in self.held]

    def rows(self) -> Iterator[bytes]:
        yield b"first,"
        yield self().encode()


view = View()


@pytest.fixture(autouse=True)
def fresh_view() -> Iterator[None]:
    yield
    view.__dict__ = {"held": []}


# --- The apps


def plain(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    if environ["PATH_INFO"] == "/fail":
        view()
    start_response("200 OK", TEXT)
    return [b"well"]


def started(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", TEXT)
    if environ["PATH_INFO"] == "/fail":
        view()
    return [b"well"]


def generator(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    if environ["PATH_INFO"] == "/fail":
        view()
    start_response("200 OK", TEXT)
    yield b"well"


def flask(**config: Any) -> Flask:
    app = Flask("shop")
    app.config.update(config)
    app.get("/well")(lambda: "well")
    app.add_url_rule("/fail", view_func=view, endpoint="fail")
    app.get("/stream")(view.rows)
    return app


def propagating() -> Flask:
    return flask(PROPAGATE_EXCEPTIONS=True)


def with_a_page_of_its_own() -> Flask:
    app = flask()

    @app.errorhandler(500)
    def sorry(error: Exception) -> tuple[str, int]:
        return "our own page", 500

    return app


urlpatterns = [
    path("well", lambda request: HttpResponse("well")),
    path("fail", lambda request: HttpResponse(view())),
    path("stream", lambda request: StreamingHttpResponse(view.rows())),
]


def sorry(request: HttpRequest) -> HttpResponse:
    return HttpResponse("our own page", status=500)


def django() -> WSGIApplication:
    bare: WSGIApplication = importlib.import_module("apps.django_session").bare
    return bare


@pytest.fixture(scope="module", autouse=True)
def django_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SESSION_DIR", str(tmp_path_factory.mktemp("sessions")))
        django()
    from django.test import override_settings

    with override_settings(ROOT_URLCONF=__name__):
        yield


def with_bottle() -> bottle.Bottle:
    app = bottle.Bottle()
    app.get("/well")(lambda: "well")
    app.get("/fail")(view.__call__)
    app.get("/stream")(view.rows)
    return app


APPS: dict[str, Callable[[], Any]] = {
    "plain": lambda: plain,
    "plain, after start_response": lambda: started,
    "plain, in its first chunk": lambda: generator,
    "Flask": flask,
    "Flask that propagates": propagating,
    "Flask in debug mode": lambda: flask(DEBUG=True),
    "Flask with its own page": with_a_page_of_its_own,
    "Django": django,
    "Bottle": with_bottle,
}
STREAMING = ("Flask", "Django", "Bottle")
every_app = pytest.mark.parametrize("app", APPS.values(), ids=list(APPS))


# --- It fails, and not the container


@every_app
def test_a_request_that_runs_out_of_memory_is_503_and_the_next_one_is_served(
    app: Callable[[], Any],
) -> None:
    wrapped = LowMemory(app())
    response = call(wrapped, make_environ("/fail"))
    assert (response.code, response.header("Retry-After")) == (503, "2")
    assert response.header("Cache-Control") == "no-store"
    assert wrapped.status()["requests"]["out_of_memory"] == 1
    assert wrapped.runtime.in_flight.count() == 0
    assert call(wrapped, make_environ("/well")).body == b"well"
    assert wrapped.status()["requests"]["out_of_memory"] == 1


@every_app
def test_what_filled_the_memory_is_gone_before_the_answer_is_made(app: Callable[[], Any]) -> None:
    wrapped, alive = LowMemory(app()), []

    def server(environ: dict[str, Any], start_response: Any) -> Any:
        def look(*args: Any) -> Any:
            alive.append(view.holding())
            return start_response(*args)

        return wrapped(environ, look)

    assert call(server, make_environ("/fail")).code == 503
    assert alive == [[False, False]]


@pytest.mark.parametrize(
    ("accept", "begins"),
    [("", b"503 Service"), ("text/html", b"<!doctype html>"), ("application/json", b'{"status"')],
)
@every_app
def test_the_answer_speaks_what_the_client_accepts(
    app: Callable[[], Any], accept: str, begins: bytes
) -> None:
    response = call(LowMemory(app()), make_environ("/fail", HTTP_ACCEPT=accept))
    assert response.body.startswith(begins)
    assert accept in str(response.header("Content-Type"))
    if "json" in accept:
        assert json.loads(response.body)["status"] == 503


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_the_answer_is_by_the_letter_of_the_standard(method: str) -> None:
    wrapped = LowMemory(validated(plain))
    response = call(wrapped, make_environ("/fail", method, CONTENT_LENGTH="0"), strict=True)
    assert response.code == 503
    assert (response.body == b"") is (method == "HEAD")


@every_app
def test_other_errors_stay_what_the_framework_makes_of_them(app: Callable[[], Any]) -> None:
    bare, wrapped = app(), LowMemory(app())
    view.error = ZeroDivisionError("not ours")

    def outcome(served: Any) -> tuple[object, ...]:
        try:
            response = call(served, make_environ("/fail"))
        except ZeroDivisionError as error:
            return (type(error), str(error))
        assert response.code == 500
        return response.code, response.body

    assert outcome(wrapped) == outcome(bare)
    assert wrapped.status()["requests"]["out_of_memory"] == 0


@pytest.mark.parametrize(
    "error",
    [OffloadBusy("no room for tasks.read"), OffloadMemoryError("tasks.read needed more")],
    ids=["busy", "too large"],
)
@every_app
def test_a_child_process_without_room_is_503_and_no_hit_of_the_ceiling(
    app: Callable[[], Any], error: OffloadError, caplog: pytest.LogCaptureFixture
) -> None:
    wrapped = LowMemory(app())
    view.error = error
    response = call(wrapped, make_environ("/fail"))
    assert (response.code, response.header("Retry-After")) == (503, "2")
    assert f"GET /fail: {error} (setting: memory=" in caplog.text
    assert wrapped.status()["requests"]["out_of_memory"] == 0
    assert not wrapped.runtime.ceiling.met_by_one()


@every_app
def test_a_child_process_that_can_never_run_is_an_error_of_the_apps(app: Callable[[], Any]) -> None:
    view.error = OffloadTooLarge("tasks.read can never run here")
    try:
        response = call(LowMemory(app()), make_environ("/fail"))
    except OffloadTooLarge:
        return
    assert (response.code, response.header("Retry-After")) == (500, None)


class Proxy(Exception):
    """As of an RPC library: what it does not know itself, it asks far away, and fails."""

    def __getattr__(self, name: str) -> object:
        raise AttributeError(name) if name.startswith("_") else RuntimeError(name)


@every_app
def test_an_error_is_told_by_its_class_and_runs_no_code_of_the_apps(app: Callable[[], Any]) -> None:
    wrapped = LowMemory(app())
    view.error = Proxy("not ours")
    try:
        assert call(wrapped, make_environ("/fail")).code == 500
    except Proxy:
        pass
    assert wrapped.status()["requests"]["out_of_memory"] == 0
    assert wrapped.runtime.in_flight.count() == 0


def test_an_app_that_answers_a_memory_error_itself_is_left_to_it() -> None:
    app = flask()

    @app.errorhandler(MemoryError)
    def sorry(error: MemoryError) -> tuple[str, int]:
        return "a smaller file, please", 413

    wrapped = LowMemory(app)
    response = call(wrapped, make_environ("/fail"))
    assert (response.code, response.body) == (413, b"a smaller file, please")
    assert wrapped.status()["requests"]["out_of_memory"] == 0


def test_django_with_its_own_page_is_503_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from django.urls import clear_url_caches

    monkeypatch.setitem(globals(), "handler500", f"{__name__}.sorry")
    clear_url_caches()
    wrapped = LowMemory(django())
    view.error = ZeroDivisionError
    assert call(wrapped, make_environ("/fail")).body == b"our own page"
    view.error = MemoryError
    assert call(wrapped, make_environ("/fail")).code == 503
    clear_url_caches()


@pytest.mark.parametrize("name", STREAMING)
def test_after_the_first_byte_the_server_must_cut_it_off(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "lowmem_wsgi")
    wrapped, response = LowMemory(APPS[name]()), Response()

    def server(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        result = wrapped(environ, start_response)
        try:
            for chunk in result:
                response.chunks.append(chunk)
                yield chunk
        finally:
            result.close()  # type: ignore[attr-defined]

    with pytest.raises(MemoryError):
        call(server, make_environ("/stream"))
    assert response.chunks == [b"first,"]
    assert wrapped.status()["requests"]["out_of_memory"] == 1
    assert view.holding() == [False, False]
    (line,) = [r.getMessage() for r in caplog.records if r.name == "lowmem_wsgi"]
    assert "/stream" in line
    assert "MemoryError" in line
    assert wrapped.runtime.in_flight.count() == 0


def test_it_counts_as_a_meeting_with_the_ceiling() -> None:
    """A worker is not replaced for what one request asked for and gave back."""
    wrapped = LowMemory(plain, ceiling="off")  # so that nothing but this sets it
    wrapped.runtime.ceiling.usage = Usage(400 * MB, 512 * MB, "cgroup v2")
    call(wrapped, make_environ("/well"))
    assert not wrapped.runtime.ceiling.met_by_one()
    call(wrapped, make_environ("/fail"))
    assert wrapped.runtime.ceiling.met_by_one()


def test_where_there_is_no_ceiling_nothing_meets_it() -> None:
    wrapped = LowMemory(plain, ceiling="off")
    call(wrapped, make_environ("/fail"))
    assert wrapped.status()["requests"]["out_of_memory"] == 1
    assert not wrapped.runtime.ceiling.met_by_one()


# --- What counts as it


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (MemoryError("Unable to allocate 1.2 GiB"), True),
        (type("ArrayMemoryError", (MemoryError,), {})(), True),
        (SystemError("error return without exception set"), True),
        (SystemError("<built-in> returned NULL without setting an exception"), True),
        (SystemError("<function f> returned NULL without setting an error"), False),
        (SystemError("bad argument to internal function"), False),
        (SystemError(), False),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("dictionary changed size during iteration"), False),
        (RecursionError("maximum recursion depth exceeded"), False),
        (ValueError("can't start new thread"), False),
        # Of a library that is loaded: ld.so's words, and NumPy's of one half loaded before.
        (ImportError("libx.so.1: failed to map segment from shared object"), True),
        (ImportError("libx.so.1: cannot map zero-fill pages"), True),
        (ImportError("libx.so.1: cannot allocate memory in static TLS block"), True),
        (ImportError("x.so: Cannot allocate memory"), True),
        (ImportError("Error loading shared library libx.so: Out of memory"), True),  # musl
        (ImportError("cannot load module more than once per process"), True),
        (ImportError("cannot import name 'x' from 'y'"), False),
        (ImportError(), False),
        (ModuleNotFoundError("No module named 'failed'"), False),
        (OSError("libx.so.1: failed to map segment from shared object"), False),
        (OSError(12, "Cannot allocate memory"), True),  # of mmap or fork, at the ceiling
        (OSError(2, "No such file or directory"), False),
        (KeyboardInterrupt(), False),
    ],
    ids=repr,
)
def test_what_counts_as_a_shortage(error: BaseException, expected: bool) -> None:
    assert is_shortage(error) is expected
    wrapped = LowMemory(plain)
    view.error = error
    if expected:
        assert call(wrapped, make_environ("/fail")).code == 503
    else:
        with pytest.raises(type(error)):
            call(wrapped, make_environ("/fail"))
    assert wrapped.status()["requests"]["out_of_memory"] == expected


@pytest.mark.parametrize("name", ["Flask", "Flask with its own page", "Django"])
def test_frameworks_tell_of_the_others_as_well(name: str) -> None:
    wrapped = LowMemory(APPS[name]())
    view.error = RuntimeError("can't start new thread")
    assert call(wrapped, make_environ("/fail")).code == 503
    view.error = RuntimeError("another")
    assert call(wrapped, make_environ("/fail")).code == 500
    assert wrapped.status()["requests"]["out_of_memory"] == 1


# --- The log


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "lowmem_wsgi"]


def test_the_log_names_the_ceiling_where_it_is_in_force(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "lowmem_wsgi")
    wrapped = LowMemory(plain, ceiling="off")  # so that nothing but this sets it
    wrapped.runtime.ceiling.usage = Usage(400 * MB, 512 * MB, "cgroup v2")
    call(wrapped, make_environ("/fail"))
    (line,) = lines(caplog)
    figures = "at 400 MB of 512 MB (setting: LOWMEM_CEILING)"
    for part in ("503", "GET /fail", "MemoryError", figures):
        assert part in line


def test_and_not_where_there_is_none(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "lowmem_wsgi")
    wrapped = LowMemory(plain, ceiling="off")
    call(wrapped, make_environ("/fail"))
    (line,) = lines(caplog)
    assert "LOWMEM_CEILING" not in line
    assert "/fail" in line


def test_many_that_run_out_of_memory_are_one_line_and_all_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("WARNING", "lowmem_wsgi")
    wrapped = LowMemory(plain)
    for _ in range(20):
        call(wrapped, make_environ("/fail"))
    assert len(lines(caplog)) == 1
    assert wrapped.status()["requests"]["out_of_memory"] == 20


# --- Turned away


class Site:
    """An app whose memory is what a test says: its monitor does not run."""

    def __init__(self, **settings: Any) -> None:
        self.served: list[str] = []
        self.wrapped = LowMemory(self._app, **{"max_upload": "10MB", "ceiling": "off", **settings})
        self.runtime = self.wrapped.runtime
        self.runtime.monitor.running = True

    def _app(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.served.append(environ["PATH_INFO"])
        start_response("200 OK", TEXT)
        return [b""]

    def use(self, share: float, level: str) -> None:
        """Memory is this share of critical, and at this level."""
        critical = self.runtime.levels.critical
        self.runtime._keep_ceiling(
            Usage(int(share * critical), critical * 9 // 8, "process"), level
        )

    def close(self) -> None:
        """It is at critical, and has been for long."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lowmem_wsgi.memory.admission.PATIENCE", 0)
            self.use(1.01, CRITICAL)


def test_when_critical_lasts_everything_is_turned_away_until_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    site.use(1.01, CRITICAL)
    assert call(site.wrapped, make_environ("/early")).code == 200
    site.close()
    for method in ("GET", "POST"):
        response = call(site.wrapped, make_environ("/late", method))
        assert (response.code, response.header("Retry-After")) == (503, "2")
    assert site.wrapped.status()["requests"]["shed"] == 2
    (line,) = lines(caplog)
    assert "critical" in line
    assert "LOWMEM_CRITICAL_AT" in line
    site.use(0.9, WARN)
    assert call(site.wrapped, make_environ("/after")).code == 200
    assert site.served == ["/early", "/after"]
    assert site.wrapped.runtime.in_flight.count() == 0


@pytest.mark.parametrize("route", ["/healthz", "/ready", "/ready/deep"])
def test_exempt_paths_are_let_in_however_short_memory_is(route: str) -> None:
    site = Site(exempt_paths="/healthz,/ready", max_in_flight=1)
    site.close()
    assert call(site.wrapped, post(route, b"x" * 2 * SMALL)).code == 200
    assert call(site.wrapped, make_environ("/readiness")).code == 503
    assert site.served == [route]


@pytest.mark.parametrize(
    ("route", "method"), [("/api/memory-status", "GET"), ("/api/force-cleanup", "POST")]
)
def test_the_admin_routes_answer_however_short_memory_is(route: str, method: str) -> None:
    site = Site(admin_token="t")
    site.close()
    environ = make_environ(route, method, HTTP_AUTHORIZATION="Bearer t")
    assert call(site.wrapped, environ).code == 200


def test_at_warn_large_bodies_are_turned_away_and_small_ones_are_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    body = b"x" * 4 * SMALL
    site.use(0.98, OK)
    assert call(site.wrapped, post("/import", body)).code == 200
    site.use(0.999, WARN)
    response = call(site.wrapped, post("/import", body))
    assert (response.code, response.header("Retry-After")) == (503, "2")
    assert call(site.wrapped, post("/import", b"x" * SMALL)).code == 200
    assert call(site.wrapped, make_environ("/page")).code == 200
    assert call(site.wrapped, post("/import", body, chunked=True)).code == 200  # none declared
    (line,) = lines(caplog)
    assert f"{4 * SMALL} bytes declared" in line
    assert "LOWMEM_WARN_AT" in line
    site.use(0.5, OK)
    assert call(site.wrapped, post("/import", body)).code == 200
    assert site.wrapped.status()["requests"]["shed"] == 1


@pytest.mark.parametrize(
    ("declared", "code"), [("", 200), ("nonsense", 400), ("-5", 400), ("+9", 400), ("１２", 400)]
)
def test_a_length_that_is_none_is_left_to_the_cap_on_uploads(declared: str, code: int) -> None:
    site = Site(max_upload="1KB")
    site.use(0.999, WARN)
    environ = make_environ("/", CONTENT_LENGTH=declared)
    assert call(site.wrapped, environ).code == code
    assert len(site.served) == (code == 200)


def test_apps_in_one_process_close_together() -> None:
    one = Site()
    other = LowMemory(plain)
    one.close()
    assert call(other, make_environ("/well")).code == 503


def test_an_answer_of_last_resort_is_counted_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With no memory for a refusal either, until the app is left."""
    made, attempts = out_of_memory.refusal, iter(range(10))

    def refusal(*words: str) -> Any:
        if next(attempts) < 2:
            raise MemoryError
        return made(*words)

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise MemoryError

    monkeypatch.setattr(out_of_memory, "refusal", refusal)
    lowmem = LowMemory(app)
    found = call(lowmem, make_environ())
    assert (found.status, found.body) == ("503 Service Unavailable", b"")
    assert lowmem.status()["requests"]["out_of_memory"] == 1
    assert "MemoryError in the app" in caplog.text
