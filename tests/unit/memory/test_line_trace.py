"""A trace of a route: which requests it sees, what it finds, and that nothing is left of it."""

from __future__ import annotations

import re
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from helpers.servers import wait_for
from helpers.wsgi import make_environ
from lowmem_wsgi.http.paths import PATH
from lowmem_wsgi.http.traced_route import TracedRoute, route_pattern_of
from lowmem_wsgi.memory import line_trace
from lowmem_wsgi.memory.grown_lines import (
    Frames,
    Sizes,
    growth,
    is_own,
    place_of,
    ranked,
    types_by_place,
)
from lowmem_wsgi.memory.in_flight import InFlight
from lowmem_wsgi.memory.line_trace import LineTrace
from lowmem_wsgi.pipeline import THROUGH

kept: list[bytearray] = []


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(line_trace, "PAUSE", 1.0)  # no other request waits for these
    yield
    kept.clear()
    assert not tracemalloc.is_tracing()


class Running:
    """A trace in its thread, and requests of its route."""

    def __init__(self, wanted: int = 4, seconds: float = 30, **more: Any) -> None:
        self.in_flight = InFlight()
        self.reason: str | None = None
        self.result: dict[str, Any] = {}
        self._looked = threading.Event()  # since the last request
        self.trace = LineTrace(
            wanted,
            seconds,
            in_flight=self.in_flight,
            reason=lambda: self.reason,
            progress=lambda count: self._looked.set(),
            **more,
        )
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.result = self.trace.run()

    def request(self, work: Callable[[], object] = lambda: None) -> bool:
        """Make a request. Return whether it was traced."""
        number = self.in_flight.enter("GET", "/x", 1)
        token = self.trace.begin()
        work()
        self.in_flight.leave(number)
        return token is not None and token.number > 0  # and drop the token

    def end(self) -> dict[str, Any]:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.result

    def until_the_end(self, work: Callable[[], object]) -> dict[str, Any]:
        while self._thread.is_alive():
            self._looked.clear()
            if self.request(work):
                self._looked.wait(10)
            else:
                time.sleep(0.01)
        return self.end()


def leak() -> None:
    kept.append(bytearray(100_000))


LEAK = leak.__code__.co_firstlineno + 1


def replace() -> None:
    kept[:] = [bytearray(500_000)]


def test_the_line_that_leaks_comes_first_with_its_type_and_stack() -> None:
    result = Running().until_the_end(leak)
    first = result["lines"][0]
    assert (first["file"], first["line"]) == (__file__, LEAK)
    assert first["code"] == "kept.append(bytearray(100_000))"
    assert 90_000 < first["bytes_per_request"] < 210_000
    assert len(first["stack"]) > 2
    assert result["why"] == "done"
    assert result["paired"]


def test_a_value_that_replaces_an_older_one_has_not_grown() -> None:
    result = Running(wanted=10).until_the_end(replace)
    assert result["paired"]
    # A look may fall between the making of the new value and the end of the old one.
    large = [line for line in result["lines"] if line["bytes_per_request"] > 50_000]
    assert all(line["windows"] < 4 for line in large)


def test_without_a_request_it_ends_at_its_time() -> None:
    result = Running(seconds=0.2).end()
    assert (result["why"], result["came"], result["lines"]) == ("time", 0, [])


def test_a_single_request_is_weighed_by_itself() -> None:
    running = Running(seconds=1)
    running.request(leak)
    result = running.end()
    assert (result["traced"], result["paired"]) == (1, False)
    assert result["lines"][0]["line"] == LEAK


def test_a_reason_ends_it_also_with_a_request_in_flight() -> None:
    running = Running()

    def stop() -> None:
        running.reason = "short"
        running.end()

    running.request(stop)
    assert running.result["why"] == "short"


def test_a_request_that_takes_too_long_is_cut_and_goes_on_untraced() -> None:
    running = Running(wanted=1, seconds=4)
    running.request(lambda: wait_for(lambda: not tracemalloc.is_tracing(), "the cut"))
    running.reason = "stopped"
    result = running.end()
    assert (result["traced"], result["cost"]["cut"]) == (0, 1)


def test_an_environ_that_the_app_keeps_counts_as_kept() -> None:
    running = Running(wanted=1)
    number = running.in_flight.enter("GET", "/x", 1)
    environ = {"token": running.trace.begin(), "body": bytearray(10_000)}
    running.in_flight.leave(number)
    wait_for(lambda: running.trace.traced == 1, "the end of the request")
    assert running.end()["traced"] == 1
    environ.clear()


def test_where_no_memory_is_left_for_the_figures_the_trace_ends_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none() -> dict[Any, Any]:
        raise MemoryError

    monkeypatch.setattr(line_trace, "types_by_place", none)
    running = Running(wanted=1, seconds=5)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    running.request(leak)
    wait_for(lambda: not tracemalloc.is_tracing(), "the trace to end")
    assert running.end() == {}


def test_the_apps_own_tracemalloc_is_left_alone() -> None:
    tracemalloc.start()
    try:
        running = Running(seconds=0.3)
        running.request(leak)
        assert running.end()["traced"] == 0
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()


def test_beside_other_requests_tracing_takes_little_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(line_trace, "PAUSE", 9.0)
    running = Running(wanted=4)
    running.in_flight.enter("GET", "/other", 1)  # one that lasts
    result = running.until_the_end(leak)
    cost = result["cost"]
    assert cost["busy_seconds"] <= 0.2 * cost["seconds"]


def test_the_types_of_what_a_line_keeps_are_counted() -> None:
    tracemalloc.start(4)
    try:
        leak()
        leak()
        found = types_by_place(seconds=60)
    finally:
        tracemalloc.stop()
    assert found[__file__, LEAK] == {"bytearray": 2}


# --- Pure


OWN, LIBRARY = "/srv/shop/views.py", "/srv/.venv/lib/python3.12/site-packages/flask/app.py"


def test_the_place_is_the_newest_of_the_apps_own() -> None:
    assert is_own(OWN)
    assert not is_own(LIBRARY)
    assert not is_own(threading.__file__)
    assert not is_own("<frozen importlib._bootstrap>")
    assert place_of(((LIBRARY, 1), (OWN, 2), (OWN, 3))) == (OWN, 2)
    assert place_of(((LIBRARY, 1), (LIBRARY, 2))) == (LIBRARY, 1)


def test_growth_is_by_stack_and_may_be_negative() -> None:
    a, b = ((OWN, 1),), ((OWN, 2),)
    assert growth({a: (100, 2)}, {a: (60, 1), b: (7, 1)}) == {a: (-40, -1), b: (7, 1)}


def test_what_grew_in_most_windows_comes_before_one_large_growth() -> None:
    steady: Frames = ((OWN, 1),)
    once: Frames = ((OWN, 2),)
    windows: list[Sizes] = [
        {steady: (10, 1), once: (1000, 1)},
        {steady: (10, 1)},
        {steady: (10, 1)},
    ]
    assert [place[1] for place, _ in ranked(windows)] == [1, 2]
    (_, first), _ = ranked(windows)
    assert (first.bytes, first.windows) == (30, 3)


@pytest.mark.parametrize(
    ("route", "asked", "matches"),
    [
        ("/export", "GET /export", True),
        ("/export", "POST /export", True),
        ("/export", "GET /export/1", False),
        ("GET /export", "POST /export", False),
        ("/clients/<n>", "GET /clients/17", True),
        ("GET /clients/<int:id>/x", "GET /clients/17/x", True),
        ("/clients/<n>", "GET /clients/17/x", False),
        ("/files/<path:name>", "GET /files/a/b", True),
        ("/files/<name:path>", "GET /files/a/b", True),
        ("GET /static/…", "GET /static/a/b.css", True),
        ("/a.b", "GET /axb", False),
    ],
)
def test_a_route_is_named_as_the_status_names_it(route: str, asked: str, matches: bool) -> None:
    assert bool(route_pattern_of(route).fullmatch(asked)) == matches


@pytest.mark.parametrize(
    ("mount", "path", "traced"),
    [("", "/app/x", True), ("/app", "/x", True), ("/app", "/app/x", True), ("/app", "/y", False)],
)
def test_a_route_below_a_mount_is_named_with_or_without_it(
    mount: str, path: str, traced: bool
) -> None:
    seen: list[object] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        return []

    site = TracedRoute(app, route_pattern_of("/app/x"), lambda: seen.append(1))
    environ = make_environ() | {"SCRIPT_NAME": mount, PATH: path}
    site(environ, lambda *_: lambda _: None)
    assert bool(seen) == traced


def test_a_request_behind_a_traced_route_can_be_interrupted_as_any() -> None:
    """Code of LowMemory's own between server and app is never interrupted, but for THROUGH."""
    assert TracedRoute.__call__.__code__ in THROUGH


@pytest.mark.parametrize("route", ["", "export", "GET export", "/a b", "/\n", "/" + "x" * 300])
def test_what_is_no_route_is_refused(route: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(route)}$"):
        route_pattern_of(route)
