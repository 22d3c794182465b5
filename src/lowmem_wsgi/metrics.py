"""Every counter that LowMemory keeps: one row each.

To add a counter, add a row here, and code that counts under the row's name. The row gives the
counter its place on the shared page, in the status document, in the metrics and in docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Counter(NamedTuple):
    """A figure that only rises, summed over all workers of a site."""

    name: str  # the name that code counts under
    key: str  # the place in the status document: `part.name`, or `part.name.name`
    help: str
    family: str = ""  # OpenMetrics, without `_total`; ends with the unit. Empty: not exposed
    label: str = ""  # the name of a label; its value is the last name in `key`

    @property
    def keys(self) -> list[str]:
        return self.key.split(".")

    @property
    def labels(self) -> dict[str, str]:
        return {self.label: self.keys[-1]} if self.label else {}


def _freed(step: str) -> Counter:
    key, family = f"cleanups.freed_bytes.{step}", "lowmem_cleanup_freed_bytes"
    return Counter(f"freed_{step}", key, "Freed by cleanups, by step.", family, "step")


def _died(name: str, cause: str) -> Counter:
    key, family = f"deaths.{cause}", "lowmem_deaths"
    return Counter(name, key, "Workers that died, by cause.", family, "cause")


COUNTERS = (
    Counter("requests", "requests.total", "Requests answered.", "lowmem_requests"),
    Counter(
        *("uploads_rejected", "requests.uploads_rejected"),
        *("Bodies over the limit, answered 413.", "lowmem_uploads_rejected"),
    ),
    Counter(
        *("sessions_expired", "requests.sessions_expired"),
        *("Session cookies taken out of a request.", "lowmem_sessions_expired"),
    ),
    Counter("shed", "requests.shed", "Requests answered 503 for want of room.", "lowmem_shed"),
    Counter(
        *("out_of_memory", "requests.out_of_memory"),
        *("Requests that ran out of memory, answered 503.", "lowmem_out_of_memory"),
    ),
    Counter("gc_runs", "gc.runs", "Runs of the collector.", "lowmem_gc_runs"),
    Counter(
        *("gc_collected", "gc.collected"),
        *("Objects that they found unreachable.", "lowmem_gc_collected_objects"),
    ),
    Counter("gc_seconds", "gc.total_seconds", "What those runs took.", "lowmem_gc_seconds"),
    Counter(
        *("gc_freed_bytes", "gc.freed_bytes"),
        *("Given back to the system after requests.", "lowmem_given_back_bytes"),
    ),
    Counter("gc_gave_back", "gc.gave_back", "How often memory was given back."),
    Counter("cleanups", "cleanups.count", "Cleanups.", "lowmem_cleanups"),
    *map(_freed, ("trim", "caches", "callback", "purge", "collect")),
    Counter("recycles", "recycles.count", "Workers replaced.", "lowmem_recycles"),
    _died("deaths_oom", "OOM kill"),
    _died("deaths_timeout", "timeout"),
    _died("deaths_crash", "crash"),
)
NAMES = tuple(row.name for row in COUNTERS)


def document(counts: Mapping[str, float]) -> dict[str, Any]:
    """Return the counters, nested as in the status document. A missing counter is 0."""
    found: dict[str, Any] = {}
    for row in COUNTERS:
        *within, last = row.keys
        part = found
        for key in within:
            part = part.setdefault(key, {})
        part[last] = counts.get(row.name, 0)
    return found
