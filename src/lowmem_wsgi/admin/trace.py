"""Start, tell and stop the trace of a route: one in a site, in the worker that is asked."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .. import log
from ..http.refusals import Refusal
from ..http.traced_route import route_pattern_of
from ..memory.levels import OK
from ..memory.line_trace import LineTrace, start_thread

if TYPE_CHECKING:
    from ..middleware import LowMemory

REQUESTS, MOST_REQUESTS, SECONDS = 20, 1000, 60.0

# Why a trace ended -> its state, and a sentence.
ENDS = {
    "done": ("done", "All the requests were traced."),
    "time": ("done", f"{SECONDS:.0f} s were over."),
    "stopped": ("stopped", "Somebody stopped the trace."),
    "short": ("failed", "Memory got short, so LowMemory stopped the trace."),
    "retiring": ("failed", "The worker was replaced during the trace. Trace again."),
    "closed": ("failed", "The app was closed during the trace."),
    "heavy": (
        "failed",
        "A request of this route takes too long, or makes too many objects, to be traced.",
    ),
}


def told(lowmem: LowMemory) -> dict[str, Any]:
    """Return the site's trace; its `state` is "none" before the first."""
    note = lowmem.worker.trace_note
    found = note.read()
    return {"state": "none"} if found is None else found


def start(lowmem: LowMemory, query: dict[str, list[str]]) -> dict[str, Any] | Refusal:
    """Start a trace of `route` for so many `requests`. Return the trace, or a refusal."""
    route, asked = query.get("route", [""])[-1], query.get("requests", [str(REQUESTS)])[-1]
    try:
        pattern = route_pattern_of(route)
    except ValueError:
        return _wrong("Name a route: a path such as /clients/17, or as the status names it.")
    if not (asked.isascii() and asked.isdigit() and 0 < len(asked) < 5):
        return _wrong(f"requests takes a number from 1 to {MOST_REQUESTS}.")
    wanted = int(asked)
    if not 1 <= wanted <= MOST_REQUESTS:
        return _wrong(f"requests takes a number from 1 to {MOST_REQUESTS}.")
    if lowmem.runtime.levels.level != OK:
        return _refused(
            "503 Service Unavailable", "Memory is short, and a trace needs some. Try later."
        )
    if lowmem.worker.record is None or lowmem.worker.retiring:
        return _refused("503 Service Unavailable", "This worker is being replaced. Ask again.")
    note = lowmem.worker.trace_note
    trace: dict[str, Any] = {
        "state": note.RUNNING,
        "why": None,
        "pid": lowmem.worker.record.pid,
        "route": route,
        "requests": wanted,
        "seconds": SECONDS,
        "began": time.time(),
        "traced": 0,
    }
    if not note.begin(trace):
        return _refused("409 Conflict", "A trace runs in this site already. Wait, or stop that.")
    _run(lowmem, trace, LineTrace(
        wanted,
        SECONDS,
        in_flight=lowmem.runtime.in_flight,
        reason=lambda: _reason(lowmem, trace["trace"]),
        progress=lambda count: note.write({**trace, "traced": count}),
    ), pattern)  # fmt: skip
    return told(lowmem)


def stop(lowmem: LowMemory, number: str) -> dict[str, Any] | Refusal:
    """Ask the worker that traces to stop. Return the trace, as it is still."""
    if not (number.isascii() and number.isdigit() and len(number) < 9):
        return _wrong("stop takes the number of a trace.")
    lowmem.worker.trace_note.ask_to_stop(int(number))
    return told(lowmem)


def _run(lowmem: LowMemory, trace: dict[str, Any], traced: LineTrace, pattern: Any) -> None:
    note = lowmem.worker.trace_note

    def done(result: dict[str, Any] | None) -> None:
        lowmem.pipeline.untrace(traced)
        if result is None:
            end = ("failed", "The trace has failed: the log has the error.")
        else:
            end = ENDS[result["why"]]
        found = {**trace, **(result or {}), "state": end[0], "why": end[1], "ended": time.time()}
        if found["state"] == "done" and not found["came"]:
            found["state"] = "failed"
            found["why"] = f"No request of this route came to this worker in {SECONDS:.0f} s."
        elif found["state"] == "done" and not found["measured"]:
            found["state"] = "failed"
            found["why"] = "No request of this route ended while it was traced."
        note.write(found)
        log.logger.info(
            "🔎 traced %d requests of %s: %s", found["traced"], ascii(trace["route"])[1:-1], end[1]
        )

    lowmem.pipeline.trace(pattern, traced)
    try:
        start_thread(traced, done)
    except RuntimeError:  # no thread can start
        done(None)


def _reason(lowmem: LowMemory, number: int) -> str | None:
    """Return why the trace must end early; None to go on."""
    if lowmem.worker.trace_note.asked_to_stop(number):
        return "stopped"
    if lowmem.closed:
        return "closed"
    if lowmem.worker.retiring:
        return "retiring"
    return None if lowmem.runtime.levels.level == OK else "short"


def _wrong(detail: str) -> Refusal:
    return Refusal("400 Bad Request", detail, why="a wrong trace", setting="none")


def _refused(status: str, detail: str) -> Refusal:
    return Refusal(status, detail, why="a trace was refused", setting="none")
