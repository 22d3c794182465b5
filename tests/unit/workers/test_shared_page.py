"""The black box: what workers write down, and what can be read of it when they are gone."""

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
from helpers.forks import asked, child, kill, together
from lowmem_wsgi.workers import postmortem as deaths
from lowmem_wsgi.workers import shared_page as module
from lowmem_wsgi.workers.shared_page import (
    APART,
    FIELDS,
    GONE,
    HEAD,
    LONGEST_RELEASE,
    MAGIC,
    POINTS,
    READY,
    REPLACED,
    REQUESTS,
    RETIRING,
    SIZE,
    SLOT_SIZE,
    SLOTS,
    SLOTS_AT,
    TEXT,
    Board,
    Seen,
    Slot,
    claim,
    is_alive,
)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture
def board() -> Iterator[Board]:
    found = Board.private()
    yield found
    found.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def claimed(board: Board, clock: Clock, rss: int = 50 * MB) -> Slot:
    slot = claim(board, rss, now=clock)
    assert slot is not None
    return slot


def only(board: Board) -> Seen:
    (seen,) = board.workers()
    return seen


# --- A worker and its slot


def test_a_worker_that_has_just_begun_is_on_the_page(board: Board, clock: Clock) -> None:
    assert board.workers() == []
    slot = claimed(board, clock)
    seen = only(board)
    assert (seen.place, seen.pid, seen.state) == (slot.index, os.getpid(), READY)
    assert (seen.born, seen.at) == (1000.0, 1000.0)
    assert (seen.born_rss, seen.rss, seen.requests) == (50 * MB, 50 * MB, 0)
    assert seen.points == []
    assert seen.flights == []
    assert not seen.replaced


def test_requests_are_there_while_they_are_in_flight_oldest_first(
    board: Board, clock: Clock
) -> None:
    slot = claimed(board, clock)
    first = slot.began("GET", "/first")
    clock.now += 1
    slot.note(70 * MB, 100 * MB)
    second = slot.began("POST", "/second")
    assert only(board).flights == [
        ("GET /first", 1000.0, 50 * MB),
        ("POST /second", 1001.0, 70 * MB),
    ]
    slot.ended(first)
    assert [flight.what for flight in only(board).flights] == ["POST /second"]
    slot.ended(second)
    slot.note(70 * MB, 100 * MB)
    assert only(board).flights == []
    assert only(board).requests == 2


def test_more_requests_than_there_is_room_for_are_counted_alone(board: Board, clock: Clock) -> None:
    slot = claimed(board, clock)
    places = [slot.began("GET", f"/{number}") for number in range(REQUESTS + 3)]
    assert sorted(places)[:3] == [-1] * 3
    assert len(only(board).flights) == REQUESTS
    for place in places:
        slot.ended(place)
    assert only(board).flights == []
    assert sorted(slot.began("GET", "/again") for _ in range(REQUESTS)) == list(range(REQUESTS))
    slot.note(MB, MB)
    assert only(board).requests == 2 * REQUESTS + 3


def test_what_was_in_flight_when_it_was_aborted_stays_whatever_becomes_of_it(
    board: Board, clock: Clock
) -> None:
    slot = claimed(board, clock)
    place = slot.began("GET", "/hangs")
    slot.freeze()
    slot.ended(place)
    assert [flight.what for flight in only(board).flights] == ["GET /hangs"]


def test_readings_close_together_share_a_point_and_the_last_ones_are_kept(
    board: Board, clock: Clock
) -> None:
    slot = claimed(board, clock)
    for number in range(5):
        clock.now += APART / 10
        slot.note(number * MB, 2 * number * MB)
    assert only(board).points == [(clock.now, 4 * MB, 8 * MB)]
    for number in range(3 * POINTS):
        clock.now += APART
        slot.note(number * MB, 2 * number * MB)
    points = only(board).points
    assert [rss // MB for _, rss, _ in points] == list(range(2 * POINTS, 3 * POINTS))
    assert all(used == 2 * rss for _, rss, used in points)
    assert (only(board).rss, only(board).at) == (points[-1][1], clock.now)


@given(st.lists(st.floats(0, 2), min_size=1, max_size=60))
@settings(deadline=None)
def test_the_points_are_in_order_and_end_with_the_last_reading(pauses: list[float]) -> None:
    board, clock = Board.private(), Clock()
    slot = claimed(board, clock)
    for number, pause in enumerate(pauses):
        clock.now += pause
        slot.note(number, number)
    points = only(board).points
    assert 0 < len(points) <= POINTS
    assert points == sorted(points)
    assert points[-1] == (clock.now, len(pauses) - 1, len(pauses) - 1)
    board.close()


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
    board: Board, clock: Clock, state: int, replaced: bool
) -> None:
    claimed(board, clock).enter(state)
    assert only(board).replaced is replaced


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
    board: Board, clock: Clock, state: int, in_flight: int, grown: int, expected: bool
) -> None:
    slot = claimed(board, clock)
    for number in range(in_flight):
        slot.began("GET", f"/{number}")
    slot.note(60 * MB, 100 * MB)
    clock.now += 1
    slot.note((60 + grown) * MB, 100 * MB)
    slot.enter(state)
    assert only(board).takes_room(clock.now - 0.5) is expected


# --- The slots


def other(board: Board, place: int, pid: int, state: int = READY) -> None:
    """Somebody else's slot."""
    at = SLOTS_AT + place * SLOT_SIZE
    module.SLOT.pack_into(board.map, at, pid, state, 1.0, 1.0, 1, 1, 1)


def test_when_all_slots_are_taken_there_is_none_until_one_is_freed(
    board: Board, clock: Clock
) -> None:
    for place in range(SLOTS):
        other(board, place, 100_000_000 + place)
    assert board.taken() == list(range(SLOTS))
    assert claim(board, MB, now=clock) is None
    board.free(7)
    assert claimed(board, clock).index == 7
    assert [seen.place for seen in board.workers()] == list(range(SLOTS))


def test_a_slot_that_was_freed_holds_nothing_of_who_had_it(board: Board, clock: Clock) -> None:
    slot = claimed(board, clock)
    slot.began("GET", "/secret")
    slot.note(MB, MB)
    board.free(slot.index)
    assert b"secret" not in board.map[:]
    assert board.taken() == []
    assert board.read(slot.index) is None
    claimed(board, clock)
    assert (only(board).flights, only(board).points) == ([], [])


@needs_fork
def test_what_a_worker_wrote_is_there_after_it_was_killed(board: Board) -> None:
    def work() -> None:
        slot = claim(board, 20 * MB)
        assert slot is not None
        slot.note(300 * MB, 500 * MB)
        slot.ended(slot.began("GET", "/done"))
        slot.began("GET", "/report")

    with child(work) as pid:
        kill(pid)
        seen = only(board)
    assert (seen.pid, seen.rss, seen.state) == (pid, 300 * MB, READY)
    assert seen.flights[0].what == "GET /report"
    assert seen.points[0][1:] == (300 * MB, 500 * MB)
    assert not is_alive(pid)


@needs_fork
def test_workers_that_begin_together_get_a_slot_each(board: Board) -> None:
    for _ in range(5):
        pids = together(6, lambda: claim(board, MB))
        assert sorted(seen.pid for seen in board.workers()) == sorted(pids)
        for place in board.taken():
            board.free(place)


@needs_fork
def test_a_file_is_a_page_for_all_who_know_its_path(tmp_path: Path) -> None:
    path = str(tmp_path / "workers-1")

    def work() -> None:
        board = Board.at(path)
        assert claim(board, 20 * MB)
        board.change(in_vain=2)

    with child(work) as pid:
        board = Board.at(path)
        assert only(board).pid == pid
        assert board.in_vain == 2
        claim(board, MB)
        assert [seen.pid for seen in board.workers()] == [pid, os.getpid()]
        board.close()
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.stat(path).st_size == SIZE


def test_a_link_is_not_followed_to_the_page(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_bytes(b"precious")
    (tmp_path / "workers-1").symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError, match="workers-1"):
        Board.at(str(tmp_path / "workers-1"))
    assert (tmp_path / "theirs").read_bytes() == b"precious"


def test_a_closed_page_gives_its_descriptor_back() -> None:
    before = os.dup(0)
    os.close(before)
    for _ in range(3):
        Board.private().close()
    after = os.dup(0)
    os.close(after)
    assert before == after


# --- For all


def test_what_belongs_to_all_is_nothing_at_first(board: Board) -> None:
    assert [getattr(board, name) for name in ("master", "kills", "deaths", "in_vain")] == [0] * 4
    assert board.last_death is None
    assert board.map[: len(MAGIC)] == MAGIC


def test_the_fields_lie_where_the_head_has_them(board: Board) -> None:
    for number, field in enumerate(FIELDS, 1):
        board.change(**{field: number})
    assert HEAD.unpack_from(board.map, 0) == (MAGIC, *range(1, len(FIELDS) + 1))
    assert HEAD.size == max(at + struct.calcsize(kind) for at, kind in FIELDS.values())


@given(
    st.dictionaries(
        st.sampled_from(["master", "kills", "deaths", "in_vain"]), st.integers(0, 2**32 - 1)
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_changing_some_leaves_the_others(board: Board, values: dict[str, int]) -> None:
    names = ("master", "kills", "deaths", "in_vain", "release")
    before = {name: getattr(board, name) for name in names}
    board.change(**values)
    assert {name: getattr(board, name) for name in names} == before | values


@needs_fork
def test_two_who_change_different_things_do_not_undo_each_other(board: Board) -> None:
    """A worker, and its master: neither waits for the other."""

    def work() -> None:
        for number in range(1, 3001):
            board.change(in_vain=number)

    with child(work, stays=False) as pid:
        for number in range(1, 3001):
            board.change(kills=number)
            assert board.kills == number
        os.waitpid(pid, 0)
    assert board.in_vain == 3000


@needs_fork
def test_nobody_counts_while_another_does(board: Board) -> None:
    def work() -> None:
        for _ in range(300):
            with board.locked():
                board.change(deaths=board.deaths + 1)

    together(4, work)
    assert board.deaths == 1200


# --- What a worker takes to be gone


def test_before_any_has_gone_nothing_is_known(board: Board) -> None:
    assert board.release == 0


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
    ],
)
def test_it_is_measured_from_the_word_to_end_until_it_is_gone(
    board: Board, took: list[float], release: float
) -> None:
    now = 5000.0
    for seconds in took:
        now += 1000
        board.retires(now)
        board.released(now + seconds)
    assert board.release == pytest.approx(release, abs=3e-6)


def test_a_clock_that_seems_to_run_backwards_measures_nothing(board: Board) -> None:
    """Two processes may read it in another order."""
    board.retires(5000.0)
    board.released(4999.9)
    assert board.release == 0


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_it_lies_between_the_least_and_the_most_that_was_measured(
    board: Board, took: list[float]
) -> None:
    board.change(release=0)
    for seconds in took:
        board.retires(1000.0)
        board.released(1000.0 + seconds)
    counted = [min(seconds, LONGEST_RELEASE) for seconds in took]
    assert counted[-1] - 1e-5 <= board.release <= max(counted) + 1e-5
    assert board.release >= min(counted) - 1e-5


@needs_fork
def test_a_worker_says_it_and_its_master_measures(board: Board) -> None:
    def work() -> None:
        board.retires(5000.0)

    with child(work):
        board.released(5000.25)
    assert board.release == pytest.approx(0.25, abs=1e-5)


# --- The turn


@needs_fork
def test_one_worker_has_the_turn_until_it_ends_it(board: Board) -> None:
    assert board.take_turn()
    assert board.take_turn()  # it has it already
    assert asked(board.take_turn) is False
    with board.locked():  # which is another thing
        pass
    assert asked(board.take_turn) is False
    board.end_turn()
    assert asked(board.take_turn) is True


@needs_fork
def test_the_kernel_takes_the_turn_back_from_who_dies(board: Board) -> None:
    def work() -> None:
        assert board.take_turn()

    with child(work) as pid:
        assert not board.take_turn()
        kill(pid)
        assert board.take_turn()


@needs_fork
def test_the_turn_is_for_all_who_know_the_path(tmp_path: Path) -> None:
    path = str(tmp_path / "workers-1")
    board = Board.at(path)
    assert board.take_turn()
    assert asked(lambda: Board.at(path).take_turn()) is False
    board.end_turn()
    assert asked(lambda: Board.at(path).take_turn()) is True
    board.close()


# --- What is told of a death


def death_of(board: Board, clock: Clock, *routes: str) -> dict[str, object]:
    slot = claimed(board, clock)
    for route in routes:
        slot.began("GET", route.encode("utf-8", "surrogatepass").decode("latin-1"))  # as in WSGI
    clock.now += 2
    return deaths.describe(only(board), deaths.OOM_KILL, clock.now)


def test_a_death_is_told_with_what_was_in_flight_and_how_memory_went(
    board: Board, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    slot = claimed(board, clock, 40 * MB)
    clock.now += 8
    slot.note(60 * MB, 300 * MB)
    slot.began("GET", "/export")
    clock.now += 2.5
    slot.note(200 * MB, 470 * MB)
    clock.now += 0.1
    death = deaths.report(board, only(board), deaths.OOM_KILL, now=clock.now)
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
    (record,) = caplog.records
    assert record.getMessage() == (
        f"💀 worker {os.getpid()} died: OOM kill. In flight: GET /export (for 2.6 s, the worker "
        "grew 140 MB meanwhile). Memory, as last seen: 300 MB → 470 MB in its last 2.5 s, the "
        "worker itself 200 MB after 11 s; requests: 1"
    )
    last = board.last_death
    assert last is not None
    assert abs(last.pop("at") - time.time()) < 60
    assert last == death
    assert board.deaths == 1
    assert board.workers() == []


def test_what_the_kernel_knows_of_the_end_completes_what_was_seen(
    board: Board, clock: Clock
) -> None:
    slot = claimed(board, clock, 40 * MB)
    slot.began("GET", "/export")
    slot.note(48 * MB, 60 * MB)
    clock.now += 0.4
    seen = deaths.completed(only(board), 480 * MB, 512 * MB, now=clock.now)
    death = deaths.describe(seen, deaths.OOM_KILL, clock.now)
    assert (death["rss_bytes"], death["used_bytes"]) == (480 * MB, 512 * MB)
    assert (death["used_before_bytes"], death["seconds"]) == (60 * MB, 0.4)
    (flight,) = death["in_flight"]
    assert flight["grown_bytes"] == 440 * MB
    assert deaths.completed(only(board), 0, 0, now=clock.now) == only(board)


def test_a_worker_that_died_before_its_first_reading_is_told_as_well(
    board: Board, clock: Clock
) -> None:
    death = death_of(board, clock)
    assert (death["used_bytes"], death["seconds"], death["in_flight"]) == (0, 0.0, [])
    assert "In flight: nothing." in deaths.sentence(death)


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
    board: Board, clock: Clock, route: str, shown: str
) -> None:
    sentence = deaths.sentence(death_of(board, clock, route))
    assert f"In flight: GET {shown} (for 2.0 s" in sentence
    assert sentence.isprintable()


@pytest.mark.parametrize("path", ["/\udcff", "/Ł", "/\U0001f4a9"])
def test_a_path_that_no_server_could_have_sent_does_no_harm(
    board: Board, clock: Clock, path: str
) -> None:
    claimed(board, clock).began("GET", path)
    assert only(board).flights[0].what == "GET /?"


@given(st.lists(st.text(max_size=200), max_size=REQUESTS))
@settings(deadline=None)
def test_whatever_the_routes_are_the_last_death_is_kept_and_can_be_read(routes: list[str]) -> None:
    board, clock = Board.private(), Clock()
    death = death_of(board, clock, *routes)
    assert deaths.sentence(death).isprintable()
    board.add_death(death)
    last = board.last_death
    assert last is not None
    assert {**last, "in_flight": []} == {**death, "in_flight": []}
    flights = death["in_flight"]
    assert isinstance(flights, list)
    assert last["in_flight"] == flights[: len(last["in_flight"])]
    assert len(json.dumps(last)) <= TEXT
    board.close()


def test_a_shorter_death_after_a_longer_one_is_read_whole(board: Board, clock: Clock) -> None:
    board.add_death(death_of(board, clock, *["/" + "x" * 100] * 5))
    board.free(0)
    short = death_of(board, clock)
    board.add_death(short)
    assert board.last_death == short
    assert board.deaths == 2


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
    board = Board.private()
    rest = (b"\0" * shift + slots * (SIZE // len(slots) + 1))[: SIZE - SLOTS_AT]
    board.map[:] = (head * (SLOTS_AT // len(head) + 1))[:SLOTS_AT] + rest
    with contextlib.suppress(OverflowError):  # of this system's kill(2), where there is no /proc
        _ = [is_alive(seen.pid) for seen in board.workers()]
    assert len(board.taken()) >= len(board.workers())
    last = board.last_death
    assert last is None or isinstance(last, dict)
    assert len(board.ledger.counts()) > 0
    assert len(board.ledger.routes()) <= 101
    assert len([*board.ledger.points(), *board.ledger.events()]) <= 360 + 64
    board.ledger.event("cleanup", 0, "warn")
    board.ledger.point(5)
    for seen in board.workers():
        assert seen.takes_room(5.0) in (True, False)
        assert seen.replaced in (True, False)
        deaths.left_in_order(seen)
        death = deaths.describe(seen, deaths.CRASH, 1000.0)
        assert deaths.sentence(death).isprintable()
        board.change(deaths=0)
        board.add_death(death)
        assert isinstance(board.last_death, dict)
        board.free(seen.place)
    assert board.workers() == []
    assert claim(board, MB) is not None
    board.close()


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[1]", b"null", b"\xff\xfe", b'{"a": "\xc3', b"[" * TEXT, b'{"a":' * (TEXT // 5)],
)
def test_a_last_death_that_cannot_be_read_is_none(board: Board, text: bytes) -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(200 + depth())  # as in the preset ultra
    try:
        board.map[HEAD.size : HEAD.size + len(text)] = text
        for length in (len(text), TEXT, 2**32 - 1):
            board.change(length=length)
            assert board.last_death is None
    finally:
        sys.setrecursionlimit(before)


def test_a_page_of_something_else_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "workers-1"
    path.write_bytes(b"something else " * 10_000)
    board = Board.at(str(path))
    assert (board.master, board.deaths, board.last_death) == (0, 0, None)
    assert board.workers() == []
    board.close()
    again = Board.at(str(path))
    again.change(deaths=3)
    again.close()
    once_more = Board.at(str(path))
    assert once_more.deaths == 3
    once_more.close()


# --- Who is alive


@needs_fork
def test_a_process_that_has_ended_is_not_alive_also_before_it_is_waited_for() -> None:
    assert is_alive(os.getpid())
    pid = os.fork()
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
