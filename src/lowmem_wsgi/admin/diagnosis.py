"""What is eating it, in a sentence or two, from what was measured.

Each finding is a pure function of the status document: a sentence where it applies, else None. The
first ones matter most, and MOST of them are told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..memory.growth import NO_REQUEST, OTHER
from ..settings import MB, format_size

Document = dict[str, Any]
MOST = 3

# What a sentence needs to be true, as shares of the limit: what workers were born with; what one
# route keeps; what a single request may add; what others in the container hold.
BORN_SHARE, LEAK_SHARE, WORST_SHARE, OTHERS_SHARE = 0.5, 0.05, 0.2, 0.25
# A leak is seen often: in so many requests, and not in one of them alone (its share of the whole).
LEAK_REQUESTS, LEAK_WORST = 10, 0.5
# Giving back pays, time and again (bytes each time, times), while the passes find next to nothing
# (objects a run).
PAYS, TIMES, NOTHING = 16 * MB, 5, 20


def diagnose(document: Document) -> str:
    """The sentences that apply, the most important first."""
    found = [sentence for finding in FINDINGS if (sentence := finding(document)) is not None]
    return " ".join(found[:MOST] or [steady(document)])


def died(document: Document) -> str | None:
    """A worker was killed for memory, and not long ago."""
    death = document["last_death"]
    if not death or death["cause"] != "OOM kill":
        return None
    flights = [flight["route"] for flight in death["in_flight"]]
    doing = f"in the middle of {' and '.join(flights)}" if flights else "with nothing in flight"
    return (
        f"Worker {death['pid']} was killed by the kernel at {format_size(death['rss_bytes'])}, "
        f"{doing}."
    )


def eating_now(document: Document) -> str | None:
    """A request in flight has most of what has grown."""
    flights = [flight for worker in document["workers"] for flight in worker["in_flight"]]
    largest = max(flights, key=lambda flight: flight["grown_bytes"], default=None)
    if largest is None or largest["grown_bytes"] < _limit(document) * WORST_SHARE:
        return None
    return (
        f"{largest['route']} has been running for {largest['seconds']:.1f} s, and its worker has "
        f"grown {format_size(largest['grown_bytes'])} meanwhile."
    )


def does_not_fit(document: Document) -> str | None:
    """More workers than there is room for."""
    workers = _workers(document)
    each = [worker["pss_bytes"] or worker["rss_bytes"] or 0 for worker in workers]
    if len(workers) < 2 or sum(each) < document["thresholds"]["warn_bytes"]:
        return None
    mean = sum(each) / len(each)
    room = max(1, int(document["thresholds"]["warn_bytes"] // max(each)))
    if room >= len(workers):
        return None
    return (
        f"{len(workers)} workers × {format_size(mean)} do not fit in "
        f"{format_size(_limit(document))}: set WEB_CONCURRENCY={room}."
    )


def born_large(document: Document) -> str | None:
    """Start-up alone takes much of the limit."""
    born = max((worker["born_bytes"] or 0 for worker in _workers(document)), default=0)
    share = born / _limit(document)
    if share < BORN_SHARE:
        return None
    heavy = [row for row in document.get("heavy") or () if (row.get("cost_bytes") or 0) > 0]
    told = ""
    if heavy:
        cost = sum(row["cost_bytes"] for row in heavy)
        names = _list([row["module"] for row in heavy])
        told = (
            f": {names} {'are' if len(heavy) > 1 else 'is'} {format_size(cost)} of it, "
            "see LOWMEM_LAZY_HEAVY"
        )
    return f"Start-up alone takes {100 * share:.0f} % of the limit{told}."


def leaks(document: Document) -> str | None:
    """A route keeps what it takes."""
    for row in document["routes"]:
        grown, requests = row["grown_bytes"], row["requests"]
        if row["route"] == OTHER or grown < _limit(document) * LEAK_SHARE:
            continue
        if row["route"] == NO_REQUEST:
            return (
                f"Memory grew {format_size(grown)} outside of any request: a thread of the app "
                "keeps it."
            )
        if requests >= LEAK_REQUESTS and row["worst_bytes"] <= grown * LEAK_WORST:
            return (
                f"{row['route']} grew {format_size(grown)} over {requests} requests, "
                f"{format_size(grown / requests)} each, and it is still held: a leak there, or a "
                "cache without a limit."
            )
    return None


def fragmented(document: Document) -> str | None:
    """Freed memory stays in the heap until it is given back."""
    gc = document["gc"]
    if gc["gave_back"] < TIMES or not gc["runs"]:
        return None
    each = gc["freed_bytes"] / max(gc["gave_back"], 1)
    arenas = document["allocator"]["MALLOC_ARENA_MAX"]
    if each < PAYS or gc["collected"] > NOTHING * gc["runs"] or arenas is not None:
        return None
    return (
        f"Passes free next to nothing, trimming returns {format_size(each)} a time: "
        "fragmentation. Set MALLOC_ARENA_MAX=1, or start with lowmem-wsgi run."
    )


def held_by_others(document: Document) -> str | None:
    """The container holds much that is in none of our processes."""
    memory = document["memory"]
    known = memory["processes_bytes"]
    if known is None or not str(memory["source"]).startswith("cgroup"):
        return None
    rest = memory["used_bytes"] - known
    if rest < _limit(document) * OTHERS_SHARE:
        return None
    return (
        f"{format_size(rest)} of the container's {format_size(memory['used_bytes'])} are in none "
        "of these processes: another process, or files in a tmpfs such as /dev/shm."
    )


def one_request(document: Document) -> str | None:
    """A single request takes a large share, and gives it back."""
    row = max(document["routes"], key=lambda row: row["worst_bytes"], default=None)
    if row is None or row["worst_bytes"] < _limit(document) * WORST_SHARE:
        return None
    return (
        f"One request of {row['route']} took {format_size(row['worst_bytes'])}: read and write "
        "in pieces there, or offload it."
    )


def full(document: Document) -> str | None:
    """Away from ok, and nothing above says why."""
    if document["status"] == "ok":
        return None
    memory, gone = document["memory"], document["cleanups"]["last_freed_bytes"]
    freed = "" if gone is None else f"; the last cleanup freed {format_size(max(0, gone))}"
    return (
        f"{format_size(memory['used_bytes'])} of {format_size(memory['limit_bytes'])} are in "
        f"use{freed}."
    )


FINDINGS: tuple[Callable[[Document], str | None], ...] = (
    eating_now,
    died,
    does_not_fit,
    leaks,
    born_large,
    held_by_others,
    one_request,
    fragmented,
    full,
)


def steady(document: Document) -> str:
    """Nothing is wrong: how much there is, and the most that a request took."""
    memory = document["memory"]
    used, limit = (format_size(memory[name]) for name in ("used_bytes", "limit_bytes"))
    row = max(document["routes"], key=lambda row: row["worst_bytes"], default=None)
    if row is None or row["worst_bytes"] < MB:
        return f"Steady: {used} of {limit}."
    worst = format_size(row["worst_bytes"])
    return f"Steady: {used} of {limit}, worst request +{worst} at {row['route']}."


def _limit(document: Document) -> int:
    return int(document["memory"]["limit_bytes"]) or 1


def _workers(document: Document) -> list[dict[str, Any]]:
    return [worker for worker in document["workers"] if worker["role"] == "worker"]


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
