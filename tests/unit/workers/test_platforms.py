"""Which number of workers a platform sets by itself."""

from __future__ import annotations

import os

import pytest

from lowmem_wsgi.workers.platforms import heroku, sets_this_itself

OWN = len(os.sched_getaffinity(0))
DYNO = {"DYNO": "web.1", "DYNO_RAM": "512"}


@pytest.mark.parametrize(
    ("ram", "cores", "workers"),
    [
        # Heroku's own table: Eco and Basic, Standard-2X, Performance-M, Performance-L.
        ("512", 8, 2),
        ("1024", 8, 4),
        ("2560", 2, 5),
        ("14336", 8, 17),
        ("128", 1, 1),
    ],
)
def test_heroku_sets_a_worker_for_each_256_mb_and_at_most_two_a_core_and_one(
    ram: str, cores: int, workers: int
) -> None:
    assert heroku({"DYNO": "web.1", "DYNO_RAM": ram}, cores) == workers


@pytest.mark.parametrize(
    "environ", [{}, {"DYNO": "web.1"}, {"DYNO_RAM": "512"}, {**DYNO, "DYNO_RAM": "x"}]
)
def test_elsewhere_nothing_is_set(environ: dict[str, str]) -> None:
    assert heroku(environ, 8) is None
    assert sets_this_itself({**environ, "WEB_CONCURRENCY": "2"}, 8) is None


@pytest.mark.parametrize(
    ("text", "platform"), [("2", "Heroku"), (" 2 ", "Heroku"), ("1", None), ("3", None), ("", None)]
)
def test_only_the_platforms_own_number_is_taken_for_it(text: str, platform: str | None) -> None:
    assert sets_this_itself({**DYNO, "WEB_CONCURRENCY": text}, 8) == platform


@pytest.mark.parametrize(
    ("threads", "cores"),
    [
        ("", len(os.sched_getaffinity(0))),
        ("3", 3),
        ("5,2", 5),
        ("many", len(os.sched_getaffinity(0))),
    ],
)
def test_the_cores_are_as_nproc_prints_them(threads: str, cores: int) -> None:
    large = {**DYNO, "DYNO_RAM": "1000000", "OMP_NUM_THREADS": threads}
    assert sets_this_itself({**large, "WEB_CONCURRENCY": str(2 * cores + 1)}) == "Heroku"
    assert sets_this_itself({**large, "WEB_CONCURRENCY": str(2 * cores)}) is None


def test_the_platform_is_known_also_when_omp_num_threads_was_set_after_it() -> None:
    """As `lowmem-wsgi run` does."""
    cores = len(os.sched_getaffinity(0))
    later = {**DYNO, "DYNO_RAM": "1000000", "OMP_NUM_THREADS": str(cores + 3)}
    assert sets_this_itself({**later, "WEB_CONCURRENCY": str(2 * cores + 1)}) == "Heroku"
