"""What the guards promise at the edge of memory: closed when they fail, and nothing left behind."""

from __future__ import annotations

import base64
import io
import json
import linecache
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import flask
import pytest
from werkzeug.middleware.dispatcher import DispatcherMiddleware

import lowmem_wsgi
from helpers.forks import fork
from helpers.wsgi import Response, call, make_environ, post, unheard, validated
from lowmem_wsgi import LowMemory
from lowmem_wsgi.guards.admission import Admission
from lowmem_wsgi.guards.guard import Guard
from lowmem_wsgi.guards.sessions import Sessions
from lowmem_wsgi.guards.uploads import UploadCap

KB = 1024
TEXT = [("Content-Type", "text/plain")]
STATUS, CLEANUP = "/api/memory-status", "/api/force-cleanup"
BEARER = {"HTTP_AUTHORIZATION": "Bearer t0ken"}
BASIC = {"HTTP_AUTHORIZATION": "Basic " + base64.b64encode(b"any:t0ken").decode()}


def plain(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", TEXT)
    return [environ["wsgi.input"].read(-1)]


def streaming(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", TEXT)
    yield b"one"
    yield b"two"


def answering(*headers: tuple[str, str]) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [*TEXT, *headers])
        return [environ.get("HTTP_COOKIE", "").encode("latin-1")]

    return app


def requests(wrapped: LowMemory) -> dict[str, int]:
    found: dict[str, int] = wrapped.status()["requests"]
    return found


def retried(response: Response) -> tuple[int, str | None]:
    return response.code, response.header("Retry-After")


@pytest.fixture
def short() -> Iterator[LowMemory]:
    """Memory is short: bodies over a few KB are turned away."""
    wrapped = LowMemory(plain, max_upload="1MB", ceiling="off")
    wrapped.runtime.monitor.running = True  # so that no thread looks at the real memory
    wrapped.start()
    wrapped.runtime.admission.largest = 8 * KB
    yield wrapped
    wrapped.close()


# --- Uploads


@pytest.mark.parametrize("length", ["+9", "-1", "nonsense", "5,5", "１２"])
def test_a_malformed_length_is_400_while_memory_is_short(short: LowMemory, length: str) -> None:
    before = requests(short)["total"]
    response = call(short, post("/", b"x" * 5000, CONTENT_LENGTH=length))
    assert response.code == 400
    assert requests(short)["total"] == before + 1


def test_a_413_while_memory_is_short_counts_once(short: LowMemory) -> None:
    names = ("uploads_rejected", "shed", "total")
    before = requests(short)
    assert call(short, post("/", b"x", CONTENT_LENGTH=str(2 * 1024 * KB))).code == 413
    assert retried(call(short, post("/", b"x" * 16 * KB))) == (503, "2")
    after = requests(short)
    assert [after[name] - before[name] for name in names] == [1, 1, 2]


@pytest.mark.parametrize("chunked", [False, True])
def test_the_stricter_cap_of_a_nested_lowmemory_holds(chunked: bool) -> None:
    def swallows(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        limits.append(environ["lowmem.limits"]["max_upload"])
        try:
            body = environ["wsgi.input"].read()
        except OSError:
            body = b"all is well"
        start_response("200 OK", TEXT)
        return [body]

    limits: list[int] = []
    wrapped = LowMemory(LowMemory(swallows, max_upload="1KB", upload_limits="/large=1MB"))
    call(wrapped, make_environ())  # counts are the site's, from the process's first request on
    before = requests(wrapped)["uploads_rejected"]
    response = call(wrapped, post("/", b"x" * 2 * KB, chunked=chunked))
    assert response.code == 413
    assert b"1 KB" in response.body
    assert call(wrapped, post("/", b"x" * KB, chunked=chunked)).body == b"x" * KB
    assert requests(wrapped)["uploads_rejected"] == before + 1
    # The outer cap of 512 KB holds as well.
    assert call(wrapped, post("/large", b"x" * 600 * KB, chunked=chunked)).code == 413
    assert call(wrapped, post("/large", b"x" * 2 * KB, chunked=chunked)).code == 200
    assert limits[-1] == 512 * KB


def test_a_nested_cap_counts_what_was_read_before_it() -> None:
    def reads_ahead(environ: dict[str, Any], start_response: Any) -> Any:
        assert environ["wsgi.input"].read(600) == b"x" * 600
        return inner(environ, start_response)

    inner = LowMemory(plain, max_upload="1KB")
    wrapped = LowMemory(reads_ahead)
    assert call(wrapped, post("/", b"x" * 1025, chunked=True)).code == 413
    assert call(wrapped, post("/", b"x" * 1024, chunked=True)).body == b"x" * 424


def test_a_request_that_was_refused_may_be_tried_again_with_the_same_environ() -> None:
    wrapped = LowMemory(plain, max_in_flight=1)
    environ = make_environ()
    inside: Any = wrapped(make_environ(), unheard)
    assert retried(call(wrapped, environ)) == (503, "2")
    inside.close()
    assert call(wrapped, environ).code == 200


class Idle:
    """A client that has stopped sending: reading from it would wait for ever."""

    reads = 0

    def read(self, size: int = -1) -> bytes:
        self.reads += 1
        return b""


@pytest.mark.parametrize("expect", [{}, {"HTTP_EXPECT": "100-continue"}])
def test_a_refused_body_is_not_read_where_no_socket_bounds_it(expect: dict[str, Any]) -> None:
    wrapped = LowMemory(plain, max_in_flight=1)
    for path, code in (("/", 413), (STATUS, 405)):
        environ = post(path, b"", CONTENT_LENGTH=str(600 * KB), **expect)
        environ["wsgi.input"] = idle = Idle()
        assert call(wrapped, environ).code == code
        assert idle.reads == 0


def test_a_refused_upload_that_is_drained_takes_no_place() -> None:
    class Socket:
        def shutdown(self, how: int) -> None:
            pass

    class Asking:
        """While the rest of a body comes, another client is served."""

        def read(self, size: int = -1) -> bytes:
            others.append(call(wrapped, make_environ()).code)
            return b""

    def overflows(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if "CONTENT_LENGTH" in environ or "HTTP_TRANSFER_ENCODING" in environ:
            environ["wsgi.input"].read(2 * KB)
            environ["wsgi.input"].stream = Asking()
            environ["wsgi.input"].read()
        start_response("200 OK", TEXT)
        return [b"served"]

    others: list[int] = []
    wrapped = LowMemory(overflows, max_in_flight=1, max_upload="1KB")
    declared = post("/", b"", CONTENT_LENGTH=str(5 * KB))
    declared |= {"gunicorn.socket": Socket(), "wsgi.input": Asking()}
    assert call(wrapped, declared).code == 413
    assert others == [200]


# --- Static files


def mounted(app: Any) -> LowMemory:
    return LowMemory(DispatcherMiddleware(plain, {"/account": app}))


@pytest.mark.parametrize("said", ["no-cache", "no-store", "private", "private, max-age=600"])
@pytest.mark.parametrize("path", ["/account/static/x", "/static/x", "/page"])
def test_an_app_that_says_not_to_cache_is_left_to_its_word(said: str, path: str) -> None:
    app = answering(("Cache-Control", said), ("ETag", '"1"'))
    for wrapped in (mounted(app), LowMemory(app)):
        if path.startswith("/account") or wrapped.app is app:
            assert call(wrapped, make_environ(path)).header("Cache-Control") == said


def test_the_static_rule_goes_by_the_path_that_came_in() -> None:
    wrapped = mounted(answering(("Cache-Control", "public, max-age=600")))
    said = call(wrapped, make_environ("/account/static/x")).header("Cache-Control")
    assert said == "public, max-age=600"
    app = answering(("Cache-Control", "public, max-age=600"))
    at_root = LowMemory(DispatcherMiddleware(plain, {"/static": app}))
    said = call(at_root, make_environ("/static/x")).header("Cache-Control")
    assert said == "public, max-age=30"
    # A mount outside LowMemory is no part of it.
    said = call(at_root, make_environ("/static/x", SCRIPT_NAME="/shop")).header("Cache-Control")
    assert said == "public, max-age=30"


def test_flasks_default_for_static_files_gives_way_and_the_apps_word_does_not(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.css").write_text("a{}")
    app = flask.Flask("shop", static_folder=str(tmp_path), static_url_path="/static")

    @app.get("/static/live")
    def live() -> flask.Response:
        response = flask.Response("now")
        response.cache_control.no_cache = True
        response.set_etag("1")
        return response

    @app.after_request
    def never(response: flask.Response) -> flask.Response:
        if flask.request.args:
            response.headers["Cache-Control"] = "no-store"
        return response

    wrapped = LowMemory(app)
    first = call(wrapped, make_environ("/static/a.css"))
    assert (first.code, first.header("Cache-Control")) == (200, "max-age=30")
    again = make_environ("/static/a.css", HTTP_IF_NONE_MATCH=first.header("ETag"))
    answer = call(wrapped, again)
    assert (answer.code, answer.header("Cache-Control")) == (304, "max-age=30")
    assert call(wrapped, make_environ("/static/live")).header("Cache-Control") == "no-cache"
    environ = make_environ("/static/a.css", QUERY_STRING="never=1")
    assert call(wrapped, environ).header("Cache-Control") == "no-store"


def test_route_names_keep_their_mount() -> None:
    wrapped = mounted(plain)
    named: list[str] = []
    wrapped.runtime.gc_runner.attribution.ended = (  # type: ignore[method-assign]
        lambda name, shared: named.append(name)
    )
    wrapped = mounted(plain)
    for path in ("/account/clients/17", "/account/x", "/y", "/static/a.css"):
        call(wrapped, make_environ(path))
    call(wrapped, make_environ("/y", SCRIPT_NAME="/shop"))
    call(wrapped, make_environ("/static/a.css", SCRIPT_NAME="/shop"))
    assert named == [
        "GET /account/clients/<n>",
        *("GET /account/x", "GET /y", "GET /static/…"),
        *("GET /shop/y", "GET /shop/static/…"),
    ]


# --- The routes


def cleanup(method: str, **headers: str) -> int:
    wrapped = LowMemory(plain, admin_token="t0ken")
    headers = {"HTTP_HOST": "shop.example:8000", **headers}
    before = wrapped.status()["cleanups"]["last_at"]
    response = call(wrapped, make_environ(CLEANUP, method, **headers))
    done = wrapped.status()["cleanups"]["last_at"] != before
    assert done == (response.code == 200)
    return response.code


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 403),
        ({"HTTP_ORIGIN": "http://shop.example:8000"}, 200),
        ({"HTTP_ORIGIN": "https://SHOP.example:8000"}, 200),
        ({"HTTP_ORIGIN": "http://shop.example"}, 403),
        ({"HTTP_ORIGIN": "http://evil.example:8000"}, 403),
        ({"HTTP_ORIGIN": "http://shop.example:8000.evil.example"}, 403),
        ({"HTTP_ORIGIN": "http://shop.example:8000@evil.example"}, 403),
        ({"HTTP_ORIGIN": "null"}, 403),
        ({"HTTP_ORIGIN": "null", "HTTP_REFERER": "http://shop.example:8000/"}, 403),
        ({"HTTP_ORIGIN": "http://[", "HTTP_REFERER": "http://shop.example:8000/"}, 403),
        ({"HTTP_REFERER": "http://shop.example:8000/api/memory-status"}, 200),
        ({"HTTP_REFERER": "http://evil.example/?http://shop.example:8000/"}, 403),
        ({"HTTP_HOST": "shop.example", "HTTP_ORIGIN": "https://shop.example"}, 200),
        ({"HTTP_HOST": "shop.example:443", "HTTP_ORIGIN": "https://shop.example"}, 200),
        ({"HTTP_HOST": "", "HTTP_ORIGIN": ""}, 403),
        ({"HTTP_SEC_FETCH_SITE": "same-origin"}, 200),
        ({"HTTP_SEC_FETCH_SITE": "cross-site", "HTTP_ORIGIN": "http://shop.example:8000"}, 403),
        ({"HTTP_SEC_FETCH_SITE": "same-site"}, 403),
    ],
)
def test_a_post_with_a_password_acts_for_a_page_of_this_host_alone(
    headers: dict[str, str], code: int
) -> None:
    assert cleanup("POST", **BASIC, **headers) == code


@pytest.mark.parametrize("site", [None, "none", "same-origin", "cross-site"])
def test_a_get_with_a_password_never_acts(site: str | None) -> None:
    sent = {} if site is None else {"HTTP_SEC_FETCH_SITE": site}
    assert cleanup("GET", **BASIC, HTTP_ORIGIN="http://shop.example:8000", **sent) == 403


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_bearer_needs_no_origin(method: str) -> None:
    assert cleanup(method, **BEARER) == 200
    assert cleanup(method, HTTP_AUTHORIZATION="bearer  t0ken") == 200


@pytest.mark.parametrize("scheme", ["Digest", "Token", "Negotiate", "", "Bearer-x", "Basic"])
def test_bearer_and_basic_are_the_only_schemes(scheme: str) -> None:
    assert cleanup("POST", HTTP_AUTHORIZATION=f"{scheme} t0ken") == 401


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("text/html; q=0.1, application/json; q=0.9", "application/json"),
        ("text/html;q=0.1,application/json;q=0.9", "application/json"),
        ("application/json; q=0.1 , text/html ; Q = 0.9", "text/html; charset=utf-8"),
        ("text/html;level=1; q=0.2, application/*; q=0.3", "application/json"),
        ("text/html, application/xhtml+xml, */*;q=0.8", "text/html; charset=utf-8"),
        ("*/*;q=0.9, text/html;q=0", "application/json"),
        ("text/html;q=nan, application/json;q=0.1", "application/json"),
        ("", "application/json"),
    ],
)
def test_the_status_speaks_what_accept_likes_best(accept: str, content_type: str) -> None:
    response = call(LowMemory(plain), make_environ(STATUS, HTTP_ACCEPT=accept))
    assert response.header("Content-Type") == content_type


def test_every_refusal_in_json_is_json() -> None:
    wrapped = LowMemory(plain, admin_token="t0ken", max_upload="1KB")
    json_please: dict[str, Any] = {"HTTP_ACCEPT": "application/json"}
    asked = [
        make_environ(STATUS, **json_please),
        make_environ(STATUS, "DELETE", **json_please),
        make_environ(STATUS, QUERY_STRING="format=x", **BEARER, **json_please),
        make_environ(CLEANUP, **BASIC, **json_please),
        make_environ(CLEANUP, "POST", **BASIC, **json_please),
        post("/", b"x" * 2 * KB, **json_please),
        post("/", b"x", CONTENT_LENGTH="x", **json_please),
    ]
    answers = [call(wrapped, environ) for environ in asked]
    assert [answer.code for answer in answers] == [401, 405, 400, 403, 403, 413, 400]
    for answer in answers:
        assert json.loads(answer.body)["status"] == answer.code


@pytest.mark.parametrize("path", [STATUS, CLEANUP])
def test_a_route_without_memory_for_its_answer_is_503(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object, **__: object) -> Any:
        raise MemoryError

    wrapped = LowMemory(plain, admin_token="t0ken")
    with monkeypatch.context() as patch:
        patch.setattr(wrapped, "status", none_left)
        patch.setattr(wrapped, "cleanup", none_left)
        patch.setitem(sys.modules, "werkzeug", None)  # no import either
        patch.setitem(sys.modules, "werkzeug.http", None)
        assert retried(call(wrapped, make_environ(path, **BEARER), strict=True)) == (503, "2")
    assert call(wrapped, make_environ(path, **BEARER)).code == 200


# --- A guard that fails


@pytest.mark.parametrize("error", [MemoryError, ZeroDivisionError])
@pytest.mark.parametrize(
    ("guard", "method"),
    [
        (Admission, "enter"),
        (UploadCap, "enter"),
        (Sessions, "enter"),
        (Sessions, "amend"),
    ],
)
@pytest.mark.parametrize("app", [plain, streaming])
def test_a_rule_that_protects_refuses_where_it_fails(
    guard: type[Guard],
    method: str,
    error: type[Exception],
    app: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise error

    wrapped = LowMemory(app)
    with monkeypatch.context() as patch:
        patch.setattr(guard, method, broken)
        for _ in range(2):
            assert retried(call(wrapped, make_environ(), strict=True)) == (503, "2")
    tracebacks = [record for record in caplog.records if record.exc_info]
    assert len(tracebacks) == (error is ZeroDivisionError)
    assert requests(wrapped)["in_flight"] == 0
    assert call(wrapped, make_environ()).code == 200


class Unreadable:
    """There is no memory for the next piece of the body."""

    def read(self, size: int = -1) -> bytes:
        raise MemoryError

    readline = read


def flask_reading() -> flask.Flask:
    app = flask.Flask("shop")
    app.post("/")(lambda: str(len(flask.request.get_data())))
    return app


def swallowing(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    try:
        environ["wsgi.input"].read()
    except Exception:
        start_response("400 Bad Request", TEXT)
        return [b"malformed"]
    raise AssertionError("the body was read")


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("make", [lambda: plain, lambda: swallowing, flask_reading])
def test_no_memory_for_a_body_is_503_and_not_400(make: Callable[[], Any], chunked: bool) -> None:
    wrapped = LowMemory(make())
    environ = post("/", b"x" * 100, chunked=chunked)
    environ["wsgi.input"] = Unreadable()
    assert retried(call(wrapped, environ)) == (503, "2")
    assert wrapped.status()["requests"]["out_of_memory"] == 1


def test_no_memory_for_a_session_neither_logs_out_nor_lets_it_leave_unsealed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrapped = LowMemory(answering(("Set-Cookie", "session=secret; Path=/")), secret_key="k" * 32)
    cookie = call(wrapped, make_environ()).cookies()["session"].partition(";")[0]
    assert cookie != "session=secret"

    import lowmem_wsgi.guards.sessions as module

    for name in ("seal", "unseal"):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, Unreadable().read)
            response = call(wrapped, make_environ(HTTP_COOKIE=cookie))
            assert retried(response) == (503, "2")
            assert response.cookies() == {}
    # The visitor is still logged in.
    assert call(wrapped, make_environ(HTTP_COOKIE=cookie)).body == b"session=secret"


def test_no_memory_for_any_answer_is_a_bare_503(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise MemoryError

    from lowmem_wsgi.http.refusals import Refusal

    monkeypatch.setattr(Refusal, "__call__", lambda self, environ, start: fails(environ, start))
    wrapped = LowMemory(fails)
    response = call(wrapped, make_environ(), strict=False)
    assert (retried(response), response.body) == ((503, "2"), b"")
    assert requests(wrapped)["in_flight"] == 0


# --- A MemoryError from outside, at any moment

HOUSE = os.path.dirname(lowmem_wsgi.__file__)


class Strike:
    """Raises MemoryError at the n-th event in the package, as PyThreadState_SetAsyncExc may.

    Not on the line of a `with`: the interpreter raises none between a lock and its block.
    """

    def __init__(self, event: str, number: int) -> None:
        self._event = event
        self._left = number
        self.struck: str | None = None

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(HOUSE) or f"{os.sep}memory{os.sep}" in file or "log.py" in file:
            return None
        frame.f_trace_opcodes = self._event == "opcode"
        return self._within

    def _within(self, frame: FrameType, event: str, arg: object) -> Any:
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno or 0).strip()
        if event == self._event and not line.startswith("with "):
            self._left -= 1
            if self._left == 0:
                self.struck = f"{frame.f_code.co_name}: {line}"
                raise MemoryError
        return self._within


def during(strike: Strike, action: Callable[[], object]) -> bool:
    """Do it under fire. Whether the MemoryError came out."""
    before = sys.gettrace()
    sys.settrace(strike)
    try:
        action()
    except MemoryError:
        return True
    finally:
        sys.settrace(before)
    return False


def left_behind(wrapped: LowMemory) -> tuple[int, list[object]]:
    status = wrapped.status()
    own = next(worker for worker in status["workers"] if worker["this"])
    return status["requests"]["in_flight"], own["in_flight"]


@pytest.mark.parametrize("app", [plain, streaming])
def test_a_request_struck_as_it_ends_leaves_nothing_behind(app: Any) -> None:
    wrapped = LowMemory(app, max_in_flight=1)
    struck: list[str] = []
    missed = 0  # in a row: Python 3.13 tells of a function's opcodes from its second call on
    while missed < 5:
        result: Any = wrapped(make_environ(), unheard)
        list(result)
        strike = Strike("opcode", len(struck) + 1)
        during(strike, result.close)
        del result
        missed = missed + 1 if strike.struck is None else 0
        if strike.struck is None:
            continue
        struck.append(strike.struck)
        assert wrapped.runtime.in_flight.count() == 0, strike.struck
    assert len(struck) > 100
    assert left_behind(wrapped) == (0, [])
    assert call(wrapped, make_environ()).code == 200


# Before their `try` nothing has begun; once their chunk is on its way the answer has begun.
AROUND = ("__call__", "__iter__", "__next__", "_begin", "first")


@pytest.mark.parametrize("app", [plain, streaming])
def test_a_request_struck_at_any_line_is_answered_200_or_503(app: Any) -> None:
    wrapped = LowMemory(app, max_in_flight=1)
    call(wrapped, make_environ())
    struck: list[str] = []
    codes = set()
    while True:
        sent: list[Any] = []
        results: list[Any] = []

        def serve(sent: list[Any] = sent, results: list[Any] = results) -> None:
            def start_response(*given: object) -> Callable[[bytes], object]:
                sent.append(given)
                return bytes

            results.append(wrapped(make_environ(), start_response))
            for _ in results[0]:
                pass

        strike = Strike("line", len(struck) + 1)
        raised = during(strike, serve)
        for result in results:
            getattr(result, "close", int)()
        del results, serve
        if strike.struck is None:
            break
        struck.append(strike.struck)
        assert wrapped.runtime.in_flight.count() == 0, strike.struck
        if not raised:
            status, headers = sent[-1][:2]
            assert (status[:3], dict(headers).get("Retry-After")) in (("200", None), ("503", "2"))
            codes.add(status[:3])
        else:
            assert strike.struck.partition(":")[0] in AROUND, strike.struck
    assert len(struck) > 50
    assert codes == {"200", "503"}
    assert call(wrapped, make_environ()).code == 200


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_while_a_413_is_counted_and_a_session_ends_serves_both() -> None:
    wrapped = LowMemory(plain, secret_key="k" * 32)
    call(wrapped, make_environ())
    sessions = wrapped.pipeline.sessions
    assert sessions is not None
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with sessions._lock:
            held.set()
            go_on.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    pid = fork()
    if pid == 0:
        code = 1
        try:
            import signal

            signal.alarm(20)
            assert call(wrapped, post("/", b"", CONTENT_LENGTH=str(600 * KB))).code == 413
            assert call(wrapped, make_environ(HTTP_COOKIE="session=bare")).code == 200
            code = 0
        finally:
            os._exit(code)
    go_on.set()
    thread.join(10)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# --- The environ


def test_the_environ_is_by_the_letter_of_the_standard() -> None:
    seen: list[dict[str, Any]] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append(dict(environ))
        start_response("200 OK", TEXT)
        return [b"x"]

    wrapped = LowMemory(validated(app), home_rows=7)
    assert call(wrapped, make_environ(), strict=True).code == 200
    assert call(LowMemory(wrapped), make_environ(), strict=True).code == 200
    for environ in seen:
        assert [name for name in environ if name.startswith("lowmem") and "." not in name] == []
        assert environ["lowmem.level"] == "ok"
        assert environ["lowmem.limits"]["max_upload"] == 512 * KB
        assert "level" not in environ["lowmem.limits"]
        with pytest.raises(TypeError):
            environ["lowmem.limits"]["max_upload"] = 1
    assert [environ["lowmem.limits"]["home_rows"] for environ in seen] == [7, 5]


def test_the_level_is_that_at_the_start_of_the_request() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", TEXT)
        return [environ["lowmem.level"].encode()]

    wrapped = LowMemory(app, memory_limit="1MB", ceiling="off", recycle="off")
    wrapped.runtime.monitor.running = True  # and so not begun by the request
    assert call(wrapped, make_environ()).body == b"ok"
    for _ in range(5):
        wrapped.runtime.monitor.tick()
    assert call(wrapped, make_environ()).body == b"critical"
    wrapped.close()


def test_a_body_reads_on_after_a_limit_is_lowered() -> None:
    """A nested cap between a body's pieces: io.BytesIO stands for the server's stream."""
    seen: list[bytes] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append(environ["wsgi.input"].readline())
        start_response("200 OK", TEXT)
        return [b""]

    environ = post("/", b"", chunked=True)
    environ["wsgi.input"] = io.BytesIO(b"one\ntwo\n")
    assert call(LowMemory(LowMemory(app, max_upload="1KB")), environ).code == 200
    assert seen == [b"one\n"]
