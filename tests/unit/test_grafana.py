"""docs/grafana: dashboard and alert rules name metrics that there are, and can be loaded."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from lowmem_wsgi.admin.openmetrics import FAMILIES
from lowmem_wsgi.settings import NUMBERS, table

GRAFANA = Path(__file__).parents[2] / "docs" / "grafana"
PAGE = GRAFANA.with_name("monitoring.md")
SUFFIXES = {"counter": "_total", "info": "_info"}
METRICS = {family.name + SUFFIXES.get(family.kind, ""): {*family.labels} for family in FAMILIES}
TARGET = {"job", "instance"}  # the labels that Prometheus adds
SELECTOR = re.compile(r"\b(lowmem_\w+)(?:\{([^}]*)\})?")
# What the dashboard leaves to whoever looks closer.
NOT_SHOWN = {
    *("lowmem_process_resident_bytes", "lowmem_process_proportional_bytes"),
    *("lowmem_process_age_seconds", "lowmem_gc_runs_total", "lowmem_gc_collected_objects_total"),
    *("lowmem_cleanups_total", "lowmem_route_worst_request_bytes"),
}

DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboard.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
SHOWN = [(target["expr"], target["legendFormat"]) for p in PANELS for target in p["targets"]]
RULES = (GRAFANA / "alerts.yml").read_text(encoding="utf-8")
ALERTS = re.findall(r"alert: (\w+)\n +expr: (.+)\n", RULES)

each_expression = pytest.mark.parametrize(
    "expression", [expression for expression, _ in SHOWN] + [text for _, text in ALERTS]
)


def named(expression: str) -> dict[str, set[str]]:
    """The metrics of an expression, each with the labels that are asked for."""
    found: dict[str, set[str]] = {}
    without_groups = re.sub(r"\b(by|without|on) \([^)]*\)", "", expression)
    for name, inside in SELECTOR.findall(without_groups):
        if name == "lowmem_level" and not inside:
            continue  # the label of that name, inside a selector
        found.setdefault(name, set()).update(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", inside))
    return found


def promtool(*arguments: str) -> None:
    command = shutil.which("promtool")
    if command is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run([command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@each_expression
def test_an_expression_names_metrics_that_there_are_and_labels_that_they_have(
    expression: str,
) -> None:
    found = named(expression)
    assert found
    for name, labels in found.items():
        assert name in METRICS
        assert labels <= METRICS[name] | TARGET
    known = TARGET.union(*(METRICS[name] for name in found))
    for group in re.findall(r"\b(?:by|without|on) \(([^)]*)\)", expression):
        assert set(re.split(r",\s*", group)) <= known


def test_a_legend_names_labels_that_the_result_has() -> None:
    for expression, legend in SHOWN:
        by = re.search(r"\bby \(([^)]*)\)", expression)
        known = TARGET.union(*(METRICS[name] for name in named(expression)))
        labels = set(re.split(r",\s*", by[1])) if by else known
        assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= labels, expression


def test_the_dashboard_shows_every_metric_but_these() -> None:
    shown = {name for expression, _ in SHOWN for name in named(expression)}
    assert METRICS.keys() - shown == NOT_SHOWN


def test_the_panels_lie_side_by_side_and_explain_themselves() -> None:
    assert (
        len({panel["id"] for panel in PANELS}) == len({p["title"] for p in PANELS}) == len(PANELS)
    )
    for panel in PANELS:
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == sorted(set(letters))
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    cells = [
        {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        for at in (panel["gridPos"] for panel in PANELS)
    ]
    assert not [pair for pair in combinations(cells, 2) if pair[0] & pair[1]]


def test_every_variable_is_defined_and_the_dashboard_needs_no_data_source_of_ours() -> None:
    defined = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(PANELS)))
    assert used == defined | {"__rate_interval"}
    assert {"title", "uid", "schemaVersion", "panels", "templating"} <= DASHBOARD.keys()
    assert "id" not in DASHBOARD  # Grafana gives one to what is imported


def test_promtool_parses_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expression}
        for number, expression in enumerate(
            text.replace("$__rate_interval", "5m").replace("$instance", ".*") for text, _ in SHOWN
        )
    ]
    path = tmp_path / "dashboard.yml"  # JSON is YAML
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(path))


def test_promtool_finds_the_alert_rules_right_and_their_tests_pass() -> None:
    promtool("check", "rules", str(GRAFANA / "alerts.yml"))
    promtool("test", "rules", str(GRAFANA / "alerts.test.yml"))


def test_every_alert_is_tested_and_explained() -> None:
    assert len(ALERTS) == RULES.count("- alert:")
    tests = (GRAFANA / "alerts.test.yml").read_text(encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    for name, _ in ALERTS:
        assert re.search(rf"alertname: {name}\n +exp_alerts:\n", tests), f"{name} never fires"
        assert f"| `{name}` |" in page


def test_the_alerts_name_settings_that_there_are() -> None:
    names = set(
        re.findall(r"\b(?:LOWMEM|WORKER)_[A-Z_]+", RULES + PAGE.read_text(encoding="utf-8"))
    )
    assert names
    assert names <= {row.variable for row in table()} | NUMBERS.keys()
