"""Each finding of the diagnosis, both ways."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from lowmem_wsgi.admin import diagnosis
from lowmem_wsgi.admin.diagnosis import Document, diagnose

MB = 1024 * 1024


def route(name: str, requests: int, grown: int, worst: int) -> dict[str, Any]:
    return {
        "route": name,
        "requests": requests,
        "grown_bytes": grown * MB,
        "worst_bytes": worst * MB,
        "shared": 0.0,
    }


def worker(size: int, *, born: int = 40, **more: Any) -> dict[str, Any]:
    return {
        "role": "worker",
        "rss_bytes": size * MB,
        "pss_bytes": size * MB,
        "born_bytes": born * MB,
        "in_flight": [],
        **more,
    }


def document(**changes: Any) -> Document:
    """A site that is well: 61 of 512 MB, one worker."""
    return {
        "status": "ok",
        "memory": {
            "used_bytes": 61 * MB,
            "limit_bytes": 512 * MB,
            "processes_bytes": 58 * MB,
            "source": "cgroup v2",
        },
        "thresholds": {"warn_bytes": 400 * MB, "critical_bytes": 450 * MB},
        "gc": {"runs": 100, "collected": 30, "freed_bytes": 0, "gave_back": 0},
        "cleanups": {"last_freed_bytes": None},
        "workers": [worker(50), {**worker(20), "role": "master", "born_bytes": None}],
        "routes": [route("POST /import", 40, 2, 22), route("GET /", 400, 0, 1)],
        "last_death": None,
        "now": 10_000.0,
        "closed": False,
        "ceiling": 486 * MB,
        "replaceable": True,
        "allocator": {"PYTHONMALLOC": None, "MALLOC_ARENA_MAX": None},
        **copy.deepcopy(changes),
    }


def memory(**changes: Any) -> dict[str, Any]:
    return {"memory": {**document()["memory"], **changes}}


DEATH = {
    "pid": 17,
    "cause": "OOM kill",
    "at": 9_000.0,
    "rss_bytes": 480 * MB,
    "in_flight": [
        {"route": "GET /export", "grown_bytes": 400 * MB},
        {"route": "GET /", "grown_bytes": 7 * MB},
    ],
}
FLIGHT = {"route": "GET /report", "seconds": 12.3, "grown_bytes": 180 * MB}
TRIMS = {"runs": 100, "collected": 30, "freed_bytes": 390 * MB, "gave_back": 10}
TWO = [worker(210), worker(210)]
LARGE = [worker(420, born=400)]

# finding -> what makes it say its sentence, the sentence, and what is near and does not.
CASES: dict[str, tuple[dict[str, Any], str, list[dict[str, Any]]]] = {
    "steady": (
        {},
        "Steady: 61 MB of 512 MB, worst request +22 MB at POST /import.",
        [],
    ),
    "eating_now": (
        {"workers": [worker(300, in_flight=[FLIGHT])]},
        "GET /report has been running for 12.3 s, and its worker has grown 180 MB meanwhile.",
        [{}, {"workers": [worker(300, in_flight=[{**FLIGHT, "grown_bytes": 9 * MB}])]}],
    ),
    "died": (
        {"last_death": DEATH},
        "Worker 17 was killed by the kernel at 480 MB, grown by 400 MB in GET /export: offload "
        "that, or read and write in pieces.",
        [{}, {"last_death": {**DEATH, "cause": "timeout"}}, {"last_death": {**DEATH, "at": 5.0}}],
    ),
    "died, without a ceiling": (
        {"last_death": DEATH, "ceiling": None},
        "Worker 17 was killed by the kernel at 480 MB, grown by 400 MB in GET /export; "
        "LOWMEM_CEILING is off, which would have answered that with 503.",
        [],
    ),
    "died, with nothing in flight": (
        {"last_death": {**DEATH, "in_flight": []}},
        "Worker 17 was killed by the kernel at 480 MB, with nothing in flight.",
        [],
    ),
    "closed": (
        {"closed": True},
        "Everything is answered 503: memory has been at critical for too long, and this worker "
        "is being replaced.",
        [{}],
    ),
    "closed, for good": (
        {"closed": True, "replaceable": False},
        "Everything is answered 503: memory has been at critical for too long, and this worker "
        "cannot be replaced by its server: restart it.",
        [],
    ),
    "does_not_fit": (
        {"workers": TWO},
        "2 workers × 210 MB do not fit in 512 MB: set WEB_CONCURRENCY=1.",
        [{}, {"workers": [worker(420)]}, {"workers": [worker(90), worker(90)]}],
    ),
    "leaks": (
        {"routes": [route("GET /export", 40, 180, 9)]},
        "GET /export grew 180 MB over 40 requests, 4.5 MB each, and it is still held: a leak "
        "there, or a cache without a limit.",
        [
            {},
            {"routes": [route("GET /export", 3, 180, 60)]},  # seen too seldom
            {"routes": [route("other", 400, 180, 9)]},
        ],
    ),
    "leaks, and it cannot be told where": (
        {"routes": [route("GET /a", 40, 30, 1), route("GET /b", 40, 29, 1)]},
        "Memory grew 59 MB over 80 requests and is still held; they overlap too much to tell "
        "which route keeps it.",
        [{"routes": [route("GET /a", 40, 30, 1), route("GET /b", 40, -29, 1)]}],
    ),
    "leaks, outside of requests": (
        {"routes": [route("(no request)", 0, 90, 9)]},
        "Memory grew 90 MB outside of any request: a thread of the app keeps it.",
        [{"routes": [route("(no request)", 0, 9, 9)]}],
    ),
    "born_large": (
        {
            "workers": LARGE,
            "heavy": [
                {"module": "pandas", "cost_bytes": 30 * MB},
                {"module": "numpy", "cost_bytes": 18 * MB},
                {"module": "matplotlib", "cost_bytes": None},
            ],
        },
        "Start-up alone takes 78 % of the limit: pandas and numpy are 48 MB of it, see "
        "LOWMEM_LAZY_HEAVY.",
        [{}, {"workers": [worker(400, born=40)]}],
    ),
    "born_large, and nothing heavy is known": (
        {"workers": LARGE},
        "Start-up alone takes 78 % of the limit.",
        [],
    ),
    "held_by_others": (
        memory(used_bytes=300 * MB),
        "242 MB of the container's 300 MB are in none of these processes: another process, or "
        "files in a tmpfs such as /dev/shm.",
        [
            {},
            memory(used_bytes=300 * MB, processes_bytes=None),
            memory(used_bytes=300 * MB, source="machine"),
            memory(used_bytes=300 * MB, processes_bytes=290 * MB),
        ],
    ),
    "one_request": (
        {"routes": [route("GET /frame", 3, 0, 150)]},
        "One request of GET /frame took 150 MB: read and write in pieces there, or offload it.",
        [{}, {"routes": []}],
    ),
    "fragmented": (
        {"gc": TRIMS},
        "Passes free next to nothing, trimming returns 39 MB a time: fragmentation. Set "
        "MALLOC_ARENA_MAX=1, or start with lowmem-wsgi run.",
        [
            {},
            {"gc": {**TRIMS, "collected": 10**6}},
            {"gc": {**TRIMS, "gave_back": 2, "freed_bytes": 78 * MB}},
            {"gc": TRIMS, "allocator": {"PYTHONMALLOC": "malloc", "MALLOC_ARENA_MAX": "1"}},
        ],
    ),
    "full": (
        {"status": "warn", "cleanups": {"last_freed_bytes": 3 * MB}, **memory(used_bytes=80 * MB)},
        "80 MB of 512 MB are in use; the last cleanup freed 3 MB.",
        [{}],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_finding_is_told_where_it_applies(case: str) -> None:
    changes, sentence, _ = CASES[case]
    assert diagnose(document(**changes)) == sentence


@pytest.mark.parametrize(
    ("case", "changes"),
    [(case, near) for case, (_, _, others) in CASES.items() for near in others],
)
def test_and_not_where_it_does_not(case: str, changes: dict[str, Any]) -> None:
    finding: Callable[[Document], str | None] = getattr(diagnosis, case.partition(",")[0])
    assert finding(document(**changes)) is None


def test_every_finding_has_its_cases() -> None:
    tried = {case.partition(",")[0] for case in CASES}
    assert tried == {finding.__name__ for finding in diagnosis.FINDINGS} | {"steady"}


def test_the_most_important_are_told_first_and_not_too_many() -> None:
    changes = {
        "status": "critical",
        "workers": [worker(210, born=300, in_flight=[FLIGHT]), worker(210)],
        "last_death": DEATH,
        "routes": [route("GET /export", 40, 180, 9)],
        "gc": TRIMS,
    }
    told = diagnose(document(**changes))
    assert told.startswith("GET /report has been running")
    assert "Worker 17" in told
    assert "a leak there" in told
    assert "do not fit" not in told  # that is why
    assert "Passes free" not in told


def test_a_figure_that_cannot_be_had_breaks_nothing() -> None:
    nothing = {"rss_bytes": None, "pss_bytes": None, "born_bytes": None}
    changes = {"workers": [worker(1, **nothing), worker(1, **nothing)], "routes": []}
    assert diagnose(document(**changes)) == "Steady: 61 MB of 512 MB."
