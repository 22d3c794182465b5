"""The level, as a pure function of the readings."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_wsgi.memory.levels import CRITICAL, DOWN, LEVELS, OK, TABLE, UP, WARN, Levels

MB = 1024 * 1024
READINGS = st.lists(st.integers(0, 512 * MB), max_size=60)


def make() -> Levels:
    return Levels(400 * MB, 450 * MB)


def levels(machine: Levels, *readings: float) -> list[str]:
    return [machine.observe(int(reading * MB)) for reading in readings]


def test_a_threshold_must_be_met_twice_in_a_row() -> None:
    assert levels(make(), 399, 400, 400) == [OK, OK, WARN]
    assert levels(make(), 400, 399, 400, 399) == [OK, OK, OK, OK]


def test_one_odd_reading_changes_nothing() -> None:
    assert levels(make(), 100, 512, 100, 512, 100) == [OK] * 5
    machine = make()
    levels(machine, 410, 410)
    assert levels(machine, 10, 410, 10, 10, 410) == [WARN] * 5


def test_critical_is_reached_through_warn_however_steep_the_way() -> None:
    assert levels(make(), 100, 500, 500, 500, 500) == [OK, OK, WARN, WARN, CRITICAL]


def test_a_level_is_left_only_well_under_its_threshold() -> None:
    machine = make()
    levels(machine, 410, 410)
    assert levels(machine, *[385] * 10) == [WARN] * 10
    assert levels(machine, *[379] * DOWN) == [WARN] * (DOWN - 1) + [OK]


def test_the_way_down_from_critical_leads_through_warn() -> None:
    machine = make()
    levels(machine, *[460] * (2 * UP))
    assert machine.level == CRITICAL
    assert levels(machine, *[100] * (2 * DOWN)) == [CRITICAL] * (DOWN - 1) + [WARN] * DOWN + [OK]


@given(READINGS)
def test_no_step_skips_a_level_upwards_or_downwards(readings: list[int]) -> None:
    machine = make()
    seen = [OK, *(machine.observe(reading) for reading in readings)]
    for before, after in itertools.pairwise(seen):
        assert abs(LEVELS.index(after) - LEVELS.index(before)) <= 1


@given(READINGS, st.integers(0, 50 * MB))
def test_higher_readings_never_give_a_lower_level(readings: list[int], more: int) -> None:
    """From the same start, and held long enough to settle."""
    lower, higher = make(), make()
    for reading in readings:
        held = [(lower.observe(reading), higher.observe(reading + more)) for _ in range(6)]
        assert LEVELS.index(held[-1][0]) <= LEVELS.index(held[-1][1])


@given(st.integers(0, 600 * MB), st.integers(0, 600 * MB))
def test_zones_are_monotone_in_the_reading(one: int, two: int) -> None:
    machine = make()
    low, high = sorted((one, two))
    assert machine.zone(low) <= machine.zone(high)


@pytest.mark.parametrize("threshold", [400, 450])
@pytest.mark.parametrize("noise", [1, 5, 9])
def test_a_noisy_signal_at_a_threshold_does_not_flap(threshold: int, noise: int) -> None:
    generator = random.Random(noise)
    machine = make()
    seen = levels(machine, *(threshold + generator.uniform(-noise, noise) for _ in range(2000)))
    changes = sum(before != after for before, after in itertools.pairwise(seen))
    assert changes <= 2


def test_every_level_says_where_every_zone_leads() -> None:
    assert set(TABLE) == set(LEVELS)
    for row in TABLE.values():
        assert len(row) == 5
        order = [LEVELS.index(level) for level in row]
        assert order == sorted(order)


@pytest.mark.parametrize(("warn", "critical"), [(0, 1), (2, 2), (3, 2), (-1, 5)])
def test_thresholds_that_make_no_sense_are_refused(warn: int, critical: int) -> None:
    with pytest.raises(ValueError, match="warn < critical"):
        Levels(warn, critical)


def test_a_reading_that_asks_for_a_change_makes_the_next_wanted_soon() -> None:
    machine = make()
    levels(machine, 410)
    assert machine.unsettled
    levels(machine, 410)
    assert not machine.unsettled
