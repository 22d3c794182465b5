"""What single processes hold."""

from __future__ import annotations

import os
import sys

import pytest

from helpers.fakes import Clock
from helpers.forks import child
from lowmem_wsgi.system.processes import Remembered, process_age, process_figures
from lowmem_wsgi.system.procfs import own_uss, shared_bytes


def test_this_process_has_figures() -> None:
    figures = process_figures()
    assert (figures["uss_bytes"] or 0) <= (figures["rss_bytes"] or 0)
    assert 0 < (figures["rss_bytes"] or 0) <= (figures["peak_bytes"] or 0)
    if sys.platform == "linux":
        assert (figures["uss_bytes"] or 0) <= (figures["pss_bytes"] or 0)
    assert process_figures(os.getpid())["rss_bytes"] == pytest.approx(figures["rss_bytes"], rel=0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="psutil tells it there")
def test_own_uss_and_what_is_shared_are_as_psutil_tells_them() -> None:
    figures = process_figures()
    assert own_uss() == pytest.approx(figures["uss_bytes"], rel=0.05)
    rss = figures["rss_bytes"] or 0
    assert shared_bytes() == pytest.approx(rss - (figures["uss_bytes"] or 0), abs=rss / 20)
    assert (own_uss("/nonexistent"), shared_bytes("/nonexistent")) == (0, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_another_has_them_too_and_one_that_is_gone_has_none() -> None:
    with child(lambda: None) as pid:
        assert (process_figures(pid)["rss_bytes"] or 0) > 0
        assert (process_age(pid) or 0) < 60
    assert set(process_figures(pid).values()) == {None}
    assert process_age(pid) is None


def test_what_was_read_is_remembered_for_a_while_and_others_are_forgotten() -> None:
    clock, asked = Clock(), []

    def read(key: str) -> int:
        asked.append(key)
        return len(asked)

    remembered = Remembered(read, 5.0, now=clock)
    assert remembered.get(["a", "b"]) == {"a": 1, "b": 2}
    clock.now += 4.9
    assert remembered.get(["a", "c"]) == {"a": 1, "c": 3}
    assert remembered.get(["b"]) == {"b": 4}
    clock.now += 5.0
    assert remembered.get(["b"]) == {"b": 5}
