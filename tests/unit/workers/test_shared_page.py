"""The shared page: what workers write down, and what can be read of it when they are gone."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.fakes import MB, Clock
from helpers.forks import asked, child, fork, kill, together
from lowmem_wsgi.workers import postmortem
from lowmem_wsgi.workers.figures import ROUTES
from lowmem_wsgi.workers.record import (
    APART,
    GONE,
    POINTS,
    READY,
    RECORDS_AT,
    REPLACED,
    REQUESTS,
    RETIRING,
    WORKER,
    Seen,
    WorkerRecord,
    record_at,
)
from lowmem_wsgi.workers.shared_page import (
    FIELDS,
    HEAD,
    LONGEST_RELEASE,
    MAGIC,
    PLACES,
    SIZE,
    TEXT,
    SharedPage,
    is_alive,
)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def page() -> Iterator[SharedPage]:
    found = SharedPage.private()
    yield found
    found.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def claimed(page: SharedPage, clock: Clock, rss: int = 50 * MB) -> WorkerRecord:
    return page.claim(rss, now=clock)


def only(page: SharedPage) -> Seen:
    (seen,) = page.workers()
    return seen


# --- A worker and its record


def test_a_worker_that_has_just_begun_is_on_the_page(page: SharedPage, clock: Clock) -> None:
    assert page.workers() == []
    record = claimed(page, clock)
    seen = only(page)
    assert (seen.place, seen.pid, seen.state) == (record.index, os.getpid(), READY)
    assert (seen.born, seen.at) == (1000.0, 1000.0)
    assert (seen.born_rss, seen.rss, seen.requests) == (50 * MB, 50 * MB, 0)
    assert seen.points == []
    assert seen.in_flight == []
    assert not seen.replaced


def test_requests_are_there_while_they_are_in_flight_oldest_first(
    page: SharedPage, clock: Clock
) -> None:
    record = claimed(page, clock)
    first = record.began("GET", "/first")
    clock.now += 1
    record.note(70 * MB, 100 * MB)
    second = record.began("POST", "/second")
    assert only(page).in_flight == [
        ("GET /first", 1000.0, 50 * MB),
        ("POST /second", 1001.0, 70 * MB),
    ]
    record.ended(first)
    assert [request.what for request in only(page).in_flight] == ["POST /second"]
    record.ended(second)
    record.note(70 * MB, 100 * MB)
    assert only(page).in_flight == []
    assert only(page).requests == 2


def test_more_requests_than_there_is_room_for_are_counted_alone(
    page: SharedPage, clock: Clock
) -> None:
    record = claimed(page, clock)
    places = [record.began("GET", f"/{number}") for number in range(REQUESTS + 3)]
    assert sorted(places)[:3] == [-1] * 3
    assert len(only(page).in_flight) == REQUESTS
    for place in places:
        record.ended(place)
    assert only(page).in_flight == []
    assert sorted(record.began("GET", "/again") for _ in range(REQUESTS)) == list(range(REQUESTS))
    record.note(MB, MB)
    assert only(page).requests == 2 * REQUESTS + 3


def test_what_was_in_flight_when_it_was_aborted_stays_whatever_becomes_of_it(
    page: SharedPage, clock: Clock
) -> None:
    record = claimed(page, clock)
    place = record.began("GET", "/hangs")
    record.freeze()
    record.ended(place)
    assert [request.what for request in only(page).in_flight] == ["GET /hangs"]


def test_readings_close_together_share_a_point_and_the_last_ones_are_kept(
    page: SharedPage, clock: Clock
) -> None:
    record = claimed(page, clock)
    for number in range(5):
        clock.now += APART / 10
        record.note(number * MB, 2 * number * MB)
    assert only(page).points == [(clock.now, 4 * MB, 8 * MB)]
    for number in range(3 * POINTS):
        clock.now += APART
        record.note(number * MB, 2 * number * MB)
    points = only(page).points
    assert [rss // MB for _, rss, _ in points] == list(range(2 * POINTS, 3 * POINTS))
    assert all(used == 2 * rss for _, rss, used in points)
    assert (only(page).rss, only(page).at) == (points[-1][1], clock.now)


@given(st.lists(st.floats(0, 2), min_size=1, max_size=60))
@settings(deadline=None)
def test_the_points_are_in_order_and_end_with_the_last_reading(pauses: list[float]) -> None:
    page, clock = SharedPage.private(), Clock()
    record = claimed(page, clock)
    for number, pause in enumerate(pauses):
        clock.now += pause
        record.note(number, number)
    points = only(page).points
    assert 0 < len(points) <= POINTS
    assert points == sorted(points)
    assert points[-1] == (clock.now, len(pauses) - 1, len(pauses) - 1)
    page.close()


@pytest.mark.parametrize(
    ("state", "replaced"),
    [
        (READY, False),
        (RETIRING, False),
        (REPLACED, True),
        (READY | GONE, False),
        (RETIRING | GONE, False),
        (REPLACED | GONE, True),
    ],
)
def test_it_says_whether_another_was_started_in_its_place(
    page: SharedPage, clock: Clock, state: int, replaced: bool
) -> None:
    claimed(page, clock).enter(state)
    assert only(page).replaced is replaced


@pytest.mark.parametrize(
    ("state", "in_flight", "grown", "expected"),
    [
        (READY, 0, 0, True),
        (READY, 1, 50, True),
        (RETIRING, 0, 50, False),
        (RETIRING, 1, 0, False),
        (RETIRING, 1, 3, False),
        (RETIRING, 1, 5, True),
        (REPLACED, 1, 5, True),
        (READY | GONE, 0, 50, False),
    ],
)
def test_a_worker_takes_room_while_it_is_at_work_or_still_grows(
    page: SharedPage, clock: Clock, state: int, in_flight: int, grown: int, expected: bool
) -> None:
    record = claimed(page, clock)
    for number in range(in_flight):
        record.began("GET", f"/{number}")
    record.note(60 * MB, 100 * MB)
    clock.now += 1
    record.note((60 + grown) * MB, 100 * MB)
    record.enter(state)
    assert only(page).takes_room(clock.now - 0.5) is expected


# --- The records


def other(page: SharedPage, place: int, pid: int, state: int = READY) -> None:
    """Somebody else's record."""
    WORKER.pack_into(page.map, record_at(place), pid, state, 1.0, 1.0, 1, 1, 1, 0.0)


def test_when_all_places_are_taken_there_is_none_until_one_is_freed(
    page: SharedPage, clock: Clock
) -> None:
    for place in range(PLACES):
        other(page, place, 100_000_000 + place)
    assert page.taken() == list(range(PLACES))
    assert page.claim(MB, now=clock).index == -1
    page.free(7)
    assert claimed(page, clock).index == 7
    assert [seen.place for seen in page.workers()] == list(range(PLACES))


def test_a_record_that_was_freed_holds_nothing_of_who_had_it(
    page: SharedPage, clock: Clock
) -> None:
    record = claimed(page, clock)
    record.began("GET", "/secret")
    record.note(MB, MB)
    page.free(record.index)
    assert b"secret" not in page.map[:]
    assert page.taken() == []
    assert page.read(record.index) is None
    claimed(page, clock)
    assert (only(page).in_flight, only(page).points) == ([], [])


@needs_fork
def test_what_a_worker_wrote_is_there_after_it_was_killed(page: SharedPage) -> None:
    def work() -> None:
        record = page.claim(20 * MB)
        record.note(300 * MB, 500 * MB)
        record.ended(record.began("GET", "/done"))
        record.began("GET", "/report")

    with child(work) as pid:
        kill(pid)
        seen = only(page)
    assert (seen.pid, seen.rss, seen.state) == (pid, 300 * MB, READY)
    assert seen.in_flight[0].what == "GET /report"
    assert seen.points[0][1:] == (300 * MB, 500 * MB)
    assert not is_alive(pid)


@needs_fork
def test_workers_that_begin_together_get_a_record_each(page: SharedPage) -> None:
    for _ in range(5):
        pids = together(6, lambda: page.claim(MB))
        assert sorted(seen.pid for seen in page.workers()) == sorted(pids)
        for place in page.taken():
            page.free(place)


@needs_fork
def test_a_file_is_a_page_for_all_who_know_its_path(tmp_path: Path) -> None:
    path = str(tmp_path / "workers-1")

    def work() -> None:
        page = SharedPage.at(path)
        page.claim(20 * MB)
        page.change(in_vain=2)

    with child(work) as pid:
        page = SharedPage.at(path)
        assert only(page).pid == pid
        assert page.in_vain == 2
        page.claim(MB)
        assert [seen.pid for seen in page.workers()] == [pid, os.getpid()]
        page.close()
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.stat(path).st_size == SIZE


def test_a_link_is_not_followed_to_the_page(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_bytes(b"precious")
    (tmp_path / "workers-1").symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError, match="workers-1"):
        SharedPage.at(str(tmp_path / "workers-1"))
    assert (tmp_path / "theirs").read_bytes() == b"precious"


def test_a_closed_page_gives_its_descriptor_back() -> None:
    before = os.dup(0)
    os.close(before)
    for _ in range(3):
        SharedPage.private().close()
    after = os.dup(0)
    os.close(after)
    assert before == after


# --- For all


def test_what_belongs_to_all_is_nothing_at_first(page: SharedPage) -> None:
    assert [getattr(page, name) for name in ("master", "kills", "deaths", "in_vain")] == [0] * 4
    assert page.last_death is None
    assert page.map[: len(MAGIC)] == MAGIC


def test_the_fields_lie_where_the_head_has_them(page: SharedPage) -> None:
    for number, field in enumerate(FIELDS, 1):
        page.change(**{field: number})
    assert HEAD.unpack_from(page.map, 0) == (MAGIC, *range(1, len(FIELDS) + 1))
    assert HEAD.size == max(at + struct.calcsize(kind) for at, kind in FIELDS.values())


@given(
    st.dictionaries(
        st.sampled_from(["master", "kills", "deaths", "in_vain"]), st.integers(0, 2**32 - 1)
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_changing_some_leaves_the_others(page: SharedPage, values: dict[str, int]) -> None:
    names = ("master", "kills", "deaths", "in_vain", "release")
    before = {name: getattr(page, name) for name in names}
    page.change(**values)
    assert {name: getattr(page, name) for name in names} == before | values


@needs_fork
def test_two_who_change_different_things_do_not_undo_each_other(page: SharedPage) -> None:
    """A worker, and its master: neither waits for the other."""

    def work() -> None:
        for number in range(1, 3001):
            page.change(in_vain=number)

    with child(work, stays=False) as pid:
        for number in range(1, 3001):
            page.change(kills=number)
            assert page.kills == number
        os.waitpid(pid, 0)
    assert page.in_vain == 3000


@needs_fork
def test_nobody_counts_while_another_does(page: SharedPage) -> None:
    def work() -> None:
        for _ in range(300):
            with page.locked():
                page.change(deaths=page.deaths + 1)

    together(4, work)
    assert page.deaths == 1200


# --- What a worker takes to be gone


def test_before_any_has_gone_nothing_is_known(page: SharedPage) -> None:
    assert page.release == 0


@pytest.mark.parametrize(
    ("took", "release"),
    [
        ([0.5], 0.5),
        ([0.0], 0.0),
        # More than before counts at once; less brings it down by half of the difference.
        ([0.2, 0.8], 0.8),
        ([0.8, 0.2], 0.5),
        ([0.8, 0.2, 0.2], 0.35),
        # One that a slow request has kept counts as so much.
        ([60.0], LONGEST_RELEASE),
        ([60.0, 1.0], (LONGEST_RELEASE + 1) / 2),
        ([-0.1], 0.0),  # two processes may read the clock in another order
    ],
)
def test_it_follows_what_ends_took(page: SharedPage, took: list[float], release: float) -> None:
    for seconds in took:
        page.released(seconds)
    assert page.release == pytest.approx(release, abs=3e-6)


@given(st.lists(st.floats(0, 4), min_size=1, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_it_lies_between_the_least_and_the_most_that_was_measured(
    page: SharedPage, took: list[float]
) -> None:
    page.change(release=0)
    for seconds in took:
        page.released(seconds)
    counted = [min(seconds, LONGEST_RELEASE) for seconds in took]
    assert counted[-1] - 1e-5 <= page.release <= max(counted) + 1e-5
    assert page.release >= min(counted) - 1e-5


# --- The turn


@needs_fork
def test_one_worker_has_the_turn_until_it_ends_it(page: SharedPage) -> None:
    assert page.take_turn()
    assert page.take_turn()  # it has it already
    assert asked(page.take_turn) is False
    with page.locked():  # which is another thing
        pass
    assert asked(page.take_turn) is False
    page.end_turn()
    assert asked(page.take_turn) is True


@needs_fork
def test_the_kernel_takes_the_turn_back_from_who_dies(page: SharedPage) -> None:
    def work() -> None:
        assert page.take_turn()

    with child(work) as pid:
        assert not page.take_turn()
        kill(pid)
        assert page.take_turn()


@needs_fork
def test_the_turn_is_for_all_who_know_the_path(tmp_path: Path) -> None:
    path = str(tmp_path / "workers-1")
    page = SharedPage.at(path)
    assert page.take_turn()
    assert asked(lambda: SharedPage.at(path).take_turn()) is False
    page.end_turn()
    assert asked(lambda: SharedPage.at(path).take_turn()) is True
    page.close()


# --- What is told of a death


def death_of(page: SharedPage, clock: Clock, *routes: str) -> dict[str, object]:
    record = claimed(page, clock)
    for route in routes:
        record.began("GET", route.encode("utf-8", "surrogatepass").decode("latin-1"))  # as in WSGI
    clock.now += 2
    return postmortem.describe(only(page), postmortem.OOM_KILL, clock.now)


def test_a_death_is_told_with_what_was_in_flight_and_how_memory_went(
    page: SharedPage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    record = claimed(page, clock, 40 * MB)
    clock.now += 8
    record.note(60 * MB, 300 * MB)
    record.began("GET", "/export")
    clock.now += 2.5
    record.note(200 * MB, 470 * MB)
    clock.now += 0.1
    death = postmortem.report(page, only(page), postmortem.OOM_KILL, now=clock.now)
    assert death == {
        "pid": os.getpid(),
        "cause": "OOM kill",
        "age_seconds": 10.6,
        "requests": 1,
        "rss_bytes": 200 * MB,
        "used_before_bytes": 300 * MB,
        "used_bytes": 470 * MB,
        "seconds": 2.5,
        "in_flight": [{"route": "GET /export", "seconds": 2.6, "grown_bytes": 140 * MB}],
    }
    (line,) = caplog.messages
    assert line == (
        f"💀 worker {os.getpid()} died: OOM kill. In flight: GET /export (for 2.6 s, the worker "
        "grew 140 MB meanwhile). Memory, as last seen: 300 MB → 470 MB in its last 2.5 s, the "
        "worker itself 200 MB after 11 s; requests: 1"
    )
    last = page.last_death
    assert last is not None
    assert abs(last.pop("at") - time.time()) < 60
    assert last == death
    assert page.deaths == 1
    assert page.workers() == []


def test_what_the_kernel_knows_of_the_end_completes_what_was_seen(
    page: SharedPage, clock: Clock
) -> None:
    record = claimed(page, clock, 40 * MB)
    record.began("GET", "/export")
    record.note(48 * MB, 60 * MB)
    clock.now += 0.4
    seen = postmortem.completed(only(page), 480 * MB, 512 * MB, now=clock.now)
    death = postmortem.describe(seen, postmortem.OOM_KILL, clock.now)
    assert (death["rss_bytes"], death["used_bytes"]) == (480 * MB, 512 * MB)
    assert (death["used_before_bytes"], death["seconds"]) == (60 * MB, 0.4)
    (request,) = death["in_flight"]
    assert request["grown_bytes"] == 440 * MB
    assert postmortem.completed(only(page), 0, 0, now=clock.now) == only(page)


def test_a_worker_that_died_before_its_first_reading_is_told_as_well(
    page: SharedPage, clock: Clock
) -> None:
    death = death_of(page, clock)
    assert (death["used_bytes"], death["seconds"], death["in_flight"]) == (0, 0.0, [])
    assert "In flight: nothing." in postmortem.sentence(death)


@pytest.mark.parametrize(
    ("route", "shown"),
    [
        ("/plain", "/plain"),
        ("/clients/Łódź", "/clients/\\u0141\\xf3d\\u017a"),
        ("/\r\n2026 ERROR forged", "/\\r\\n2026 ERROR forged"),
        ("/\x1b[31mred", "/\\x1b[31mred"),
        ("/\u2028\u202e", "/\\u2028\\u202e"),
        ("/\udcff", "/" + 3 * "\\ufffd"),
        ("/nul\0in it", "/nul\\x00in it"),
        ("", ""),
        ("/" + "x" * 500, "/" + "x" * 107),
        ("/" + "ö" * 500, "/" + "\\xf6" * 53 + "\\ufffd"),
    ],
)
def test_any_route_is_shown_on_one_line_of_the_log(
    page: SharedPage, clock: Clock, route: str, shown: str
) -> None:
    sentence = postmortem.sentence(death_of(page, clock, route))
    assert f"In flight: GET {shown} (for 2.0 s" in sentence
    assert sentence.isprintable()


@pytest.mark.parametrize("path", ["/\udcff", "/Ł", "/\U0001f4a9"])
def test_a_path_that_no_server_could_have_sent_does_no_harm(
    page: SharedPage, clock: Clock, path: str
) -> None:
    claimed(page, clock).began("GET", path)
    assert only(page).in_flight[0].what == "GET /?"


@given(st.lists(st.text(max_size=200), max_size=REQUESTS))
@settings(deadline=None)
def test_whatever_the_routes_are_the_last_death_is_kept_and_can_be_read(routes: list[str]) -> None:
    page, clock = SharedPage.private(), Clock()
    death = death_of(page, clock, *routes)
    assert postmortem.sentence(death).isprintable()
    page.add_death(death)
    last = page.last_death
    assert last is not None
    assert {**last, "in_flight": []} == {**death, "in_flight": []}
    in_flight = death["in_flight"]
    assert isinstance(in_flight, list)
    assert last["in_flight"] == in_flight[: len(last["in_flight"])]
    assert len(json.dumps(last)) <= TEXT
    page.close()


def test_a_shorter_death_after_a_longer_one_is_read_whole(page: SharedPage, clock: Clock) -> None:
    page.add_death(death_of(page, clock, *["/" + "x" * 100] * 5))
    page.free(0)
    short = death_of(page, clock)
    page.add_death(short)
    assert page.last_death == short
    assert page.deaths == 2


# --- A page that somebody else has written to, or half of it

# Numbers that are at home nowhere.
ODD = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True).map(lambda value: struct.pack("<d", value)),
    st.integers(0, 2**64 - 1).map(lambda value: struct.pack("<Q", value)),
    st.just(b"\0" * 8),
    st.just(b"\xff" * 8),
)
GARBAGE = st.one_of(
    st.binary(min_size=1, max_size=300), st.lists(ODD, min_size=1, max_size=40).map(b"".join)
)


@given(GARBAGE, GARBAGE, st.integers(0, 7))
@settings(deadline=None, max_examples=40)
def test_garbage_on_the_page_never_raises(head: bytes, slots: bytes, shift: int) -> None:
    page = SharedPage.private()
    rest = (b"\0" * shift + slots * (SIZE // len(slots) + 1))[: SIZE - RECORDS_AT]
    page.map[:] = (head * (RECORDS_AT // len(head) + 1))[:RECORDS_AT] + rest
    with contextlib.suppress(OverflowError):  # of this system's kill(2), where there is no /proc
        _ = [is_alive(seen.pid) for seen in page.workers()]
    assert len(page.taken()) >= len(page.workers())
    last = page.last_death
    assert last is None or isinstance(last, dict)
    with contextlib.suppress(OverflowError):
        assert len(page.figures().routes) <= (PLACES + 1) * ROUTES
    assert len([*page.history.points(), *page.history.events()]) <= 360 + 64
    page.history.event("cleanup", 0, "warn")
    page.history.point(5)
    for seen in page.workers():
        assert seen.takes_room(5.0) in (True, False)
        assert seen.replaced in (True, False)
        postmortem.left_in_order(seen)
        death = postmortem.describe(seen, postmortem.CRASH, 1000.0)
        assert postmortem.sentence(death).isprintable()
        page.change(deaths=0)
        page.add_death(death)
        assert isinstance(page.last_death, dict)
        page.fold_in(seen)
    assert page.workers() == []
    assert page.claim(MB).index == 0
    page.close()


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[1]", b"null", b"\xff\xfe", b'{"a": "\xc3', b"[" * TEXT, b'{"a":' * (TEXT // 5)],
)
def test_a_last_death_that_cannot_be_read_is_none(page: SharedPage, text: bytes) -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(200 + depth())  # as in the preset ultra
    try:
        page.map[HEAD.size : HEAD.size + len(text)] = text
        for length in (len(text), TEXT, 2**32 - 1):
            page.change(length=length)
            assert page.last_death is None
    finally:
        sys.setrecursionlimit(before)


def test_a_page_of_something_else_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "workers-1"
    path.write_bytes(b"something else " * 10_000)
    page = SharedPage.at(str(path))
    assert (page.master, page.deaths, page.last_death) == (0, 0, None)
    assert page.workers() == []
    page.close()
    again = SharedPage.at(str(path))
    again.change(deaths=3)
    again.close()
    once_more = SharedPage.at(str(path))
    assert once_more.deaths == 3
    once_more.close()


# --- Who is alive


@needs_fork
def test_a_process_that_has_ended_is_not_alive_also_before_it_is_waited_for() -> None:
    assert is_alive(os.getpid())
    pid = fork()
    if pid == 0:
        os._exit(0)
    for _ in range(1000):
        if not is_alive(pid):
            break
        time.sleep(0.005)
    assert not is_alive(pid)
    os.waitpid(pid, 0)
    assert not is_alive(pid)


@pytest.mark.parametrize(
    ("error", "alive"), [(None, True), (ProcessLookupError, False), (PermissionError, True)]
)
def test_a_system_without_proc_is_asked_by_a_signal_that_is_none(
    monkeypatch: pytest.MonkeyPatch, error: type[OSError] | None, alive: bool
) -> None:
    sent = []

    def kill(pid: int, number: int) -> None:
        sent.append((pid, number))
        if error is not None:
            raise error

    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    assert is_alive(2**31 - 1) is alive
    assert sent == [(2**31 - 1, 0)]


# --- Helpers


def depth() -> int:
    frame, found = sys._getframe(), 0
    while frame is not None:
        frame, found = frame.f_back, found + 1  # type: ignore[assignment]
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/smaps is Linux's")
def test_a_page_in_use_takes_little_memory(tmp_path: Path) -> None:
    page = SharedPage.at(str(tmp_path / "page"))
    worker = page.claim(50 * MB)
    for number in range(20):
        worker.ended(worker.began("GET", f"/{number}"))
        worker.note(50 * MB, 60 * MB)
        worker.flush({"requests": number})
        page.history.point(60 * MB)
        page.workers()
        page.figures()
    lines = Path("/proc/self/smaps").read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if line.endswith(f"{tmp_path}/page"))
    size = next(line for line in lines[at:] if line.startswith("Rss:")).split()[1]
    page.close()
    assert int(size) <= 160
