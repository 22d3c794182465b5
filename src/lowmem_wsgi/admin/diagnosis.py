"""Explain in a sentence or two what uses up the memory, from the measured figures.

Each finding is a pure function of the status document. A finding yields sentences, each with the
bytes that the sentence is about, or none. LowMemory shows the MOST largest. A sentence says only
what its figures show: a sentence that may be wrong is worse than none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ..memory.attribution import NO_REQUEST, OTHER
from ..settings import MB, format_size

Document = dict[str, Any]
MOST = 3

# The least a sentence needs, as shares of the limit: workers at their start; growth that one route
# keeps; growth by a single request; memory of others in the container; a part of that memory.
BORN_SHARE, LEAK_SHARE, WORST_SHARE, OTHERS_SHARE, PART_SHARE = 0.5, 0.05, 0.2, 0.25, 0.1
# A route leaks only after LEAK_REQUESTS requests and LEAK_RISES rises. The route stands out if each
# of its requests leaves CLEARLY times as much as a request of the other routes.
LEAK_REQUESTS, LEAK_RISES, CLEARLY = 10, 3, 3
# A route has stopped growing after at least so many requests without a rise, and at least as many
# as before.
QUIET = 20
# A second route is named if its growth is at least NAMED_SHARE of the first's. Growth cannot be
# clearly attributed if at least BESIDE (a share) of a route's requests ran beside others.
NAMED_SHARE, BESIDE = 1 / 4, 0.2
# The least share of all growth that must come without requests.
OUTSIDE_SHARE = 1 / 4
# A request in flight for less than this (seconds) has not been weighed beside others yet.
LONG = 0.5
# Seconds for which a death is recent.
RECENT = 3600.0
# Giving back frees PAYS bytes each time, for at least TIMES times, while the GC passes find at most
# NOTHING objects a run.
PAYS, TIMES, NOTHING = 16 * MB, 5, 20


class Finding(NamedTuple):
    """A sentence, about so many bytes."""

    about: float
    said: str


def diagnose(document: Document) -> str:
    """Return the sentences that apply, the largest figure first."""
    return " ".join(finding["says"] for finding in remedies(document)) or steady(document)


def remedies(document: Document) -> list[dict[str, str]]:
    """Return the same sentences, each with the section of the docs that has its remedy."""
    found = [
        (finding, remedy) for find, remedy in FINDINGS.items() for finding in find(document)
    ] or [(finding, FULL) for finding in full(document)]
    found.sort(key=lambda row: -row[0].about)
    return [{"says": finding.said, "remedy": remedy} for finding, remedy in found[:MOST]]


def closed(document: Document) -> Iterable[Finding]:
    """LowMemory answers every request 503."""
    if document["closed"]:
        said = "Everything is answered 503: memory has been at critical for too long"
        states = [worker["state"] for worker in document["workers"] if worker["this"]]
        if "retiring" in states:
            said += ", and this worker is being replaced."
        elif not document["replaceable"]:
            said += ", and nothing replaces this worker: restart it."
        else:
            said += "."
        yield Finding(float("inf"), said)


def ran_out(document: Document) -> Iterable[Finding]:
    """Requests asked for more memory than there was."""
    count = document["requests"]["out_of_memory"]
    if count:
        yield Finding(
            _limit(document),
            f"{_requests(count)} asked for more memory than there was, since the start: the log "
            "has the routes.",
        )


def died(document: Document) -> Iterable[Finding]:
    """A worker died in the last hour: the cause, and the requests in flight."""
    death = document["last_death"]
    if not death or not -60 < _ago(document, death) < RECENT:
        return
    size, in_flight = death["rss_bytes"], death["in_flight"]
    if death["cause"] != "OOM kill":
        said = f"Worker {death['pid']} died at {format_size(size)} ({death['cause']})"
        yield Finding(size, f"{said}, with {_routes(in_flight) or 'nothing'} in flight.")
        return
    said = f"Worker {death['pid']} was killed by the kernel at {format_size(size)}"
    grown = max((request["grown_bytes"] for request in in_flight), default=0)
    eaters = [request for request in in_flight if request["grown_bytes"] >= grown / 2]
    if grown < _limit(document) * LEAK_SHARE:
        said += f", with {_routes(in_flight) or 'nothing'} in flight."
    elif len(eaters) > 1:
        said += f"; it grew by {format_size(grown)} while {_routes(eaters)} were in flight."
    else:
        said += f", grown by {format_size(grown)} in {eaters[0]['route']}"
        said += (
            "; LOWMEM_CEILING is off, which would have answered that with 503."
            if document["ceiling"] is None
            else ": offload that, or read and write in pieces."
        )
    yield Finding(size, said)


def eating_now(document: Document) -> Iterable[Finding]:
    """A request in flight holds most of its worker's growth."""
    for worker in document["workers"]:
        in_flight = worker["in_flight"]
        grown = max((request["grown_bytes"] for request in in_flight), default=0)
        if grown < _limit(document) * WORST_SHARE:
            continue
        eaters = [request for request in in_flight if request["grown_bytes"] >= grown / 2]
        kept = worker.get("held_bytes") or 0
        if len(eaters) > 1:
            said = (
                f"{_routes(eaters)} are running, and their worker has grown "
                f"{format_size(grown)} meanwhile"
            )
        else:
            said = (
                f"{eaters[0]['route']} has been running for {eaters[0]['seconds']:.1f} s, and its "
                f"worker has grown {format_size(grown)} meanwhile"
            )
        if kept >= grown / 4:
            said += "; other requests that ended beside it may be what keeps that"
        yield Finding(grown, f"{said}.")


def does_not_fit(document: Document) -> Iterable[Finding]:
    """The workers do not fit, even without the memory of requests."""
    workers = [worker for worker in _workers(document) if worker["state"] == "ready"]
    grown = [request["grown_bytes"] for worker in workers for request in worker["in_flight"]]
    if len(workers) < 2 or max(grown, default=0) >= PAYS or [*outside(document)]:
        return  # another finding is the cause
    if any(not _is_full(row) for row in _growing(document)) and [*leaks(document)]:
        return
    each = [worker["pss_bytes"] or worker["rss_bytes"] or 0 for worker in workers]
    warn = document["thresholds"]["warn_bytes"]
    if sum(each) < warn:
        return
    own = max(worker["uss_bytes"] or size for worker, size in zip(workers, each, strict=True))
    # Shared memory, and the master's, counts once for any number of workers.
    shared = sum(
        size - (worker["uss_bytes"] or size) for worker, size in zip(workers, each, strict=True)
    )
    room = max(1, int((warn - shared) // max(1, own)))
    if room < len(workers):
        yield Finding(
            sum(each),
            f"{len(workers)} workers × {format_size(sum(each) / len(each))} do not fit in the "
            f"{format_size(warn)} up to warn: set WEB_CONCURRENCY={room}.",
        )


def born_large(document: Document) -> Iterable[Finding]:
    """Start-up alone takes much of the limit."""
    born = max((worker["born_bytes"] or 0 for worker in _workers(document)), default=0)
    share = born / _limit(document)
    if share < BORN_SHARE:
        return
    heavy = [
        row
        for row in document.get("heavy") or ()
        if (row.get("cost_bytes") or 0) > 0 and not row.get("route") and not row.get("late")
    ]
    of_it = ""
    if heavy:
        cost = sum(row["cost_bytes"] for row in heavy)
        names = _list([row["module"] for row in heavy])
        of_it = (
            f": {names} {'are' if len(heavy) > 1 else 'is'} {format_size(cost)} of it, "
            "see LOWMEM_LAZY_HEAVY"
        )
    yield Finding(born, f"Start-up alone takes {100 * share:.0f} % of the limit{of_it}.")


def leaks(document: Document) -> Iterable[Finding]:
    """Routes keep the memory that they take: now, or in workers replaced since."""
    limit, rows, unsure = (
        _limit(document) * LEAK_SHARE,
        _growing(document),
        _unsure(document),
    )
    sure = sum(row["grown_bytes"] for row in rows) - unsure
    grown, requests = (sum(row[key] for row in rows) for key in ("grown_bytes", "requests"))
    if sure < limit:
        return
    if not any(row["shared"] >= BESIDE for row in rows):
        for row in rows:
            if row["grown_bytes"] - unsure >= limit:
                yield Finding(row["grown_bytes"], _leak(document, row))
        return
    rows.sort(key=lambda row: -row["grown_bytes"])
    named = [row for row in rows if row["grown_bytes"] >= rows[0]["grown_bytes"] * NAMED_SHARE]
    named = next((few for few in (rows[:1], named) if _stand_out(document, few)), rows)
    if len(named) > 1:
        yield Finding(
            grown,
            f"Memory grew {format_size(grown)} over {requests} requests of "
            f"{_list([row['route'] for row in named], most=3)}{_where(document, named)}; they "
            "overlap too much to tell which of them keep it, or a thread of the app beside them.",
        )
    else:
        yield Finding(named[0]["grown_bytes"], _leak(document, named[0]))


def _stand_out(document: Document, rows: list[dict[str, Any]]) -> bool:
    """Return whether each route clearly leaves more behind per request than the other routes."""
    rest = [row for row in _real(document["routes"]) if row not in rows]
    others = sum(row["grown_bytes"] for row in rest) / (sum(row["requests"] for row in rest) or 1)
    return all(row["grown_bytes"] / row["requests"] >= others * CLEARLY for row in rows)


def _growing(document: Document) -> list[dict[str, Any]]:
    """Return the routes that have grown repeatedly.

    A single rise in each worker does not count: the route then loads what it needs.
    """
    here = len(_workers(document))
    return [
        row
        for row in _real(document["routes"])
        if row["requests"] >= LEAK_REQUESTS
        and row["rises"] >= LEAK_RISES * (here + row["replaced_workers"])
    ]


def _is_full(row: dict[str, Any]) -> bool:
    """Return whether the route has stopped growing."""
    quiet = row["quiet_requests"]
    return bool(quiet >= max(QUIET, row["requests"] - quiet))


def _unsure(document: Document) -> int:
    """Return the growth (bytes) during long requests in flight: it may be theirs until they end."""
    return sum(
        max((f["grown_bytes"] for f in worker["in_flight"] if f["seconds"] >= LONG), default=0)
        for worker in document["workers"]
    )


def _leak(document: Document, row: dict[str, Any]) -> str:
    size, requests = format_size(row["grown_bytes"]), row["requests"]
    if _is_full(row):
        return (
            f"{row['route']} grew {size}{_where(document, [row])}, but not in its last "
            f"{row['quiet_requests']} requests: a cache that is full, it seems, and no leak."
        )
    # On a site that always serves a request, growth by a thread also comes during a request.
    beside = row["shared"] >= BESIDE
    cause = "a leak there, a cache that fills, or a thread of the app beside it"
    cause = cause if beside else "a leak there, or a cache that fills"
    if not row["replaced_workers"]:
        return (
            f"{row['route']} grew {size} over {requests} requests, "
            f"{format_size(row['grown_bytes'] / requests)} each, and it is still held: {cause}."
        )
    gone = row["grown_bytes"] - row["held_bytes"]
    return (
        f"{row['route']} grew {format_size(gone)} in {_count(row['replaced_workers'], 'worker')} "
        f"that {_was(row['replaced_workers'])} replaced, and {_now(document, row['held_bytes'])}: "
        f"{cause}."
    )


def _where(document: Document, rows: list[dict[str, Any]]) -> str:
    """Return the part of a sentence that says which workers hold the memory."""
    workers = max(row["replaced_workers"] for row in rows)
    held = sum(row["held_bytes"] for row in rows)
    if not workers:
        return ", and it is still held"
    return f", {_now(document, held)} and the rest in workers that were replaced"


def _now(document: Document, held: int) -> str:
    count = len(_workers(document))
    return f"{format_size(held)} in the {'present one' if count == 1 else f'{count} there are'}"


def outside(document: Document) -> Iterable[Finding]:
    """Memory grew while no request ran."""
    row = next((row for row in document["routes"] if row["route"] == NO_REQUEST), None)
    if row is None or row["grown_bytes"] - _unsure(document) < _limit(document) * LEAK_SHARE:
        return
    if row["grown_bytes"] < sum(row["grown_bytes"] for row in document["routes"]) * OUTSIDE_SHARE:
        return  # may be a part of the routes' growth, attributed to no request
    count, grown = document["requests"]["out_of_memory"], format_size(row["grown_bytes"])
    if count:
        said = (
            f"Memory grew {grown} that no request is known to keep: a thread of the app, or what "
            f"the {_requests(count)} that ran out of memory left behind."
        )
    else:
        said = f"Memory grew {grown} outside of any request: a thread of the app keeps it."
        if row["replaced_workers"]:
            said = (
                f"Memory grew {grown} outside of any request, "
                f"{_now(document, row['held_bytes'])}, the rest in workers that were replaced: a "
                "thread of the app keeps it."
            )
    yield Finding(row["grown_bytes"], said)


def fragmented(document: Document) -> Iterable[Finding]:
    """Freed memory stays in the heap until LowMemory gives it back."""
    gc = document["gc"]
    if gc["gave_back"] < TIMES or not gc["runs"]:
        return
    each = gc["freed_bytes"] / max(gc["gave_back"], 1)
    arenas = document["allocator"]["MALLOC_ARENA_MAX"]
    if each >= PAYS and gc["collected"] <= NOTHING * gc["runs"] and arenas is None:
        yield Finding(
            each,
            f"Trimming returns {format_size(each)} a time: requests free that, and the C library "
            "keeps it until then (set MALLOC_ARENA_MAX=1, or start with lowmem-wsgi run).",
        )


def held_by_others(document: Document) -> Iterable[Finding]:
    """The container holds much memory in none of the site's processes, by figures of one moment."""
    found = document["memory"].get("outside")
    if not found or found["processes"] is None:
        return
    rest, limit = found["bytes"], _limit(document)
    if rest < limit * OTHERS_SHARE:
        return
    others = found["processes"]
    parts = [
        (found["shmem_bytes"], "in a tmpfs such as /dev/shm, or in shared memory"),
        (found["cache_bytes"], "files in the page cache, in active use"),
        (found["kernel_bytes"], "the kernel's own"),
        (found["processes_bytes"], f"in {_count(others, 'other process', 'other processes')}"),
    ]
    large = [
        f"{format_size(size)} {what}"
        for size, what in sorted(parts, key=lambda part: -(part[0] or 0))
        if (size or 0) >= limit * PART_SHARE
    ]
    text = (
        f"{format_size(rest)} of the container's {format_size(found['used_bytes'])} are in none "
        "of these processes"
    )
    yield Finding(rest, f"{text}: {_list(large)}." if large else f"{text}.")


def one_request(document: Document) -> Iterable[Finding]:
    """A single request takes a large share of memory, and gives it back."""
    row = max(_real(document["routes"]), key=lambda row: row["worst_bytes"], default=None)
    if row is not None and row["worst_bytes"] >= _limit(document) * WORST_SHARE:
        yield Finding(
            row["worst_bytes"],
            f"One request of {row['route']} took {format_size(row['worst_bytes'])}: read and write "
            "in pieces there, or offload it.",
        )


def full(document: Document) -> list[Finding]:
    """Return the figures if the level is not ok and no finding gives a cause."""
    if document["status"] == "ok":
        return []
    memory, gone = document["memory"], document["cleanups"]["last_freed_bytes"]
    freed = "" if gone is None else f"; the last cleanup freed {format_size(max(0, gone))}"
    used, limit = (format_size(memory[name]) for name in ("used_bytes", "limit_bytes"))
    return [Finding(memory["used_bytes"], f"{used} of {limit} are in use{freed}.")]


# What finds -> where docs/ has the remedy.
FINDINGS: dict[Callable[[Document], Iterable[Finding]], str] = {
    closed: "survive.md#closing",
    ran_out: "survive.md#a-request-that-needs-more-than-there-is",
    eating_now: "heavy.md#work-in-a-child-process-offload",
    died: "survive.md#the-shared-page",
    does_not_fit: "doctor.md#too-many-workers",
    leaks: "trace.md#when-a-route-grows",
    outside: "trace.md#when-it-is-no-request",
    born_large: "heavy.md#late-imports",
    held_by_others: "memory.md#what-is-read",
    one_request: "heavy.md#work-in-a-child-process-offload",
    fragmented: "doctor.md#arenas",
}
FULL = "survive.md#in-which-order"


def steady(document: Document) -> str:
    """Return a sentence for a site without findings: memory in use, and the largest request."""
    memory = document["memory"]
    used, limit = (format_size(memory[name]) for name in ("used_bytes", "limit_bytes"))
    row = max(_real(document["routes"]), key=lambda row: row["worst_bytes"], default=None)
    if row is None or row["worst_bytes"] < MB:
        return f"Nothing stands out: {used} of {limit}."
    worst = format_size(row["worst_bytes"])
    return f"Nothing stands out: {used} of {limit}, worst request +{worst} at {row['route']}."


def _real(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of real routes, without NO_REQUEST and OTHER."""
    return [row for row in rows if row["route"] not in (NO_REQUEST, OTHER)]


def _ago(document: Document, death: dict[str, Any]) -> float:
    return float(document["now"] - death["at"])


def _limit(document: Document) -> int:
    return int(document["memory"]["limit_bytes"]) or 1


def _workers(document: Document) -> list[dict[str, Any]]:
    return [worker for worker in document["workers"] if worker["role"] == "worker"]


def _routes(in_flight: list[dict[str, Any]]) -> str:
    return _list([*dict.fromkeys(request["route"] for request in in_flight)], most=3)


def _requests(count: int) -> str:
    return _count(count, "request")


def _count(count: int, what: str, more: str = "") -> str:
    return f"{count} {what if count == 1 else more or what + 's'}"


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def _list(names: list[str], most: int | None = None) -> str:
    if most is not None and len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} others"]
    return ", ".join(names) if len(names) < 2 else f"{', '.join(names[:-1])} and {names[-1]}"
