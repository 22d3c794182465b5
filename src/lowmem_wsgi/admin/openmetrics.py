"""Write the status for a scraper: OpenMetrics 1.0, and the older text format (0.0.4).

One table holds the families; the families of counters come from metrics.py. A value that this
system does not report is left out.
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
    """A metric family. `name`: without a counter's `_total`; ends with the unit, if any."""

    name: str
    kind: str
    help: str
    samples: Callable[[Document], Iterable[Sample]]
    labels: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        return next((unit for unit in ("bytes", "seconds") if self.name.endswith(unit)), "")


def render(document: Document, *, classic: bool = False) -> bytes:
    """Return the status (or the brief status) as text. `classic`: in the format 0.0.4."""
    lines: list[str] = []
    for family in FAMILIES:
        try:
            samples = [sample for sample in family.samples(document) if sample[1] is not None]
        except KeyError:  # not in the brief status
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


# The older format has neither of these kinds.
OLDER = {"info": "gauge", "stateset": "gauge"}


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


# --- The table


def _at(document: Document, keys: Iterable[str]) -> Any:
    found: Any = document
    for key in keys:
        found = found[key]
    return found


def _memory(name: str, key: str, text: str) -> Family:
    return Family(f"lowmem_memory_{name}", "gauge", text, lambda d: [({}, d["memory"][key])])


def _process(name: str, key: str, text: str) -> Family:
    def samples(document: Document) -> Iterable[Sample]:
        rows = document["workers"]
        return [({"pid": str(row["pid"]), "role": row["role"]}, row[key]) for row in rows]

    return Family(f"lowmem_process_{name}", "gauge", text, samples, ("pid", "role"))


def _route(name: str, key: str, text: str, kind: str = "gauge") -> Family:
    def samples(document: Document) -> Iterable[Sample]:
        return [({"route": row["route"]}, row[key]) for row in document["routes"]]

    return Family(f"lowmem_route_{name}", kind, text, samples, ("route",))


def _thresholds(document: Document) -> Iterable[Sample]:
    return [({"level": k}, document["thresholds"][f"{k}_bytes"]) for k in ("warn", "critical")]


def _levels(document: Document) -> Iterable[Sample]:
    level = document["status"]
    return [({"lowmem_level": k}, int(k == level)) for k in ("ok", "warn", "critical")]


def _in_flight(document: Document) -> Iterable[Sample]:
    return [({}, document["requests"]["in_flight"])]


def _version(document: Document) -> Iterable[Sample]:
    return [({"version": document["version"]}, 1)]


def _counters() -> Iterator[Family]:
    """Yield the families of the counters. Counters of one family are its samples."""
    for name in dict.fromkeys(row.family for row in COUNTERS if row.family):
        rows = [row for row in COUNTERS if row.family == name]
        yield Family(name, "counter", rows[0].help, partial(_counted, rows), (*rows[0].labels,))


def _counted(rows: list[Counter], document: Document) -> Iterable[Sample]:
    return [(row.labels, _at(document, row.keys)) for row in rows]


FAMILIES = (
    _memory(
        *("used_bytes", "used_bytes"),
        "Used of the container, less the file cache that the kernel drops first.",
    ),
    _memory("limit_bytes", "limit_bytes", "What may be used."),
    Family("lowmem_threshold_bytes", "gauge", "Where a level begins.", _thresholds, ("level",)),
    Family("lowmem_level", "stateset", "How short memory is.", _levels, ("lowmem_level",)),
    _process("resident_bytes", "rss_bytes", "RSS of each process of the site."),
    _process(
        *("unique_bytes", "uss_bytes"),
        "USS of each process of the site: what would be free without it.",
    ),
    _process(
        *("proportional_bytes", "pss_bytes"),
        "PSS of each process of the site: shared pages by their share.",
    ),
    _process("age_seconds", "age_seconds", "Since its start."),
    Family("lowmem_requests_in_flight", "gauge", "Requests being answered now.", _in_flight),
    *_counters(),
    _route("requests", "requests", "Requests by route.", "counter"),
    _route(
        *("growth_bytes", "grown_bytes"),
        "Memory that a route's requests have left behind, in workers that are gone as well.",
    ),
    _route(
        *("held_bytes", "held_bytes"),
        "Of that, what the workers there are hold; it falls where they free some.",
    ),
    _route(
        *("worst_request_bytes", "worst_bytes"),
        "The most that a single request has left behind when it was looked at.",
    ),
    Family("lowmem_build", "info", "The library's version.", _version, ("version",)),
)
