"""PEP 3333 to the letter, with a strict validator on both sides of the middleware."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn
from wsgiref.util import FileWrapper

import pytest

from helpers.wsgi import Response, call, make_environ, unheard, validated
from lowmem_wsgi import LowMemory
from lowmem_wsgi.guards.static_cache import StaticFiles
from lowmem_wsgi.memory.gc_runner import GcRunner
from lowmem_wsgi.workers.record import WorkerRecord

TEXT = [("Content-Type", "text/plain")]


class Watched:
    """An app whose response counts how often it is closed."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self.app = app
        self.closed = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return Closing(self, self.app(environ, start_response))


class Closing:
    def __init__(self, owner: Watched, result: Iterable[bytes]) -> None:
        self.owner = owner
        self.result = result

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.result)

    def close(self) -> None:
        self.owner.closed += 1
        close = getattr(self.result, "close", None)
        if close is not None:
            close()


def plain(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    return [b"hello"]


def generator(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    yield b"one"
    yield b"two"


def late(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """start_response only when the server asks for the first chunk."""

    def chunks() -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b"late"

    return chunks()


def writes(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    write = start_response("200 OK", TEXT)
    write(b"written, ")
    write(b"then ")
    return [b"returned"]


def twice(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    try:
        raise ValueError("changed my mind")
    except ValueError:
        start_response("500 Internal Server Error", TEXT, sys.exc_info())
    return [b"sorry"]


def twice_while_iterating(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    try:
        raise ValueError("changed my mind")
    except ValueError:
        start_response("500 Internal Server Error", TEXT, sys.exc_info())
    yield b"sorry"


def no_content(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("204 No Content", [])
    return []


def not_modified(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("304 Not Modified", [("ETag", '"1"')])
    return []


def head(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [*TEXT, ("Content-Length", "5")])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [b"hello"]


def nothing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """A generator that yields nothing at all."""
    start_response("200 OK", TEXT)
    yield from ()


def empty_chunks(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    yield b""
    yield b"after nothing"


SHAPES = [
    (plain, 200, b"hello"),
    (generator, 200, b"onetwo"),
    (late, 200, b"late"),
    (writes, 200, b"written, then returned"),
    (twice, 500, b"sorry"),
    (twice_while_iterating, 500, b"sorry"),
    (no_content, 204, b""),
    (not_modified, 304, b""),
    (head, 200, b"hello"),
    (nothing, 200, b""),
    (empty_chunks, 200, b"after nothing"),
]


def passes_during(action: Callable[[], object]) -> int:
    """Full collections that began while `action` ran; or soon after it, where the monitor's thread
    was at the passes just then, and so does these."""
    begun = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            begun.append(phase)

    gc.callbacks.append(note)
    try:
        action()
        end = time.monotonic() + 5
        while len(begun) < 3 and time.monotonic() < end:
            time.sleep(0.001)
    finally:
        gc.callbacks.remove(note)
    return len(begun)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(("app", "code", "body"), SHAPES, ids=lambda v: getattr(v, "__name__", ""))
def test_every_shape_of_response_passes_the_validator_on_both_sides(
    app: Callable[..., Iterable[bytes]], code: int, body: bytes, method: str
) -> None:
    watched = Watched(app)
    wrapped = LowMemory(validated(watched))
    answers: list[Response] = []
    passes = passes_during(
        lambda: answers.append(call(wrapped, make_environ(method=method), strict=True))
    )
    assert answers[0].code == code
    assert answers[0].body == (b"" if method == "HEAD" and app is head else body)
    assert watched.closed == 1
    assert passes >= 3


def raises_at_once(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    raise RuntimeError("at once")


def raises_after_starting(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    raise RuntimeError("after starting")


def raises_before_the_first_chunk(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    raise RuntimeError("before the first")
    yield b""


def raises_halfway(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    yield b"half"
    raise RuntimeError("halfway")


@pytest.mark.parametrize(
    "app",
    [raises_at_once, raises_after_starting, raises_before_the_first_chunk, raises_halfway],
)
def test_an_app_that_raises_is_heard_by_the_server_and_closed_once(
    app: Callable[..., Iterable[bytes]],
) -> None:
    watched = Watched(app)
    wrapped = LowMemory(validated(watched))

    def serve() -> None:
        with pytest.raises(RuntimeError):
            call(wrapped, make_environ(), strict=True)

    assert passes_during(serve) >= 3
    returned = app not in (raises_at_once, raises_after_starting)
    assert watched.closed == (1 if returned else 0)
    assert wrapped.runtime.in_flight.count() == 0


def test_a_close_that_raises_is_heard_and_the_request_ends_all_the_same() -> None:
    class Broken:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"x"])

        def close(self) -> None:
            raise RuntimeError("close")

    def app(environ: dict[str, Any], start_response: Any) -> Broken:
        start_response("200 OK", TEXT)
        return Broken()

    wrapped = LowMemory(app)

    def serve() -> None:
        with pytest.raises(RuntimeError, match="close"):
            call(wrapped, make_environ())

    assert passes_during(serve) >= 3
    assert wrapped.runtime.in_flight.count() == 0


def test_start_response_twice_without_exc_info_is_an_error() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", TEXT)
        start_response("500 Oh", TEXT)
        return []

    with pytest.raises(AssertionError, match="twice"):
        call(LowMemory(app), make_environ())


def test_exc_info_after_the_first_chunk_is_raised_by_the_server() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b"sent"
        try:
            raise ValueError("too late")
        except ValueError:
            start_response("500 Oh", TEXT, sys.exc_info())
        yield b"never"

    with pytest.raises(ValueError, match="too late"):
        call(LowMemory(app), make_environ())


def test_chunks_come_one_by_one_as_the_app_makes_them() -> None:
    made: list[int] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        for number in range(5):
            made.append(number)
            yield b"%d" % number

    result = LowMemory(app)(make_environ(), unheard)
    for number, chunk in enumerate(result):
        assert chunk == b"%d" % number
        assert made == list(range(number + 1))
    result.close()  # type: ignore[attr-defined]


def test_empty_chunks_before_start_response_are_passed_on_one_by_one() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        yield b""
        yield b""
        start_response("200 OK", TEXT)
        yield b"x"

    started: list[object] = []

    def start_response(*given: object) -> Callable[[bytes], object]:
        started.append(given)
        return bytes

    result: Any = LowMemory(app)(make_environ(), start_response)
    assert [(chunk, len(started)) for chunk in result] == [(b"", 0), (b"", 0), (b"x", 1)]
    result.close()


@pytest.mark.parametrize("make", [list, tuple])
def test_the_length_of_a_list_is_kept(make: Callable[[list[bytes]], Any]) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return make([b"one", b"two"])

    result: Any = LowMemory(app)(make_environ(), unheard)
    assert len(result) == 2
    assert list(result) == [b"one", b"two"]
    result.close()


def test_the_length_of_a_sized_response_of_the_apps_own_is_kept() -> None:
    class Sized:
        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[bytes]:
            return iter([b"one"])

    def app(environ: dict[str, Any], start_response: Any) -> Sized:
        start_response("200 OK", TEXT)
        return Sized()

    result: Any = LowMemory(app)(make_environ(), unheard)
    assert len(result) == 1
    assert list(result) == [b"one"]
    result.close()


def test_a_generator_has_no_length() -> None:
    result = LowMemory(generator)(make_environ(), unheard)
    assert not hasattr(result, "__len__")


def test_a_wrapped_file_reaches_the_server_and_closing_it_ends_the_request() -> None:
    file = open(__file__, "rb")  # noqa: SIM115

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        return environ["wsgi.file_wrapper"](file)  # type: ignore[no-any-return]

    wrapped = LowMemory(app)
    environ = make_environ() | {"wsgi.file_wrapper": FileWrapper}
    result: Any = wrapped(environ, unheard)
    assert type(result) is FileWrapper
    assert wrapped.runtime.in_flight.count() == 1
    assert passes_during(result.close) >= 3
    assert file.closed
    assert wrapped.runtime.in_flight.count() == 0


def test_a_file_wrapper_that_takes_no_attribute_still_goes_out() -> None:
    class Sealed:
        __slots__ = ("file",)

        def __init__(self, file: object, size: int = 0) -> None:
            self.file = file

        def __iter__(self) -> Iterator[bytes]:
            return iter([b"x"])

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        return environ["wsgi.file_wrapper"](None)  # type: ignore[no-any-return]

    wrapped = LowMemory(app)
    result = wrapped(make_environ() | {"wsgi.file_wrapper": Sealed}, unheard)
    assert type(result) is Sealed
    assert wrapped.runtime.in_flight.count() == 0


def test_a_response_dropped_without_close_does_not_stay_in_flight() -> None:
    wrapped = LowMemory(generator)
    result = wrapped(make_environ(), unheard)
    assert wrapped.runtime.in_flight.count() == 1
    del result
    assert wrapped.runtime.in_flight.count() == 0


def test_wrapping_twice_is_the_same_as_wrapping_once() -> None:
    inner = LowMemory(plain)
    outer = LowMemory(inner)
    assert call(outer, make_environ(), strict=True).body == b"hello"
    assert outer.status()["requests"]["total"] == 1


def test_two_wrapped_apps_in_one_process_keep_their_own_settings() -> None:
    small = LowMemory(plain, max_upload="1KB")
    large = LowMemory(plain, max_upload="1MB")
    length = {"CONTENT_LENGTH": "2000", "REQUEST_METHOD": "POST"}
    assert call(small, make_environ(**length)).code == 413
    assert call(large, make_environ(**length)).code == 200
    assert small.runtime is large.runtime


def test_a_failure_of_ours_that_protects_nobody_is_logged_once_and_the_request_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(WorkerRecord, "began", broken)
    monkeypatch.setattr(StaticFiles, "amend", broken)
    monkeypatch.setattr(GcRunner, "after_request", broken)
    wrapped = LowMemory(plain)
    for _ in range(3):
        assert call(wrapped, make_environ()).body == b"hello"
    assert wrapped.runtime.in_flight.count() == 0
    assert len(caplog.records) == 3  # one for each of the three places


def test_asking_an_ended_response_for_more_ends_it_again() -> None:
    result: Any = iter(LowMemory(nothing)(make_environ(), unheard))
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(result)


def test_a_response_that_is_replaced_is_closed_once_though_the_server_refuses_the_other() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        raise MemoryError
        yield b""

    def refuses(*_: object) -> NoReturn:
        raise RuntimeError("the server's")

    watched = Watched(app)
    wrapped = LowMemory(watched)
    result: Any = wrapped(make_environ(), refuses)
    with pytest.raises(RuntimeError, match="the server's"):
        next(iter(result))
    result.close()
    assert watched.closed == 1
    assert wrapped.runtime.in_flight.count() == 0


@pytest.mark.parametrize("as_file", [False, True])
def test_where_the_server_refuses_the_headers_the_response_is_closed_and_passes_run(
    as_file: bool,
) -> None:
    closed = []
    no_file: Any = None  # whose `close` would take the place of ours

    class File(FileWrapper):
        def close(self) -> None:
            closed.append(1)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return File(no_file) if as_file else [b"x"]

    def refuses(*_: object) -> NoReturn:
        raise RuntimeError("the server's")

    wrapped = LowMemory(app)

    def serve() -> None:
        with pytest.raises(RuntimeError, match="the server's"):
            wrapped(make_environ() | {"wsgi.file_wrapper": File}, refuses)

    assert passes_during(serve) >= 3
    assert closed == ([1] if as_file else [])
    assert wrapped.runtime.in_flight.count() == 0


def test_out_of_memory_is_503_for_that_request_with_the_frames_cleared() -> None:
    import weakref

    class Big:
        pass

    held: list[weakref.ref[Big]] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        big = Big()
        held.append(weakref.ref(big))
        raise MemoryError

    wrapped = LowMemory(app)
    response = call(wrapped, make_environ(), strict=True)
    assert response.code == 503
    assert response.header("Retry-After") == "2"
    assert held[0]() is None
    assert wrapped.status()["requests"]["out_of_memory"] == 1


def test_out_of_memory_before_the_first_chunk_is_503() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        raise MemoryError
        yield b""

    watched = Watched(app)
    response = call(LowMemory(watched), make_environ())
    assert response.code == 503
    assert watched.closed == 1


def test_out_of_memory_after_the_first_chunk_cuts_the_response_off() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b"half"
        raise MemoryError

    wrapped = LowMemory(app)
    with pytest.raises(MemoryError):
        call(wrapped, make_environ())
    assert wrapped.status()["requests"]["out_of_memory"] == 1


def test_importing_the_package_starts_no_thread_and_changes_nothing_global() -> None:
    import subprocess

    code = """
import gc, logging, sys, threading
def state():
    handlers = logging.root.handlers[:]
    collector = gc.get_threshold(), gc.get_freeze_count(), gc.callbacks[:]
    return collector, sys.getrecursionlimit(), handlers, threading.active_count()
before, modules = state(), set(sys.modules)  # from 3.14 on, logging itself loads inspect
import lowmem_wsgi
assert state() == before
assert not logging.getLogger("lowmem_wsgi").handlers
heavy = {"psutil", "werkzeug", "ctypes", "json", "difflib", "email", "inspect"}
heavy &= set(sys.modules) - modules
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_response_is_no_list_as_some_servers_close_none_that_is() -> None:
    """Granian, bjoern, and WebOb as a middleware."""
    result = LowMemory(plain)(make_environ(), lambda *_: lambda data: None)
    assert not isinstance(result, list)
    assert list(result) == [b"hello"]
    result.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("protocol", [None, b"HTTP/1.1", ""])
def test_a_server_that_names_no_protocol_is_served(protocol: object) -> None:
    environ = {**make_environ(), "SERVER_PROTOCOL": protocol}
    assert call(LowMemory(plain), environ).body == b"hello"


class Late:
    """A response that calls start_response with its second chunk, and notes its close()."""

    def __init__(self, start_response: Any, fails: bool) -> None:
        self._start = start_response
        self._fails = fails
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        yield b""
        if self._fails:
            raise MemoryError
        self._start("201 Created", [("X-Late", "yes")])
        yield b"one "
        yield b"two"

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("fails", [False, True])
def test_granian_finds_status_and_headers_as_soon_as_the_app_returns(fails: bool) -> None:
    """Granian reads both before it asks for the first chunk."""
    found: list[Any] = []
    made: list[Late] = []

    def app(environ: dict[str, Any], start_response: Any) -> Late:
        made.append(Late(start_response, fails))
        return made[0]

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
        found[:] = [status, dict(headers)]

    result = LowMemory(app)({**make_environ(), "SERVER_SOFTWARE": "Granian"}, start_response)  # type: ignore[arg-type]
    status, headers = found
    body = b"".join(result)
    result.close()  # type: ignore[attr-defined]
    assert made[0].closed == 1
    if fails:
        assert status[:3] == "503"
        assert "Retry-After" in headers
    else:
        assert (status, headers["X-Late"], body) == ("201 Created", "yes", b"one two")
