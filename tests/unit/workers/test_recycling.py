"""When a worker is replaced: a pure decision, reason by reason."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.fakes import MB
from lowmem_wsgi.memory.ceiling import RESERVE_SHARE
from lowmem_wsgi.memory.levels import CRITICAL, LEVELS, OK, WARN
from lowmem_wsgi.workers.recycling import (
    AHEAD,
    GIVEN_BACK,
    IN_VAIN,
    IN_VAIN_SO_FAR,
    LASTED,
    LEAST_LEAD,
    MOST_LEAD,
    MUCH,
    OFTEN,
    OLD,
    PATIENCE,
    REASONS,
    ROOM,
    SLOWLY,
    TOO_LARGE,
    WORTH,
    Situation,
    fits,
    lead,
    reason_to_wait,
)

LIMIT, CRITICAL_AT = 512 * MB, 450 * MB

# A worker that has leaked at warn for some time and is idle, and one that leaks at critical: both
# are to be replaced.
AT_WARN = Situation(
    level=WARN,
    used=410 * MB,
    limit=LIMIT,
    warn=400 * MB,
    critical=CRITICAL_AT,
    growth=0.1 * MB,
    rate=5.0,
    left=1000.0,
    lasted=60.0,
    age=600.0,
    started_in=0.05,
    rss=350 * MB,
    born_rss=50 * MB,
    idle=True,
)
AT_CRITICAL = AT_WARN._replace(level=CRITICAL, used=455 * MB, lasted=0.0, age=1.0, rss=400 * MB)

OF_OK = "memory is ok"
OF_ANOTHER = "another worker has grown more"
OF_YOUTH = "it is young"
OF_HOPE = "it may pass"
OF_REQUEST = "a request in flight may hold the memory"
OF_GIVING_BACK = "memory is being given back"
OF_TIME = "it is busy, and there is time"


def test_the_names_here_are_those_of_the_reasons() -> None:
    assert [name for name, _ in REASONS] == [
        *(OF_OK, TOO_LARGE, IN_VAIN_SO_FAR, OF_ANOTHER, OF_YOUTH, OF_HOPE, OF_REQUEST),
        *(OF_GIVING_BACK, OF_TIME),
    ]


@pytest.mark.parametrize("situation", [AT_WARN, AT_CRITICAL], ids=["warn", "critical"])
def test_a_worker_that_has_grown_is_replaced(situation: Situation) -> None:
    assert reason_to_wait(situation) is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # Each reason, and the same just past it.
        ({"level": OK, "used": 300 * MB}, OF_OK),
        ({"level": OK, "used": 449 * MB, "growth": 1 * MB}, OF_OK),
        ({"level": OK, "used": 449 * MB, "growth": 5 * MB}, None),
        ({"rss": 50 * MB + int(LIMIT * WORTH)}, TOO_LARGE),
        ({"rss": 50 * MB + int(LIMIT * WORTH) + 1}, None),
        ({"rss": 40 * MB}, TOO_LARGE),
        ({"in_vain": IN_VAIN}, IN_VAIN_SO_FAR),
        ({"in_vain": IN_VAIN - 1}, None),
        ({"others": (10 * MB, 301 * MB)}, OF_ANOTHER),
        ({"others": (10 * MB, 300 * MB)}, None),
        ({"age": OLD - 0.1}, OF_YOUTH),
        ({"age": OLD}, None),
        ({"lasted": LASTED - 0.1}, OF_HOPE),
        ({"lasted": LASTED}, None),
        ({"idle": False}, OF_HOPE),
        # What is left to wait for at warn is over by then.
        ({"hit": True}, None),
        # But not for a request that holds half of what has come.
        ({"held": 150 * MB - 1}, None),
        ({"held": 150 * MB}, OF_REQUEST),
        ({"held": 150 * MB, "lasted": 1000.0}, OF_REQUEST),
        ({"held": 150 * MB, "full": True}, None),
    ],
)
def test_at_warn(changes: dict[str, Any], expected: str | None) -> None:
    assert reason_to_wait(AT_WARN._replace(**changes)) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rss": 50 * MB + int(LIMIT * WORTH)}, TOO_LARGE),
        ({"in_vain": IN_VAIN}, IN_VAIN_SO_FAR),
        ({"others": (351 * MB,)}, OF_ANOTHER),
        ({"others": (350 * MB,)}, None),
        ({"age": 0.04}, OF_YOUTH),
        ({"age": 0.05}, None),
        ({"started_in": 7.0, "age": 6.9}, OF_YOUTH),
        ({"started_in": 7.0, "age": 7.0}, None),
        ({"held": 175 * MB - 1}, None),
        ({"held": 175 * MB}, OF_REQUEST),
        ({"held": 400 * MB, "lasted": 1000.0}, OF_REQUEST),
        ({"held": 400 * MB, "full": True}, None),
        ({"held": -MB}, None),  # it has given back
        ({"hit": True}, OF_GIVING_BACK),
        ({"hit": True, "lasted": PATIENCE}, None),
        ({"idle": False}, OF_TIME),
        ({"idle": False, "lasted": PATIENCE}, None),
        ({"idle": False, "growth": 100 * MB}, None),
        # 15 MB are left: 3 s at this growth, and its end takes as long as `lead`.
        ({"idle": False, "growth": 5 * MB, "lead": 0.5}, OF_TIME),
        ({"idle": False, "growth": 5 * MB, "lead": 2.0}, None),
        ({"idle": False, "growth": 0.0}, OF_TIME),
        ({"idle": False, "growth": -100.0 * MB}, OF_YOUTH),  # it falls: nothing presses
        ({"idle": False, "full": True}, None),
    ],
)
def test_at_critical(changes: dict[str, Any], expected: str | None) -> None:
    assert reason_to_wait(AT_CRITICAL._replace(**changes)) == expected


NEARLY = AT_WARN._replace(level=OK, used=300 * MB, lasted=0.0, age=1.0, rss=250 * MB)


@pytest.mark.parametrize(
    ("changes", "pressed"),
    [
        ({}, False),
        ({"level": WARN}, False),
        ({"level": CRITICAL}, False),  # the level lags behind
        ({"used": CRITICAL_AT}, True),
        # It would be there before a fresh worker is, however long that takes here.
        ({"growth": 599.0 * MB}, False),
        ({"growth": 600.0 * MB}, True),
        ({"growth": 37.0 * MB, "lead": MOST_LEAD}, False),
        ({"growth": 37.5 * MB, "lead": MOST_LEAD}, True),
        ({"used": CRITICAL_AT, "growth": -1.0 * MB}, False),  # it falls
        # It is at its own ceiling, or nearly.
        ({"full": True}, True),
        ({"left": LEAST_LEAD + 0.01}, False),
        ({"left": LEAST_LEAD}, True),
        ({"left": 2.01, "lead": 2.0}, False),
        ({"left": 2.0, "lead": 2.0}, True),
        # Its ceiling was met while it holds much, and what was freed is given back.
        ({"hit_since": GIVEN_BACK}, True),
        ({"hit_since": GIVEN_BACK - 0.01}, False),
        ({"hit_since": GIVEN_BACK, "rss": 50 * MB + int(MUCH * LIMIT)}, False),
        ({"hit_since": GIVEN_BACK, "rss": 50 * MB + int(MUCH * LIMIT) + 1}, True),
        ({"hit": True}, False),
        # Or where it is full of holes, which are no use for anything new.
        ({"hit_since": GIVEN_BACK, "rss": 60 * MB, "holes": 110 * MB}, True),
        ({"hit_since": GIVEN_BACK, "rss": 40 * MB, "holes": 110 * MB}, True),
        ({"hit_since": GIVEN_BACK, "rss": 60 * MB, "holes": 102 * MB}, False),
        ({"hit_since": None, "rss": 60 * MB, "holes": 300 * MB}, False),
        # A slow request would keep it, and what it holds, beside a fresh one.
        ({"slow": True, "rate": OFTEN, "growth": 15.0 * MB}, True),
        ({"slow": False, "rate": OFTEN, "growth": 15.0 * MB}, False),
        ({"slow": True, "rate": OFTEN - 1, "growth": 15.0 * MB}, False),
        ({"slow": True, "rate": OFTEN, "growth": 14.9 * MB}, False),
        ({"slow": True, "rate": OFTEN, "growth": 15.0 * MB, "rss": 200 * MB}, True),
        ({"slow": True, "rate": OFTEN, "growth": 15.0 * MB, "rss": 199 * MB}, False),
    ],
)
def test_it_is_pressed_at_critical_or_where_that_comes_before_a_fresh_worker_could(
    changes: dict[str, Any], pressed: bool
) -> None:
    situation = NEARLY._replace(**changes)
    assert situation.pressed is pressed
    if situation.level == OK:
        assert reason_to_wait(situation) == (None if pressed else OF_OK)


def test_where_several_have_grown_alike_the_first_is_replaced_in_time_for_the_last() -> None:
    """They are replaced one after the other, and grow meanwhile."""
    room = 100 * MB
    alike = AT_CRITICAL._replace(level=OK, used=CRITICAL_AT - room, growth=room / 2.5, lead=1.0)
    assert not alike.pressed
    assert not alike._replace(others=[alike.grown]).pressed
    assert alike._replace(others=[alike.grown] * 2).pressed
    assert not alike._replace(others=[alike.grown // 3] * 2).pressed  # these may wait


def test_the_figures_above_are_what_they_seem() -> None:
    """SLOWLY and the leads are seconds: 150 MB are left there."""
    assert (NEARLY.critical - NEARLY.used, SLOWLY) == (150 * MB, 10.0)
    assert (NEARLY.lead, LEAST_LEAD, MOST_LEAD) == (0.25, 0.25, 4.0)
    assert pytest.approx(102.4 * MB) == MUCH * LIMIT


@pytest.mark.parametrize(
    ("rss", "holes", "hit_since", "saved"),
    [
        (150, 0, None, 100),
        (150, 300, None, 100),
        (150, 300, 0.0, 300),
        (150, 30, 5.0, 100),
        (30, 0, 5.0, 0),
        (30, 0, None, 0),
    ],
)
def test_what_a_fresh_worker_would_not_take(
    rss: int, holes: int, hit_since: float | None, saved: int
) -> None:
    """Holes count where they were in the way: else they are filled again."""
    situation = NEARLY._replace(rss=rss * MB, holes=holes * MB, hit_since=hit_since)
    assert situation.saved == saved * MB


def test_a_worker_of_holes_is_replaced_where_its_ceiling_was_met() -> None:
    """Also one that is smaller than it was at its start."""
    full_of_holes = NEARLY._replace(rss=40 * MB, holes=110 * MB, age=20.0)
    assert reason_to_wait(full_of_holes) == OF_OK
    assert reason_to_wait(full_of_holes._replace(hit_since=GIVEN_BACK)) is None
    others = (60 * MB, 111 * MB)
    situation = full_of_holes._replace(hit_since=GIVEN_BACK, others=others)
    assert reason_to_wait(situation) == OF_ANOTHER


@pytest.mark.parametrize(
    ("release", "seconds"),
    [
        (0.0, LEAST_LEAD),
        (LEAST_LEAD / AHEAD, LEAST_LEAD),
        (0.5, 0.5 * AHEAD),
        (MOST_LEAD / AHEAD, MOST_LEAD),
        (60.0, MOST_LEAD),
    ],
)
def test_the_lead_is_what_an_old_worker_takes_here_to_be_gone(
    release: float, seconds: float
) -> None:
    assert lead(release) == pytest.approx(seconds)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_where_it_takes_longer_the_lead_is_never_shorter(release: float, more: float) -> None:
    assert LEAST_LEAD <= lead(release) <= lead(release + more) <= MOST_LEAD


# --- Properties

SIZES = st.integers(0, 2 * LIMIT)
SECONDS = st.floats(0, 1000)
SITUATIONS = st.builds(
    Situation,
    level=st.sampled_from(LEVELS),
    used=SIZES,
    limit=st.just(LIMIT),
    warn=st.just(400 * MB),
    critical=st.just(CRITICAL_AT),
    growth=st.floats(-1e9, 1e9),
    rate=st.floats(0, 1000),
    left=st.one_of(SECONDS, st.just(float("inf"))),
    lasted=SECONDS,
    age=SECONDS,
    started_in=st.sampled_from([0.05, 1.0]),
    rss=SIZES,
    born_rss=SIZES,
    idle=st.booleans(),
    held=st.one_of(st.just(0), st.integers(-LIMIT, LIMIT)),
    lead=st.floats(LEAST_LEAD, MOST_LEAD),
    hit=st.booleans(),
    hit_since=st.one_of(st.none(), st.floats(0, 60)),
    holes=SIZES,
    full=st.booleans(),
    slow=st.booleans(),
    others=st.lists(st.integers(-LIMIT, LIMIT), max_size=4),
    in_vain=st.integers(0, 2 * IN_VAIN),
)


@given(SITUATIONS)
def test_a_worker_that_a_fresh_one_would_not_better_is_never_replaced(situation: Situation) -> None:
    if situation.saved < WORTH * LIMIT or situation.in_vain >= IN_VAIN:
        assert reason_to_wait(situation) is not None


@given(SITUATIONS)
def test_a_worker_that_has_never_met_its_ceiling_is_worth_what_it_has_grown_by(
    situation: Situation,
) -> None:
    assert situation._replace(hit_since=None).saved == max(0, situation.grown)
    assert situation.saved >= situation.grown


@given(SITUATIONS)
def test_as_long_as_memory_is_ok_and_nothing_presses_nobody_is_replaced(
    situation: Situation,
) -> None:
    if situation.level == OK and not situation.pressed:
        assert reason_to_wait(situation) == OF_OK


@given(SITUATIONS, st.floats(0, MOST_LEAD))
def test_who_needs_longer_to_be_replaced_is_never_pressed_later(
    situation: Situation, longer: float
) -> None:
    situation = situation._replace(growth=abs(situation.growth))
    if situation.pressed:
        assert situation._replace(lead=situation.lead + longer).pressed


@given(SITUATIONS)
def test_starting_workers_takes_a_bounded_share_of_the_time(situation: Situation) -> None:
    """A worker lives as long as its start has taken: so half of it at most."""
    if situation.age < situation.started_in:
        assert reason_to_wait(situation) is not None


@given(st.lists(st.integers(0, LIMIT), max_size=6), st.integers(int(WORTH * LIMIT) + 1, LIMIT))
def test_of_all_workers_the_one_that_has_grown_most_may_be_replaced(
    sizes: list[int], one: int
) -> None:
    """At least one, and none that has grown less than another."""
    sizes.append(one)
    may = []
    for place, grown in enumerate(sizes):
        others = sizes[:place] + sizes[place + 1 :]
        situation = AT_CRITICAL._replace(rss=50 * MB + grown, others=others)
        if reason_to_wait(situation) is None:
            may.append(grown)
    assert may
    assert set(may) == {max(sizes)}


@given(SITUATIONS)
def test_at_critical_nothing_is_waited_for_longer_than_patience(situation: Situation) -> None:
    """But for a request in flight that holds half of it, which a fresh worker would not free."""
    used, growth = max(situation.used, CRITICAL_AT), abs(situation.growth)
    situation = situation._replace(used=used, growth=growth, lasted=PATIENCE)
    reasons = [None, TOO_LARGE, IN_VAIN_SO_FAR, OF_ANOTHER, OF_YOUTH]
    if 0 < situation.held >= situation.grown / 2:
        reasons.append(OF_REQUEST)
    assert reason_to_wait(situation) in reasons


@given(SITUATIONS, SECONDS)
def test_waiting_longer_never_brings_up_a_new_reason(situation: Situation, more: float) -> None:
    if reason_to_wait(situation) is None:
        later = situation._replace(lasted=situation.lasted + more, age=situation.age + more)
        assert reason_to_wait(later) is None


@given(SITUATIONS)
def test_an_idle_worker_never_waits_where_a_busy_one_does_not(situation: Situation) -> None:
    if reason_to_wait(situation._replace(idle=False)) is None:
        assert reason_to_wait(situation._replace(idle=True)) is None


# --- Beside the old one


@given(SIZES, SIZES)
def test_a_worker_that_fits_leaves_the_reserve_and_room_to_work_in(
    used: int, initial_uss: int
) -> None:
    free = LIMIT - used - initial_uss
    assert fits(used, initial_uss, LIMIT) is (free >= ROOM + LIMIT * RESERVE_SHARE)


@pytest.mark.parametrize(("used", "expected"), [(100, True), (400, True), (430, False)])
def test_a_fresh_worker_starts_beside_the_old_one_where_there_is_room(
    used: int, expected: bool
) -> None:
    assert fits(used * MB, 20 * MB, LIMIT) is expected
