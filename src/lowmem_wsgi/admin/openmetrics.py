"""The status for a scraper: OpenMetrics 1.0, and the older text format (0.0.4).

One table of families, those of the counters made from metrics.py. A value that this system does not
tell is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from ..metrics import COUNTERS, Counter

Document = dict[str, Any]
Labels = dict[str, str]
Sample = tuple[Labels, "float | int | None"]

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Family(NamedTuple):
    """`name` without a counter's `_total`; it ends with the unit, where there is one."""

    name: str
    kind: str
    help: str
    samples: Callable[[Document], Iterable[Sample]]
    unit: str = ""
    labels: tuple[str, ...] = ()


def render(document: Document, *, classic: bool = False) -> bytes:
    """The status (or the brief one) as text; `classic`: in the format 0.0.4."""
    lines: list[str] = []
    for family in FAMILIES:
        try:
            samples = [sample for sample in family.samples(document) if sample[1] is not None]
        except KeyError:  # not in the brief one
            continue
        if samples:
            lines += _family(family, samples, classic)
    if not classic:
        lines.append("# EOF")
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def _family(family: Family, samples: list[Sample], classic: bool) -> Iterator[str]:
    full = f"{family.name}_total" if family.kind == "counter" else family.name
    full = f"{full}_info" if family.kind == "info" else full
    name = full if classic else family.name
    kind = OLDER.get(family.kind, family.kind) if classic else family.kind
    yield f"# TYPE {name} {kind}"
    if family.unit and not classic:
        yield f"# UNIT {name} {family.unit}"
    yield f"# HELP {name} {family.help}"
    for labels, value in samples:
        inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        yield f"{full}{{{inside}}} {value}" if inside else f"{full} {value}"


# The older format knows neither of these.
OLDER = {"info": "gauge", "stateset": "gauge"}


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


# --- What the samples are made of


def _at(document: Document, keys: Iterable[str]) -> Any:
    found: Any = document
    for key in keys:
        found = found[key]
    return found


def _one(*keys: str) -> Callable[[Document], Iterable[Sample]]:
    return lambda document: [({}, _at(document, keys))]


def _counters() -> Iterator[Family]:
    """A family of each counter; of those that share one, a sample for each."""
    for name in dict.fromkeys(row.family for row in COUNTERS if row.family):
        rows = [row for row in COUNTERS if row.family == name]
        labels = (rows[0].label,) if rows[0].label else ()
        yield Family(name, "counter", rows[0].help, partial(_counted, rows), rows[0].unit, labels)


def _counted(rows: list[Counter], document: Document) -> Iterable[Sample]:
    return [({row.label: row.key[-1]} if row.label else {}, _at(document, row.key)) for row in rows]


def _processes(key: str) -> Callable[[Document], Iterable[Sample]]:
    return lambda document: [
        ({"pid": str(row["pid"]), "role": row["role"]}, row[key]) for row in document["workers"]
    ]


def _of_routes(key: str) -> Callable[[Document], Iterable[Sample]]:
    return lambda document: [({"route": row["route"]}, row[key]) for row in document["routes"]]


def _levels(document: Document) -> Iterable[Sample]:
    return [
        ({"lowmem_level": level}, int(document["status"] == level))
        for level in ("ok", "warn", "critical")
    ]


def _version(document: Document) -> Iterable[Sample]:
    return [({"version": document["version"]}, 1)]


FAMILIES = (
    Family(
        "lowmem_memory_used_bytes",
        "gauge",
        "Used of the container, less the file cache that the kernel drops first.",
        _one("memory", "used_bytes"),
        "bytes",
    ),
    Family(
        "lowmem_memory_limit_bytes",
        "gauge",
        "What may be used.",
        _one("memory", "limit_bytes"),
        "bytes",
    ),
    Family(
        "lowmem_threshold_bytes",
        "gauge",
        "Where a level begins.",
        lambda document: [
            ({"level": level}, document["thresholds"][f"{level}_bytes"])
            for level in ("warn", "critical")
        ],
        "bytes",
        ("level",),
    ),
    Family("lowmem_level", "stateset", "How short memory is.", _levels, labels=("lowmem_level",)),
    Family(
        "lowmem_process_resident_bytes",
        "gauge",
        "RSS of each process of the site.",
        _processes("rss_bytes"),
        "bytes",
        ("pid", "role"),
    ),
    Family(
        "lowmem_process_unique_bytes",
        "gauge",
        "USS of each process of the site: what would be free without it.",
        _processes("uss_bytes"),
        "bytes",
        ("pid", "role"),
    ),
    Family(
        "lowmem_process_proportional_bytes",
        "gauge",
        "PSS of each process of the site: shared pages by their share.",
        _processes("pss_bytes"),
        "bytes",
        ("pid", "role"),
    ),
    Family(
        "lowmem_process_age_seconds",
        "gauge",
        "Since its start.",
        _processes("age_seconds"),
        "seconds",
        ("pid", "role"),
    ),
    Family(
        "lowmem_requests_in_flight",
        "gauge",
        "Requests being answered now.",
        _one("requests", "in_flight"),
    ),
    *_counters(),
    Family(
        "lowmem_route_requests",
        "counter",
        "Requests by route.",
        _of_routes("requests"),
        labels=("route",),
    ),
    Family(
        "lowmem_route_growth_bytes",
        "gauge",
        "Memory that a route's requests have left behind, in workers that are gone as well.",
        _of_routes("grown_bytes"),
        "bytes",
        ("route",),
    ),
    Family(
        "lowmem_route_held_bytes",
        "gauge",
        "Of that, what the workers there are hold; it falls where they free some.",
        _of_routes("held_bytes"),
        "bytes",
        ("route",),
    ),
    Family(
        "lowmem_route_worst_request_bytes",
        "gauge",
        "The most that a single request has left behind when it was looked at.",
        _of_routes("worst_bytes"),
        "bytes",
        ("route",),
    ),
    Family("lowmem_build", "info", "The library's version.", _version, labels=("version",)),
)
