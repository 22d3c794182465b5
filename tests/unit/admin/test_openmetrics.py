"""The metrics, as the parsers of Prometheus read them."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic

from helpers.wsgi import call, make_environ
from lowmem_wsgi import LowMemory
from lowmem_wsgi.admin.openmetrics import FAMILIES, render
from lowmem_wsgi.admin.status import brief

TOKEN = "t" * 20
BEARER = {"HTTP_AUTHORIZATION": f"Bearer {TOKEN}"}
HOSTILE = [
    *('GET /"} 5\n# EOF\n', "GET /\\", 'GET /{a="b"}'),
    *("GET /\r\n", "GET /<script>", "é\u2028"),
]


def ok(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]


@pytest.fixture
def document() -> dict[str, Any]:
    wrapped = LowMemory(ok, memory_limit="512MB")
    call(wrapped, make_environ("/clients/17"))
    return wrapped.status()


def with_routes(document: dict[str, Any], names: list[str]) -> dict[str, Any]:
    row = {"requests": 3, "grown_bytes": 5, "held_bytes": 4, "worst_bytes": 7, "shared": 0.5}
    return {**document, "routes": [{"route": name, **row} for name in names]}


def samples(families: Any) -> dict[tuple[Any, ...], Any]:
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.parametrize("names", [[], HOSTILE])
def test_the_openmetrics_parser_reads_it_whole(document: dict[str, Any], names: list[str]) -> None:
    text = render(with_routes(document, names)).decode()
    assert text.endswith("# EOF\n")
    families = list(openmetrics(text))
    expected = {family.name for family in FAMILIES if names or "route" not in family.name}
    assert {family.name for family in families} == expected
    assert {family.name: family.unit for family in families} == {
        family.name: family.unit for family in FAMILIES if family.name in expected
    }
    found = samples(families)
    assert found[("lowmem_memory_limit_bytes",)] == 512 * 1024**2
    assert found[("lowmem_requests_total",)] == 1
    assert found[("lowmem_level", ("lowmem_level", "ok"))] in (0, 1)
    for name in names:
        assert found[("lowmem_route_growth_bytes", ("route", name))] == 5


def test_the_parser_of_the_older_format_reads_it_as_well(document: dict[str, Any]) -> None:
    text = render(with_routes(document, HOSTILE), classic=True).decode()
    assert "# EOF\n# " not in text
    assert not text.endswith("# EOF\n")
    found = samples(classic(text))
    assert found[("lowmem_requests_total",)] == 1
    for name in HOSTILE:
        assert found[("lowmem_route_requests_total", ("route", name))] == 3


@given(st.lists(st.text(max_size=40), max_size=5, unique=True))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_of_a_route_comes_through(document: dict[str, Any], names: list[str]) -> None:
    found = samples(openmetrics(render(with_routes(document, names)).decode()))
    for name in names:
        told = name.encode("utf-8", "replace").decode()
        assert ("lowmem_route_growth_bytes", ("route", told)) in found


def test_what_this_system_does_not_tell_is_left_out(document: dict[str, Any]) -> None:
    for worker in document["workers"]:
        worker["pss_bytes"] = None
    text = render(document).decode()
    assert "lowmem_process_proportional_bytes" not in text
    assert "None" not in text
    assert list(openmetrics(text))


def test_without_a_token_only_level_used_and_limit_are_told() -> None:
    wrapped = LowMemory(ok, memory_limit="512MB")
    names = {family.name for family in openmetrics(render(brief(wrapped)).decode())}
    assert names == {"lowmem_memory_used_bytes", "lowmem_memory_limit_bytes", "lowmem_level"}


PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "query", "expected"),
    [
        ("", "", "application/json"),
        ("*/*", "", "application/json"),
        ("application/json", "", "application/json"),
        ("application/json, text/plain, */*", "", "application/json"),
        (PROMETHEUS, "", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        ("text/plain;version=0.0.4;q=1,*/*;q=0.1", "", "text/plain; version=0.0.4;"),
        (
            "application/vnd.google.protobuf;q=0.7, text/plain;q=0.5",
            "",
            "text/plain; version=0.0.4;",
        ),
        (BROWSER, "", "text/html; charset=utf-8"),
        (BROWSER, "format=json", "application/json"),
        (BROWSER, "format=openmetrics", "application/openmetrics-text; version=1.0.0;"),
        (BROWSER, "format=prometheus", "text/plain; version=0.0.4;"),
        ("application/json", "format=html", "text/html; charset=utf-8"),
        ("image/png", "", "application/json"),
        ("nonsense;;q=,", "", "application/json"),
    ],
)
def test_who_asks_gets_the_format_of_its_kind(accept: str, query: str, expected: str) -> None:
    wrapped = LowMemory(ok, admin_token=TOKEN)
    environ = make_environ("/api/memory-status", HTTP_ACCEPT=accept, QUERY_STRING=query, **BEARER)
    answer = call(wrapped, environ)
    assert answer.code == 200
    assert (answer.header("Content-Type") or "").startswith(expected)
    assert answer.header("Vary") == "Accept"


def test_the_history_is_there_for_who_asks_and_has_the_token() -> None:
    def ask(query: str, **settings: Any) -> dict[str, Any]:
        wrapped = LowMemory(ok, **settings)
        environ = make_environ("/api/memory-status", QUERY_STRING=query, **BEARER)
        answer: dict[str, Any] = json.loads(call(wrapped, environ).body)
        return answer

    assert "history" not in ask("", admin_token=TOKEN)
    assert set(ask("history=1", admin_token=TOKEN)["history"]) == {
        *("interval_seconds", "points", "events"),
    }
    assert "history" not in ask("history=1")


def test_promtool_finds_nothing_wrong(document: dict[str, Any]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    text = render(with_routes(document, ["GET /", 'GET /"\\']), classic=True)
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")
