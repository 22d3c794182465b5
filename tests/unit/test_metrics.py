"""A row of the table of counters is all that a counter needs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from helpers.wsgi import call, make_environ
from lowmem_wsgi import LowMemory
from lowmem_wsgi.admin.openmetrics import render
from lowmem_wsgi.metrics import COUNTERS, NAMES, Counter, document
from lowmem_wsgi.workers.shared_page import SharedPage

COUNTS = {name: float(number) for number, name in enumerate(NAMES, 1)}
each_row = pytest.mark.parametrize("row", COUNTERS, ids=NAMES)


def at(found: Any, row: Counter) -> Any:
    for key in row.keys:
        found = found[key]
    return found


def test_names_places_and_samples_are_each_of_one_counter() -> None:
    assert len(set(NAMES)) == len(COUNTERS)
    assert len({row.key for row in COUNTERS}) == len(COUNTERS)
    exposed = [(row.family, *row.labels.items()) for row in COUNTERS if row.family]
    assert len(set(exposed)) == len(exposed)


@each_row
def test_it_comes_from_the_page_of_a_worker_to_json_and_metrics(row: Counter) -> None:
    page = SharedPage.private()
    page.claim(1).flush(COUNTS)
    found = document(page.figures().counters)
    page.close()
    assert at(found, row) == COUNTS[row.name]
    if row.family:
        families = text_string_to_metric_families(render(found).decode())
        (family,) = (family for family in families if family.name == row.family)
        (sample,) = (sample for sample in family.samples if sample.labels == row.labels)
        assert sample.name == f"{row.family}_total"
        assert sample.value == COUNTS[row.name]


def test_the_status_has_them_all_in_the_order_that_it_always_had() -> None:
    def ok(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"ok"]

    wrapped = LowMemory(ok, admin_token="t" * 20)
    call(wrapped, make_environ("/"))
    environ = make_environ("/api/memory-status", HTTP_AUTHORIZATION="Bearer " + "t" * 20)
    found = json.loads(call(wrapped, environ).body)
    assert at(found, COUNTERS[0]) == 1
    for row in COUNTERS:
        assert isinstance(at(found, row), (int, float))
    assert list(found)[:6] == ["status", "memory", "thresholds", "gc", "cleanups", "requests"]
    assert list(found)[6:11] == ["workers", "routes", "recycles", "deaths", "last_death"]
    assert list(found["gc"])[:5] == ["passes", "runs", "collected", "frozen", "last_seconds"]
    assert list(found["gc"])[5:] == ["total_seconds", "freed_bytes", "gave_back"]
    cleanups = ["count", "last_at", "last_freed_bytes", "steps", "freed_bytes"]
    assert list(found["cleanups"]) == cleanups
    assert list(found["requests"])[:3] == ["total", "in_flight", "uploads_rejected"]
