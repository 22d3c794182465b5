"""Each finding of the diagnosis, both ways."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from lowmem_wsgi.admin import diagnosis
from lowmem_wsgi.admin.diagnosis import Document, Finding, diagnose

MB = 1024 * 1024


def route(name: str, requests: int, grown: int, worst: int, **more: Any) -> dict[str, Any]:
    """One that grows with each request, and holds all of that."""
    return {
        "route": name,
        "requests": requests,
        "grown_bytes": grown * MB,
        "held_bytes": grown * MB,
        "replaced_workers": 0,
        "rises": requests,
        "quiet_requests": 0,
        "worst_bytes": worst * MB,
        "shared": 0.0,
        **more,
    }


def worker(size: int, *, born: int = 40, **more: Any) -> dict[str, Any]:
    return {
        "role": "worker",
        "state": "ready",
        "this": True,
        "rss_bytes": size * MB,
        "uss_bytes": size * MB,
        "pss_bytes": size * MB,
        "held_bytes": 0,
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
            "outside": None,
        },
        "requests": {"out_of_memory": 0},
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
LEAK = route("GET /export", 40, 180, 9)
GONE = route("GET /export", 90, 354, 9, held_bytes=40 * MB, replaced_workers=2)
HELD = {
    "bytes": 242 * MB,
    "used_bytes": 300 * MB,
    "limit_bytes": 512 * MB,
    "shmem_bytes": 201 * MB,
    "cache_bytes": 3 * MB,
    "kernel_bytes": None,
    "processes_bytes": 0,
    "processes": 0,
}


def held(**changes: Any) -> dict[str, Any]:
    return memory(outside={**HELD, **changes})


# finding -> what makes it say its sentence, the sentence, and what is near and does not.
CASES: dict[str, tuple[dict[str, Any], str, list[dict[str, Any]]]] = {
    "steady": (
        {},
        "Nothing stands out: 61 MB of 512 MB, worst request +22 MB at POST /import.",
        [],
    ),
    "eating_now": (
        {"workers": [worker(300, in_flight=[FLIGHT])]},
        "GET /report has been running for 12.3 s, and its worker has grown 180 MB meanwhile.",
        [{}, {"workers": [worker(300, in_flight=[{**FLIGHT, "grown_bytes": 9 * MB}])]}],
    ),
    "eating_now, or another that has ended": (
        {"workers": [worker(300, held_bytes=170 * MB, in_flight=[FLIGHT])]},
        "GET /report has been running for 12.3 s, and its worker has grown 180 MB meanwhile; other "
        "requests that ended beside it may be what keeps that.",
        [],
    ),
    "eating_now, or another beside it": (
        {"workers": [worker(300, in_flight=[FLIGHT, {**FLIGHT, "route": "GET /slow"}])]},
        "GET /report and GET /slow are running, and their worker has grown 180 MB meanwhile.",
        [],
    ),
    "ran_out": (
        {"requests": {"out_of_memory": 8}},
        "8 requests asked for more memory than there was, since the start: the log has the routes.",
        [{}],
    ),
    "died": (
        {"last_death": DEATH},
        "Worker 17 was killed by the kernel at 480 MB, grown by 400 MB in GET /export: offload "
        "that, or read and write in pieces.",
        [{}, {"last_death": {**DEATH, "at": 5.0}}],
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
    "died, and what was in flight had not grown": (
        {"last_death": {**DEATH, "in_flight": [{"route": "GET /", "grown_bytes": 7 * MB}]}},
        "Worker 17 was killed by the kernel at 480 MB, with GET / in flight.",
        [],
    ),
    "died, of one of two": (
        {"last_death": {**DEATH, "in_flight": [FLIGHT, {**FLIGHT, "route": "GET /slow"}]}},
        "Worker 17 was killed by the kernel at 480 MB; it grew by 180 MB while GET /report and "
        "GET /slow were in flight.",
        [],
    ),
    "died, of something else": (
        {"last_death": {**DEATH, "cause": "timeout"}},
        "Worker 17 died at 480 MB (timeout), with GET /export and GET / in flight.",
        [],
    ),
    "closed": (
        {"closed": True, "workers": [worker(420, state="retiring")]},
        "Everything is answered 503: memory has been at critical for too long, and this worker "
        "is being replaced.",
        [{}],
    ),
    "closed, for the moment": (
        {"closed": True},
        "Everything is answered 503: memory has been at critical for too long.",
        [],
    ),
    "closed, for good": (
        {"closed": True, "replaceable": False},
        "Everything is answered 503: memory has been at critical for too long, and nothing "
        "replaces this worker: restart it.",
        [],
    ),
    "does_not_fit": (
        {"workers": TWO},
        "2 workers × 210 MB do not fit in the 400 MB up to warn: set WEB_CONCURRENCY=1.",
        [
            {},
            {"workers": [worker(420)]},
            {"workers": [worker(90), worker(90)]},
            {"workers": TWO, "routes": [LEAK]},
            {"workers": [worker(210), worker(210, in_flight=[FLIGHT])]},
            {"workers": [worker(210), worker(210, state="retiring")]},
        ],
    ),
    "does_not_fit, of which they share a part": (
        {"workers": [worker(140, uss_bytes=100 * MB)] * 3},
        "3 workers × 140 MB do not fit in the 400 MB up to warn: set WEB_CONCURRENCY=2.",
        [],
    ),
    "leaks": (
        {"routes": [LEAK]},
        "GET /export grew 180 MB over 40 requests, 4.5 MB each, and it is still held: a leak "
        "there, or a cache that fills.",
        [
            {},
            {"routes": [route("GET /export", 3, 180, 60)]},  # seen too seldom
            {"routes": [{**LEAK, "rises": 1}]},  # what one request has loaded
            {"routes": [{**LEAK, "rises": 5}], "workers": TWO},  # in each of two
            {"routes": [route("other", 400, 180, 9)]},
            # It may be what the one in flight has taken.
            {"routes": [LEAK], "workers": [worker(300, in_flight=[FLIGHT])]},
        ],
    ),
    "leaks, and its workers were replaced": (
        {"routes": [GONE]},
        "GET /export grew 314 MB in 2 workers that were replaced, and 40 MB in the present one: a "
        "leak there, or a cache that fills.",
        [],
    ),
    "leaks, and the worker is gone": (
        {"routes": [{**GONE, "held_bytes": 0, "replaced_workers": 1}], "workers": [*TWO[:1]] * 2},
        "GET /export grew 354 MB in 1 worker that was replaced, and 0 bytes in the 2 there are: a "
        "leak there, or a cache that fills.",
        [],
    ),
    "leaks, by two routes": (
        {"routes": [LEAK, route("GET /other", 80, 80, 1), route("GET /", 900, 1, 1)]},
        "GET /export grew 180 MB over 40 requests, 4.5 MB each, and it is still held: a leak "
        "there, or a cache that fills. GET /other grew 80 MB over 80 requests, 1 MB each, and it "
        "is still held: a leak there, or a cache that fills.",
        [],
    ),
    "leaks, but does so no more": (
        {"routes": [{**LEAK, "requests": 400, "quiet_requests": 360}]},
        "GET /export grew 180 MB, and it is still held, but not in its last 360 requests: a cache "
        "that is full, it seems, and no leak.",
        [],
    ),
    "leaks, and it cannot be told where": (
        {"routes": [{**route(f"GET /{name}", 40, 30, 1), "shared": 0.9} for name in "ab"]},
        "Memory grew 60 MB over 80 requests of GET /a and GET /b, and it is still held; they "
        "overlap too much to tell which of them keep it, or a thread of the app beside them.",
        [],
    ),
    "leaks, beside others that do not": (
        {"routes": [{**LEAK, "shared": 0.9}, {**route("GET /", 900, 9, 1), "shared": 0.9}]},
        "GET /export grew 180 MB over 40 requests, 4.5 MB each, and it is still held: a leak "
        "there, a cache that fills, or a thread of the app beside it.",
        [],
    ),
    "outside": (
        {"routes": [route("(no request)", 0, 90, 9)]},
        "Memory grew 90 MB outside of any request: a thread of the app keeps it.",
        [
            {"routes": [route("(no request)", 0, 9, 9)]},
            {"routes": [route("(no request)", 0, 30, 9), route("GET /export", 400, 500, 9)]},
        ],
    ),
    "outside, after requests that ran out of memory": (
        {"routes": [route("(no request)", 0, 90, 9)], "requests": {"out_of_memory": 1}},
        "1 request asked for more memory than there was, since the start: the log has the routes. "
        "Memory grew 90 MB that no request is known to keep: a thread of the app, or what the 1 "
        "request that ran out of memory left behind.",
        [],
    ),
    "born_large": (
        {
            "workers": LARGE,
            "heavy": [
                {"module": "pandas", "cost_bytes": 30 * MB},
                {"module": "numpy", "cost_bytes": 18 * MB},
                {"module": "openpyxl", "cost_bytes": 9 * MB, "route": "GET /", "late": True},
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
        held(),
        "242 MB of the container's 300 MB are in none of these processes: 201 MB in a tmpfs such "
        "as /dev/shm, or in shared memory.",
        [
            {},
            held(bytes=100 * MB),
            held(processes=None, processes_bytes=None),  # it could not be seen by what
        ],
    ),
    "held_by_others, which are other processes": (
        held(shmem_bytes=0, processes=2, processes_bytes=235 * MB),
        "242 MB of the container's 300 MB are in none of these processes: 235 MB in 2 other "
        "processes.",
        [],
    ),
    "held_by_others, and nothing tells by whom": (
        held(shmem_bytes=0),
        "242 MB of the container's 300 MB are in none of these processes.",
        [],
    ),
    "one_request": (
        {"routes": [route("GET /frame", 3, 0, 150)]},
        "One request of GET /frame took 150 MB: read and write in pieces there, or offload it.",
        [{}, {"routes": []}],
    ),
    "fragmented": (
        {"gc": TRIMS},
        "Trimming returns 39 MB a time: requests free that, and the C library keeps it until then "
        "(set MALLOC_ARENA_MAX=1, or start with lowmem-wsgi run).",
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
    finding: Callable[[Document], Iterable[Finding]] = getattr(diagnosis, case.partition(",")[0])
    assert [*finding(document(**changes))] == []


def test_every_finding_has_its_cases() -> None:
    tried = {case.partition(",")[0] for case in CASES}
    assert tried == {finding.__name__ for finding in diagnosis.FINDINGS} | {"steady", "full"}


def test_the_largest_are_told_first_and_not_too_many() -> None:
    told = diagnose(
        document(
            workers=[worker(210, born=300, in_flight=[FLIGHT]), worker(210)],
            last_death=DEATH,
            routes=[route("GET /export", 900, 2000, 9), route("(no request)", 0, 90, 0)],
            gc=TRIMS,
        )
    )
    assert told.startswith("GET /export grew 2 GB")
    assert told.index("Worker 17") < told.index("Start-up alone")
    for less in ("GET /report has been", "outside of any request", "do not fit", "Trimming"):
        assert less not in told


def test_a_larger_leak_by_a_route_is_not_hidden_by_a_thread() -> None:
    told = diagnose(document(routes=[LEAK, route("(no request)", 0, 90, 0)]))
    assert told.startswith("GET /export grew 180 MB over 40 requests")
    assert told.endswith("Memory grew 90 MB outside of any request: a thread of the app keeps it.")


def test_a_figure_that_cannot_be_had_breaks_nothing() -> None:
    nothing = {"rss_bytes": None, "uss_bytes": None, "pss_bytes": None, "born_bytes": None}
    workers = [worker(1) | nothing, worker(1) | nothing]
    changes = {"workers": workers, "routes": []}
    assert diagnose(document(**changes)) == "Nothing stands out: 61 MB of 512 MB."
