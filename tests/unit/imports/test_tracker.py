"""What heavy modules cost, since when, and for which route."""

from __future__ import annotations

import importlib
import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import forks
from helpers.wsgi import call, make_environ
from lowmem_wsgi import LowMemory, log
from lowmem_wsgi.imports import tracker
from lowmem_wsgi.imports.tracker import Tracker

MB = 1024 * 1024


class Machine:
    """A process whose size and time are what the modules loaded here say."""

    size = 100 * MB
    seconds = 50.0

    def load(self, mb: int, seconds: float = 1.0) -> None:
        self.size += mb * MB
        self.seconds += seconds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    monkeypatch.setattr(sys, "machine", found, raising=False)
    return found


@pytest.fixture
def seen(machine: Machine) -> Iterator[Tracker]:
    found = Tracker(
        rss=lambda: machine.size,
        now=lambda: 1000.0 + machine.seconds,
        clock=lambda: machine.seconds,
    )
    before = set(sys.modules)
    found.watch(["fat", "fatter", "fat2.deep"])
    sys.meta_path.insert(0, found)
    yield found
    found.stop()
    for name in set(sys.modules) - before:
        if name.startswith(("fat", "slim")):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, text: str) -> None:
        path = tmp_path / name.replace(".", "/")
        path.mkdir(parents=True, exist_ok=True)
        (path / "__init__.py").write_text("import sys\n" + text)
        importlib.invalidate_caches()

    return write


def test_a_load_is_booked_with_its_time_its_route_and_its_cost(
    seen: Tracker, write: Callable[[str, str], None]
) -> None:
    write("fat", "sys.machine.load(30, 2.5)")
    seen.attach(Told("GET /report"))
    assert seen.loaded() == []
    importlib.import_module("fat")
    assert seen.loaded() == [
        {
            "module": "fat",
            "loaded_at": 1052.5,
            "route": "GET /report",
            "cost_bytes": 30 * MB,
            "seconds": 2.5,
            "late": False,
            "first_use": None,
        }
    ]
    assert seen.own() == "fat (30 MB)"


def test_what_one_loads_for_another_is_booked_once(
    seen: Tracker, write: Callable[[str, str], None]
) -> None:
    write("fatter", "sys.machine.load(5)\nimport fat, slim, fatter.part\nsys.machine.load(7)")
    write("fatter.part", "sys.machine.load(2)")
    write("slim", "sys.machine.load(1)")
    write("fat", "sys.machine.load(30)")
    seen.note_first_use("fatter", "app.py:9")
    importlib.import_module("fatter")
    booked = {row["module"]: row for row in seen.loaded()}
    assert {name: row["cost_bytes"] // MB for name, row in booked.items()} == {
        "fat": 30,
        "fatter": 5 + 2 + 1 + 7,
    }
    assert (booked["fat"]["seconds"], booked["fatter"]["seconds"]) == (1.0, 4.0)
    assert booked["fatter"]["first_use"] == "app.py:9"
    assert booked["fat"]["late"]  # it would not be there without the first use of the other


def test_a_part_that_is_loaded_later_is_added_to_the_whole(
    seen: Tracker, machine: Machine, write: Callable[[str, str], None]
) -> None:
    write("fat", "sys.machine.load(1)")
    write("fat.part", "sys.machine.load(40)")
    importlib.import_module("fat")
    machine.load(500)  # of the app's
    importlib.import_module("fat.part")
    (row,) = seen.loaded()
    assert (row["cost_bytes"], row["seconds"], row["loaded_at"]) == (41 * MB, 2.0, 1051.0)


def test_a_part_of_a_light_package_may_be_heavy(
    seen: Tracker, write: Callable[[str, str], None]
) -> None:
    write("fat2", "sys.machine.load(3)")
    write("fat2.deep", "sys.machine.load(9)")
    importlib.import_module("fat2")
    assert seen.loaded() == []
    importlib.import_module("fat2.deep")
    assert [(row["module"], row["cost_bytes"]) for row in seen.loaded()] == [("fat2.deep", 9 * MB)]


def test_two_threads_that_load_at_the_same_time_are_together_as_large_as_they_grew(
    seen: Tracker, machine: Machine, write: Callable[[str, str], None]
) -> None:
    sys.turns = threading.Barrier(2)  # type: ignore[attr-defined]
    try:
        for name, mb in (("fat", 20), ("fatter", 10)):
            write(name, f"sys.turns.wait(10)\nsys.machine.load({mb})\nsys.turns.wait(10)")
        threads = [
            threading.Thread(target=importlib.import_module, args=(name,))
            for name in ("fat", "fatter")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    finally:
        del sys.turns  # type: ignore[attr-defined]
    assert sum(row["cost_bytes"] for row in seen.loaded()) <= 30 * MB


def test_what_was_loaded_unseen_has_no_figures(
    seen: Tracker, write: Callable[[str, str], None]
) -> None:
    seen.stop()
    write("fat", "")
    importlib.import_module("fat")
    sys.meta_path.insert(0, seen)
    unseen = dict.fromkeys(("loaded_at", "route", "cost_bytes", "seconds"))
    assert seen.loaded() == [{"module": "fat", **unseen, "late": False, "first_use": None}]
    assert seen.own() == ""


def test_what_fails_to_load_is_not_told_and_can_be_tried_again(
    seen: Tracker, write: Callable[[str, str], None]
) -> None:
    write("fat", "1 / 0")
    with pytest.raises(ZeroDivisionError):
        importlib.import_module("fat")
    assert seen.loaded() == []
    assert seen.loading() == []
    write("fat", "sys.machine.load(3)\nAGAIN = True")
    assert importlib.import_module("fat").AGAIN
    assert seen.loaded()[0]["cost_bytes"] == 3 * MB


class Told:
    """A listener."""

    def __init__(self, route: str | None = None) -> None:
        self.route = route
        self.calls: list[str] = []
        self.error: Exception | None = None

    def where(self) -> str | None:
        if self.error is not None:
            raise self.error
        return self.route

    def load_begins(self) -> None:
        self.calls.append("begins")
        if self.error is not None:
            raise self.error

    def load_ends(self) -> None:
        self.calls.append("ends")
        if self.error is not None and not isinstance(self.error, MemoryError):
            raise self.error


def test_a_load_begins_and_ends_once_whatever_it_loads_itself(
    seen: Tracker, write: Callable[[str, str], None]
) -> None:
    told = Told()
    seen.attach(told)
    write("fatter", "import fat, slim\nsys.told.calls.append('fatter')")
    write("fat", "sys.told.calls.append('fat')")
    write("slim", "")
    sys.told = told  # type: ignore[attr-defined]
    try:
        importlib.import_module("fatter")
    finally:
        del sys.told  # type: ignore[attr-defined]
    assert told.calls == ["begins", "fat", "fatter", "ends"]
    importlib.import_module("slim")
    assert len(told.calls) == 4


def test_a_load_that_fails_ends_as_well(seen: Tracker, write: Callable[[str, str], None]) -> None:
    told = Told()
    seen.attach(told)
    write("fat", "1 / 0")
    with pytest.raises(ZeroDivisionError):
        importlib.import_module("fat")
    assert told.calls == ["begins", "ends"]


def test_a_load_that_there_is_no_memory_for_does_not_begin_and_can_be_tried_again(
    seen: Tracker, write: Callable[[str, str], None]
) -> None:
    told = Told()
    seen.attach(told)
    told.error = MemoryError("too little memory left")
    write("fat", "sys.machine.load(3)")
    for _ in range(2):
        with pytest.raises(MemoryError, match="too little memory left"):
            importlib.import_module("fat")
        assert "fat" not in sys.modules
        assert (seen.loading(), seen.loaded()) == ([], [])
    assert told.calls == ["begins", "ends"] * 2  # which is harmless
    told.error = None
    importlib.import_module("fat")
    assert seen.loaded()[0]["cost_bytes"] == 3 * MB


def test_who_is_told_and_fails_otherwise_breaks_no_import(
    seen: Tracker, write: Callable[[str, str], None]
) -> None:
    told = Told()
    seen.attach(told)
    told.error = ZeroDivisionError("oh")
    write("fat", "")
    importlib.import_module("fat")
    assert told.calls == ["begins", "ends"]
    assert [row["module"] for row in seen.loaded()] == ["fat"]


def test_memory_that_shrinks_meanwhile_is_no_cost_below_zero(
    seen: Tracker, write: Callable[[str, str], None]
) -> None:
    write("fat", "sys.machine.load(-3)")
    importlib.import_module("fat")
    assert seen.loaded()[0]["cost_bytes"] == 0


def test_who_cannot_tell_the_route_breaks_no_import(
    seen: Tracker, write: Callable[[str, str], None]
) -> None:
    told = Told("GET /report")
    told.error = ZeroDivisionError("oh")
    seen.attach(told)
    write("fat", "")
    importlib.import_module("fat")
    assert seen.loaded()[0]["route"] is None


def test_the_module_shows_no_trace_of_being_watched(
    seen: Tracker, write: Callable[[str, str], None]
) -> None:
    write("fat", "SPEC_LOADER = __spec__.loader\n")
    spec = importlib.util.find_spec("fat")
    assert spec is not None
    assert spec.loader.get_source("fat").startswith("import sys")  # type: ignore[union-attr]
    fat: Any = importlib.import_module("fat")
    for loader in (fat.__loader__, fat.__spec__.loader, fat.SPEC_LOADER):
        assert type(loader).__name__ == "SourceFileLoader"


def test_a_fork_does_not_call_its_own_what_its_parent_has_loaded(
    seen: Tracker, write: Callable[[str, str], None]
) -> None:
    write("fat", "sys.machine.load(30)")
    write("fatter", "sys.machine.load(10)")
    importlib.import_module("fat")

    def work() -> None:
        importlib.import_module("fatter")
        assert [row["module"] for row in seen.loaded()] == ["fat", "fatter"]
        assert seen.own() == "fatter (10 MB)"

    forks.together(1, work)


def test_the_process_watches_itself() -> None:
    before, numbers = tracker.rss(), os.dup(0)
    fresh = mmap.mmap(-1, 20 * MB)  # and no page that the heap has had before
    fresh.write(b"x" * 20 * MB)
    assert tracker.rss() - before > 15 * MB
    os.close(numbers)
    assert os.dup(0) == numbers  # no descriptor is kept
    os.close(numbers)
    fresh.close()


def hello(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"hello"]


def test_an_app_wrapped_in_one_line_is_watched_from_its_first_request_to_its_close() -> None:
    app = LowMemory(hello, heavy_modules="fat,fatter")
    assert tracker.installed() is None
    app.start()
    found = tracker.installed()
    assert found is not None
    assert found.modules == ("fat", "fatter")
    assert app.status()["heavy"] == app.heavy()
    app.close()
    assert tracker.installed() is None
    assert (tracker.loaded(), tracker.own()) == ([], "")


def test_a_tracker_that_was_there_before_the_app_stays_when_the_app_leaves() -> None:
    found = tracker.install(["slim"])
    app = LowMemory(hello, heavy_modules="fat")
    app.start()
    assert tracker.installed() is found
    assert tracker.install(["slim"]) is found
    assert found.modules == ("slim", "fat")
    app.close()
    assert tracker.installed() is found


def test_a_listener_is_told_once_and_not_after_it_has_left(
    seen: Tracker, write: Callable[[str, str], None]
) -> None:
    first, second = Told(), Told("GET /second")
    for listener in (first, first, second):
        seen.attach(listener)
    write("fat", "")
    importlib.import_module("fat")
    assert first.calls == second.calls == ["begins", "ends"]
    assert seen.loaded()[0]["route"] == "GET /second"
    for listener in (second, second):
        seen.detach(listener)
    write("fatter", "")
    importlib.import_module("fatter")
    assert len(first.calls) == 4
    assert len(second.calls) == 2
    assert seen.loaded()[1]["route"] is None


def test_late_imports_that_are_asked_for_too_late_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO", log.logger.name):
        app = LowMemory(hello, lazy_heavy=True)
        app.start()
        app.close()
    assert "nothing imported late: use the Gunicorn config lowmem_wsgi.gunicorn" in caplog.text


def test_a_request_that_loads_what_there_is_no_room_for_is_503_and_the_next_may_have_it(
    machine: Machine, write: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("fat", "sys.machine.load(30)")

    def report(environ: Any, start_response: Any) -> list[bytes]:
        importlib.import_module("fat")
        return hello(environ, start_response)

    app = LowMemory(report, heavy_modules="fat")
    app.start()
    room: list[bool] = []

    def load_begins() -> None:
        if not room:
            raise MemoryError("too little memory left to load a heavy package")

    monkeypatch.setattr(app.runtime.ceiling, "load_begins", load_begins)
    try:
        reply = call(app, make_environ("/report"))
        assert reply.code == 503
        assert reply.header("Retry-After") == "2"
        room.append(True)
        assert call(app, make_environ("/report")).body == b"hello"
        assert not app.runtime.gc_runner.attribution.loading
    finally:
        app.close()
        sys.modules.pop("fat", None)
