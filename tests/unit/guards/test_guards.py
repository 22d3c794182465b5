"""Uploads, overload, static files and refusals, without a server."""

from __future__ import annotations

import io
import json
import logging
import socket
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any
from wsgiref.util import FileWrapper

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.wsgi import Response, call, make_environ, post, unheard
from lowmem_wsgi import LowMemory
from lowmem_wsgi.guards.static_cache import capped
from lowmem_wsgi.guards.uploads import UploadCap
from lowmem_wsgi.http import body
from lowmem_wsgi.http.body import DRAIN_BYTES, Body, declared_length, drain
from lowmem_wsgi.http.upload_errors import UploadTooLarge

KB = 1024
TEXT = [("Content-Type", "text/plain")]


def echo_length(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    data = environ["wsgi.input"].read()
    start_response("200 OK", TEXT)
    return [str(len(data)).encode()]


def ok(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", TEXT)
    return [b""]


def never(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    raise AssertionError("the app was called")


# --- Uploads


def test_a_declared_length_over_the_cap_is_413_and_the_app_is_not_called() -> None:
    wrapped = LowMemory(never)
    assert call(wrapped, post("/", b"x" * (512 * KB + 1)), strict=True).code == 413
    assert wrapped.status()["requests"]["uploads_rejected"] == 1


def test_a_body_of_exactly_the_cap_is_served() -> None:
    assert call(LowMemory(echo_length), post("/", b"x" * 512 * KB)).body == b"524288"


def test_an_undeclared_body_over_the_cap_is_413_whatever_the_app_answers() -> None:
    def swallow(environ: dict[str, Any]) -> None:
        with pytest.raises(UploadTooLarge):
            environ["wsgi.input"].read()

    def swallows(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        swallow(environ)
        start_response("200 OK", TEXT)
        return [b"all is well"]

    def breaks(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            raise RuntimeError("turned into something else") from error
        return []

    def streams(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield environ["wsgi.input"].read()

    def sends_a_file(environ: dict[str, Any], start_response: Any) -> FileWrapper:
        swallow(environ)
        start_response("200 OK", TEXT)
        return FileWrapper(io.BytesIO(b"all is well"))

    def writes(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        swallow(environ)
        start_response("200 OK", TEXT)(b"all is well")
        return []

    apps = (swallows, breaks, streams, echo_length, sends_a_file, writes)
    for count, app in enumerate(apps, 1):
        wrapped = LowMemory(app)
        environ = post("/", b"x" * 600 * KB, chunked=True, **{"wsgi.file_wrapper": FileWrapper})
        response = call(wrapped, environ)
        assert response.code == 413, app
        assert b"512 KB" in response.body
        assert wrapped.status()["requests"]["uploads_rejected"] == count


def test_an_overflow_after_the_first_byte_is_cut_off_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b"begun"
        yield environ["wsgi.input"].read()

    wrapped = LowMemory(app)
    with pytest.raises(UploadTooLarge):
        call(wrapped, post("/slow", b"x" * 600 * KB, chunked=True))
    (record,) = caplog.records
    assert "/slow" in record.getMessage()
    assert wrapped.status()["requests"]["uploads_rejected"] == 1


def test_an_app_never_sees_a_byte_over_the_cap() -> None:
    seen = []

    def greedy(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        while piece := environ["wsgi.input"].read(10_000):
            seen.append(piece)
        return []

    call(LowMemory(greedy), post("/", b"x" * 600 * KB, chunked=True))
    assert sum(map(len, seen)) == 512 * KB


def test_an_undeclared_body_of_exactly_the_cap_is_served() -> None:
    body = post("/", b"x" * 512 * KB, chunked=True)
    assert call(LowMemory(echo_length), body).body == b"524288"


def test_a_declared_body_ends_after_its_length_whatever_follows() -> None:
    environ = post("/", b"GET /secret HTTP/1.1", CONTENT_LENGTH="3")
    assert call(LowMemory(echo_length), environ).body == b"3"


@pytest.mark.parametrize(
    ("length", "code"),
    [
        ("-1", 400),
        ("+5", 400),
        ("5,5", 400),
        ("5, 5", 400),
        ("0x10", 400),
        ("５", 400),
        ("1_000", 400),
        (" 5", 400),
        ("5.0", 400),
        ("nan", 400),
        ("9" * 19, 413),
        ("9" * 5000, 413),
        ("0" * 5000 + "5", 200),
        ("", 200),
        ("0", 200),
    ],
)
def test_a_hostile_content_length_is_refused_clearly(length: str, code: int) -> None:
    response = call(LowMemory(echo_length), post("/", b"hello", CONTENT_LENGTH=length))
    assert response.code == code
    if code == 400:
        assert b"Content-Length" in response.body


@pytest.mark.parametrize(("length", "code"), [(5, 200), (0, 200), (10**9, 413), (-1, 400)])
def test_a_content_length_that_a_test_client_gives_as_a_number_is_read(
    length: int, code: int
) -> None:
    response = call(LowMemory(echo_length), post("/", b"hello", CONTENT_LENGTH=length))
    assert response.code == code


@given(st.text(max_size=30))
def test_any_content_length_is_a_number_or_refused(text: str) -> None:
    try:
        length = declared_length({"CONTENT_LENGTH": text})
    except ValueError:
        return
    assert length is None or length >= 0


def test_the_longest_path_prefix_wins_and_ends_at_a_slash() -> None:
    cap = UploadCap(1, {"/import": 2, "/import/big/": 3, "/": 4, "/über": 5})
    paths = ("/import", "/import/x", "/import/big/x", "/import/big", "/important", "/x")
    assert [cap.limit_for(path) for path in paths] == [2, 2, 3, 3, 4, 4]
    assert cap.limit_for("/über".encode().decode("latin-1")) == 5


def test_a_path_of_its_own_limit_may_take_more_or_less() -> None:
    wrapped = LowMemory(echo_length, upload_limits="/import=4MB,/avatar=1KB")
    assert call(wrapped, post("/import", b"x" * 2 * 1024 * KB)).code == 200
    assert call(wrapped, post("/avatar", b"x" * 2 * KB)).code == 413


def body_of(data: bytes, limit: int, *, declared: bool = False) -> Body:
    return Body(io.BytesIO(data), limit, declared=declared)


def test_a_body_reads_like_a_file() -> None:
    assert body_of(b"one\ntwo\n", 100).readlines() == [b"one\n", b"two\n"]
    assert list(body_of(b"one\ntwo", 100)) == [b"one\n", b"two"]
    assert body_of(b"one\ntwo", 100).readline(2) == b"on"
    assert body_of(b"onetwo", 100).read(3) == b"one"
    assert body_of(b"onetwo", 100).read1() == b"onetwo"
    text: Any = body_of("ä\nö".encode(), 100)
    assert list(io.TextIOWrapper(text, encoding="utf-8")) == ["ä\n", "ö"]
    buffer = bytearray(4)
    assert body_of(b"onetwo", 100).readinto(buffer) == 4
    assert bytes(buffer) == b"onet"


@given(
    st.binary(max_size=60),
    st.integers(0, 50),
    st.booleans(),
    st.lists(st.tuples(st.sampled_from(["read", "readline", "read1"]), st.integers(-1, 20))),
)
def test_no_way_of_reading_gets_past_the_limit(
    data: bytes, limit: int, declared: bool, calls: list[tuple[str, int]]
) -> None:
    body = body_of(data, limit, declared=declared)
    got = b""
    try:
        for name, size in [*calls, ("read", -1)]:
            got += getattr(body, name)(size)
    except UploadTooLarge:
        assert not declared
        assert len(data) > limit
        assert body.overflowed
    else:
        assert declared or len(data) <= limit
    assert got == data[:limit][: len(got)]
    assert body.overflowed or got == data[:limit]


# --- Draining


class Endless:
    """A client that never stops sending."""

    def __init__(self) -> None:
        self.sent = 0

    def read(self, size: int) -> bytes:
        self.sent += size
        return b"x" * size


class Socket:
    """The server's: it bounds the time."""

    def shutdown(self, how: int) -> None:
        raise AssertionError("in time")


BOUNDED = {"gunicorn.socket": Socket()}


def test_what_the_client_still_sends_is_drained_but_not_for_ever() -> None:
    client = Endless()
    environ = post("/", b"", chunked=True, **BOUNDED)
    environ["wsgi.input"] = client
    drain(environ)
    assert 0 < client.sent <= DRAIN_BYTES


def test_draining_ends_after_its_seconds() -> None:
    client = Endless()
    environ = post("/", b"", chunked=True, **BOUNDED)
    environ["wsgi.input"] = client
    times = iter(range(100))
    drain(environ, clock=lambda: float(next(times)))
    assert client.sent <= 6 * 65536


def test_draining_stops_after_the_declared_length() -> None:
    client = Endless()
    environ = make_environ(CONTENT_LENGTH="1000") | {"wsgi.input": client, **BOUNDED}
    drain(environ)
    assert client.sent == 1000


class Input:
    """A body as cheroot gives it: over the client's socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.rfile = sock.makefile("rb")
        self.read = self.rfile.read


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The server's end, and the client's."""
    ours, client = socket.socketpair()
    with ours, client:
        yield ours, client


def on(server: str, ours: socket.socket, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The environ of a request with a body of 1,000 bytes, on a server that gives no socket."""
    own: dict[str, Any] = {"wsgi.input": Input(ours), "SERVER_SOFTWARE": server}
    if server == "uWSGI":
        module = types.SimpleNamespace(connection_fd=ours.fileno)
        monkeypatch.setitem(sys.modules, "uwsgi", module)
        own = {"wsgi.input": Input(ours), "uwsgi.version": b"2.0.31"}
    return make_environ(CONTENT_LENGTH="1000") | own


@pytest.mark.parametrize(
    ("server", "left"),
    [("uWSGI", 0), ("Cheroot/11.1.2 Server", 0), ("Granian", 1000), ("another", 1000)],
)
def test_the_rest_is_drained_on_a_server_whose_socket_can_be_had(
    server: str,
    left: int,
    connection: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, client = connection
    client.sendall(b"x" * 1000)
    client.shutdown(socket.SHUT_WR)
    environ = on(server, ours, monkeypatch)
    drain(environ)
    assert len(environ["wsgi.input"].read()) == left


@pytest.mark.parametrize("server", ["uWSGI", "Cheroot/11.1.2 Server"])
def test_a_client_that_sends_slowly_holds_no_thread(
    server: str, connection: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "DRAIN_SECONDS", 0.1)
    ours, client = connection
    client.sendall(b"x")
    thread = threading.Thread(target=drain, args=[on(server, ours, monkeypatch)], daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("ending", [True, False], ids=["about to end", "serving"])
def test_an_idle_client_is_waited_for_unless_the_worker_is_about_to_end(
    connection: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, ending: bool
) -> None:
    monkeypatch.setattr(body, "DRAIN_SECONDS", 60)
    ours, client = connection
    client.sendall(b"x")
    arguments = [on("uWSGI", ours, monkeypatch), lambda: ending]
    thread = threading.Thread(target=drain, args=arguments, daemon=True)
    thread.start()
    thread.join(10 if ending else 1)
    assert thread.is_alive() is not ending
    client.close()
    thread.join(10)
    assert not thread.is_alive()


def test_a_stream_without_an_end_is_not_drained() -> None:
    client = Endless()
    for framing in ({"HTTP_TRANSFER_ENCODING": "chunked"}, {"CONTENT_LENGTH": "nonsense"}):
        drain(make_environ() | framing | {"wsgi.input": client, **BOUNDED})
    assert client.sent == 0


# --- Refusals


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; charset=utf-8"),
        ("*/*", "text/plain; charset=utf-8"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "text/html; charset=utf-8"),
        ("application/json", "application/json"),
        ("application/json;q=0.9,text/html;q=0.8", "application/json"),
        ("image/png", "text/plain; charset=utf-8"),
        ("\x00\xff;;;q=x,,", "text/plain; charset=utf-8"),
    ],
)
@pytest.mark.parametrize("code", [413, 503])
def test_a_refusal_speaks_what_the_client_accepts(
    accept: str, content_type: str, code: int
) -> None:
    def out_of_memory(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise MemoryError

    big = b"x" * 600 * KB if code == 413 else b""
    response = call(LowMemory(out_of_memory), post("/", big, HTTP_ACCEPT=accept))
    assert response.code == code
    assert response.header("Content-Type") == content_type
    if "json" in content_type:
        assert json.loads(response.body)["status"] == code
    if "html" in content_type:
        assert response.body.startswith(b"<!doctype html>")


def test_a_refusal_to_head_has_no_body() -> None:
    environ = make_environ(REQUEST_METHOD="HEAD", CONTENT_LENGTH=str(600 * KB))
    response = call(LowMemory(never), environ, strict=True)
    assert (response.code, response.body) == (413, b"")


def refused(wrapped: LowMemory, environ: dict[str, Any]) -> Response:
    response = call(wrapped, environ)
    assert response.code >= 400
    return response


def test_every_refusal_logs_one_line_with_route_figure_and_setting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    busy = LowMemory(ok, max_in_flight=1)
    inside = busy(make_environ(), unheard)
    refused(busy, make_environ("/clients"))
    refused(LowMemory(never), post("/import", b"x" * 600 * KB))
    refused(LowMemory(never), make_environ("/api/force-cleanup"))
    guarded = LowMemory(never, admin_token="t")
    refused(guarded, make_environ("/api/memory-status"))  # a browser, about to ask for the password
    refused(guarded, make_environ("/api/memory-status", HTTP_AUTHORIZATION="Bearer wrong"))
    session = LowMemory(ok, secret_key="the key of these tests")
    call(session, make_environ("/page", HTTP_COOKIE="session=bare"))
    lines = [record.getMessage() for record in caplog.records]
    expected = [
        ("503", "/clients", "1 requests in flight", "LOWMEM_MAX_IN_FLIGHT"),
        ("413", "/import", "614400 bytes declared, 524288 allowed", "LOWMEM_MAX_UPLOAD"),
        ("403", "/api/force-cleanup", "no token", "LOWMEM_ADMIN_TOKEN"),
        ("401", "/api/memory-status", "a wrong one", "LOWMEM_ADMIN_TOKEN"),
        ("session ended", "/page", "unsigned, 600 s allowed", "LOWMEM_SESSION_LIFETIME"),
    ]
    assert len(lines) == len(expected)
    for line, parts in zip(lines, expected, strict=True):
        assert all(part in line for part in parts), line
    del inside


def test_a_flood_of_refusals_is_one_line_and_a_count(caplog: pytest.LogCaptureFixture) -> None:
    wrapped = LowMemory(never)
    for _ in range(100):
        refused(wrapped, make_environ(CONTENT_LENGTH=str(600 * KB)))
    assert len(caplog.records) == 1


def test_a_hostile_path_stays_on_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    path = "/\r\n2026 ERROR forged \x1b[31m" + "x" * 5000
    refused(LowMemory(never), make_environ(path, CONTENT_LENGTH=str(600 * KB)))
    (record,) = caplog.records
    message = record.getMessage()
    assert "\n" not in message
    assert "\x1b" not in message
    assert len(message) < 600


def test_two_lines_at_the_start_say_which_limits_are_on_and_whose_memory_is_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "lowmem_wsgi")
    wrapped = LowMemory(ok, preset="ultra", upload_limits="/import=4MB", trim="off")
    assert not caplog.records
    call(wrapped, make_environ("/healthz"))
    call(wrapped, make_environ("/healthz"))
    limits, memory = (record.getMessage() for record in caplog.records)
    parts = ("ultra", "512 KB", "600 s", "LOWMEM_MAX_UPLOAD", "3 requests at once")
    for part in (*parts, "/import to 4 MB", "no trim", "(25, 1, 1)", "recursion to 200"):
        assert part in limits
    assert memory.startswith("Memory: ")


# --- Overload


def test_one_request_too_many_is_503_with_retry_after_and_health_never() -> None:
    wrapped = LowMemory(ok, max_in_flight=2, exempt_paths="/healthz,/ready")
    held = [wrapped(make_environ(), unheard) for _ in range(2)]
    response = call(wrapped, make_environ("/x"))
    assert (response.code, response.header("Retry-After")) == (503, "2")
    for path in ("/healthz", "/ready/deep"):
        inside = wrapped(make_environ(path), unheard)
        assert wrapped.runtime.in_flight.count() == 3
        inside.close()  # type: ignore[attr-defined]
    assert wrapped.status()["requests"]["shed"] == 1
    held.pop().close()  # type: ignore[attr-defined]
    wrapped(make_environ("/x"), unheard).close()  # type: ignore[attr-defined]
    assert wrapped.status()["requests"]["shed"] == 1
    held.pop().close()  # type: ignore[attr-defined]
    assert wrapped.runtime.in_flight.count() == 0


# --- Static files


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("", "max-age=30"),
        ("public, max-age=31536000, immutable", "public, immutable, max-age=30"),
        ("max-age=10", "max-age=10"),
        ("max-age=0, must-revalidate", "must-revalidate, max-age=0"),
        ("max-age=nonsense", "max-age=0"),
        ('Max-Age="600"', "max-age=30"),
    ],
)
def test_the_age_of_static_files_is_capped(given: str, sent: str) -> None:
    assert capped(given, 30) == sent


def test_only_files_under_the_prefix_that_were_found_are_cached() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        code = "404 Not Found" if "missing" in environ["PATH_INFO"] else "200 OK"
        start_response(code, [("X-A", "1"), ("Cache-Control", "max-age=600"), ("X-B", "2")])
        return [b""]

    wrapped = LowMemory(app)
    assert call(wrapped, make_environ("/static/a.css")).header("Cache-Control") == "max-age=30"
    assert call(wrapped, make_environ("/static/missing")).header("Cache-Control") == "max-age=600"
    assert call(wrapped, make_environ("/page")).header("Cache-Control") == "max-age=600"


def test_a_static_response_that_sets_a_cookie_is_kept_from_shared_caches() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        headers = [("Cache-Control", "public, max-age=600, s-maxage=600")]
        start_response("200 OK", [*headers, ("Set-Cookie", "theme=dark")])
        return [b""]

    policy = call(LowMemory(app), make_environ("/static/a.css")).header("Cache-Control")
    assert policy == "private, max-age=30"


@given(st.text(alphabet=st.characters(max_codepoint=255), max_size=60))
def test_any_cache_control_is_capped(policy: str) -> None:
    ages = [p.partition("=")[2] for p in capped(policy, 30).split(",") if "max-age=" in p]
    assert any(age.strip().isdigit() and int(age) <= 30 for age in ages)
