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
# A leak is seen in so many requests, and in each so many times what those of other routes keep.
LEAK_REQUESTS, CLEARLY = 10, 3
# A death is news for so long (seconds).
RECENT = 3600.0
# Giving back pays, time and again (bytes each time, times), while the passes find next to nothing
# (objects a run).
PAYS, TIMES, NOTHING = 16 * MB, 5, 20


def diagnose(document: Document) -> str:
    """The sentences that apply, the most important first."""
    found = [sentence for finding in FINDINGS if (sentence := finding(document)) is not None]
    return " ".join(found[:MOST] or [steady(document)])


def died(document: Document) -> str | None:
    """A worker was killed for memory, in the last hour: by what, and what would have helped."""
    death = document["last_death"]
    if not death or death["cause"] != "OOM kill" or not -60 < _ago(document, death) < RECENT:
        return None
    said = f"Worker {death['pid']} was killed by the kernel at {format_size(death['rss_bytes'])}"
    largest = max(death["in_flight"], key=lambda flight: flight["grown_bytes"], default=None)
    if largest is None:
        return f"{said}, with nothing in flight."
    said += f", grown by {format_size(largest['grown_bytes'])} in {largest['route']}"
    if document["ceiling"] is None:
        return f"{said}; LOWMEM_CEILING is off, which would have answered that with 503."
    return f"{said}: offload that, or read and write in pieces."


def closed(document: Document) -> str | None:
    """Everything is answered 503."""
    if not document["closed"]:
        return None
    way = "is being replaced" if document["replaceable"] else "cannot be replaced by its server"
    return (
        "Everything is answered 503: memory has been at critical for too long, and this worker "
        f"{way}" + ("." if document["replaceable"] else ": restart it.")
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
    if leaks(document) is not None:
        return None  # that is why
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
    limit, rows = _limit(document) * LEAK_SHARE, document["routes"]
    outside = next((row for row in rows if row["route"] == NO_REQUEST), None)
    if outside is not None and outside["grown_bytes"] >= limit:
        return (
            f"Memory grew {format_size(outside['grown_bytes'])} outside of any request: a thread "
            "of the app keeps it."
        )
    real = _real(rows)
    grown, requests = (sum(row[key] for row in real) for key in ("grown_bytes", "requests"))
    if grown < limit:
        return None
    row = max(real, key=lambda row: row["grown_bytes"])
    others = max(0, grown - row["grown_bytes"]) / max(1, requests - row["requests"])
    if row["requests"] < LEAK_REQUESTS:
        return None  # a cache that fills, or what it loads
    if row["grown_bytes"] / row["requests"] < others * CLEARLY:
        return (
            f"Memory grew {format_size(grown)} over {requests} requests and is still held; they "
            "overlap too much to tell which route keeps it."
        )
    return (
        f"{row['route']} grew {format_size(row['grown_bytes'])} over {row['requests']} requests, "
        f"{format_size(row['grown_bytes'] / row['requests'])} each, and it is still held: a leak "
        "there, or a cache without a limit."
    )


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
    row = max(_real(document["routes"]), key=lambda row: row["worst_bytes"], default=None)
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
    closed,
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
    row = max(_real(document["routes"]), key=lambda row: row["worst_bytes"], default=None)
    if row is None or row["worst_bytes"] < MB:
        return f"Steady: {used} of {limit}."
    worst = format_size(row["worst_bytes"])
    return f"Steady: {used} of {limit}, worst request +{worst} at {row['route']}."


def _real(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The routes that are some."""
    return [row for row in rows if row["route"] not in (NO_REQUEST, OTHER)]


def _ago(document: Document, death: dict[str, Any]) -> float:
    return float(document["now"] - death["at"])


def _limit(document: Document) -> int:
    return int(document["memory"]["limit_bytes"]) or 1


def _workers(document: Document) -> list[dict[str, Any]]:
    return [worker for worker in document["workers"] if worker["role"] == "worker"]


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
