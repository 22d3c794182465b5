"""What may still come in, as memory runs out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.fakes import MB, Clock
from lowmem_wsgi.memory.admission import PATIENCE, SMALL, AdmissionPolicy
from lowmem_wsgi.memory.levels import CRITICAL, LEVELS, OK, WARN
from lowmem_wsgi.system.usage import Usage

CRITICAL_AT = 450 * MB


class Door:
    def __init__(self) -> None:
        self.clock = Clock()
        self.admission = AdmissionPolicy(now=self.clock)

    def look(self, used_mb: float, level: str, after: float = 0.0) -> AdmissionPolicy:
        self.clock.now += after
        usage = Usage(int(used_mb * MB), 512 * MB, "cgroup v2")
        self.admission.look(usage, level, CRITICAL_AT)
        return self.admission


def test_at_first_and_while_memory_is_ok_anything_comes_in() -> None:
    door = Door()
    assert (door.admission.closed, door.admission.largest) == (False, None)
    door.look(449, OK)
    assert (door.admission.closed, door.admission.largest) == (False, None)


@pytest.mark.parametrize(
    ("used", "largest"), [(50, 50 * MB), (410, 5 * MB), (442, MB), (450, SMALL), (600, SMALL)]
)
def test_at_warn_a_body_that_takes_up_what_room_there_is_does_not(used: int, largest: int) -> None:
    assert Door().look(used, WARN).largest == largest


@given(st.lists(st.integers(0, 1 << 40), min_size=2), st.sampled_from([WARN, CRITICAL]))
def test_what_comes_in_shrinks_as_memory_rises_but_small_bodies_always_do(
    readings: list[int], level: str
) -> None:
    intake, found = AdmissionPolicy(), []
    for used in sorted(readings):
        intake.look(Usage(used, 512 * MB, ""), level, CRITICAL_AT)
        found.append(intake.largest or 0)
    assert found == sorted(found, reverse=True)
    assert min(found) >= SMALL


def test_it_closes_when_critical_has_lasted_and_not_before() -> None:
    door = Door()
    assert not door.look(460, CRITICAL).closed
    assert not door.look(460, CRITICAL, after=PATIENCE - 0.1).closed
    assert door.look(460, CRITICAL, after=0.1).closed
    assert door.look(500, CRITICAL, after=100).closed


def test_it_opens_with_the_first_reading_that_is_not_critical() -> None:
    door = Door()
    door.look(460, CRITICAL)
    assert door.look(460, CRITICAL, after=PATIENCE).closed
    assert not door.look(420, WARN).closed
    assert not door.look(460, CRITICAL, after=PATIENCE).closed
    assert door.look(460, CRITICAL, after=PATIENCE).closed


@given(st.lists(st.tuples(st.sampled_from(LEVELS), st.floats(0, 10)), max_size=30))
def test_it_is_closed_only_after_an_unbroken_time_at_critical(
    looks: list[tuple[str, float]],
) -> None:
    door, since = Door(), None
    for level, after in looks:
        closed = door.look(460, level, after).closed
        since = None if level != CRITICAL else door.clock.now if since is None else since
        assert closed is (since is not None and door.clock.now - since >= PATIENCE)
        assert not closed or door.admission.largest is not None


def test_a_new_child_is_open() -> None:
    door = Door()
    door.look(460, CRITICAL)
    door.look(460, CRITICAL, after=PATIENCE)
    door.admission.forget()
    assert (door.admission.closed, door.admission.largest) == (False, None)
    assert not door.look(460, CRITICAL).closed


def test_while_memory_is_about_to_be_given_back_it_stays_open() -> None:
    """A worker that ends takes its time on a tenth of a processor."""
    door = Door()
    usage = Usage(460 * MB, 512 * MB, "cgroup v2")
    for _ in range(3):
        door.clock.now += PATIENCE
        door.admission.look(usage, CRITICAL, CRITICAL_AT, lambda: True)
        assert not door.admission.closed
    assert not door.look(460, CRITICAL).closed  # the time counts from here
    assert door.look(460, CRITICAL, after=PATIENCE).closed
