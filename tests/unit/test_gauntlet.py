"""The gauntlet's pure parts: figures with their noise, places, outages, charts and the page."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from _load import Answer
from gauntlet import charts, cost, figures, page, run
from gauntlet.box import environment, settings
from gauntlet.contenders import CONTENDERS, PLAIN, RUN
from gauntlet.figures import BY_KEY, Figure, binned, figure, leaders, place, summarise, unavailable
from gauntlet.phases import Tally, is_page
from gauntlet.plan import QUICK

WAITRESS, GRANIAN = "waitress", "Granian workers-max-rss"


def record(name: str, *, lost: int = 0, p99: float = 20.0, **more: Any) -> dict[str, Any]:
    phases = {
        phase: {
            **{"asked": 100, "failed": 0, "wrong": 0, "what": {}, "runaways": {}},
            **{"kills": 0, "deaths": 0, "seconds": 1.0},
        }
        for phase in page.PHASES
    }
    phases["leak"] |= {"failed": lost, "kills": 1 if lost else 0}
    if lost:
        phases["leak"]["what"] = {"neighbour: ConnectionRefusedError": lost}
    memory = {"initial": 90.0, "idle": 90.0, "spiked": 95.0, "peak": 512.0, "final": 91.0}
    one = {"p50": 5.0, "p99": p99, "p999": 2 * p99, "rate": 400.0, "cpu": 2.0}
    return {
        **{"contender": name, "share": 1.0, "round": 0, "missing": "", "version": "server 1.0"},
        **{"memory": memory, "phases": phases, "start": 1.0, "kills": phases["leak"]["kills"]},
        **{"deaths": 0, "restarts": 0, "refused": 10, "unavailable": lost / 10},
        "steady": [{**one, "p99": p99 * factor} for factor in (0.9, 1.0, 1.1)],
        "trace": {phase: [90.0, None, 120.0] for phase in ("start", "idle", *page.PHASES)},
        **more,
    }


def a_run(*records: dict[str, Any]) -> dict[str, Any]:
    found = run.document(list(records), QUICK)
    return {**found, "date": "2026-01-02"}


# --- Figures


def test_a_figure_is_the_median_with_the_least_and_the_most() -> None:
    assert figure([3.0, 1.0, 2.0]) == Figure(2.0, 1.0, 3.0, 3)
    assert figure([3.0, 1.0, 2.0]).spread == 1.0
    assert math.isnan(figure([2.0]).spread)
    assert figure([math.nan, 2.0]).value == 2.0
    assert math.isnan(figure([math.nan]).value)


def test_contenders_whose_measurements_overlap_share_a_place() -> None:
    table = summarise(
        [record(WAITRESS, p99=21), record(PLAIN, p99=20), record(GRANIAN, p99=40)], 1.0
    )
    assert place(table, BY_KEY["p99"]) == {PLAIN: 1, WAITRESS: 1, GRANIAN: 3}
    assert leaders(table, BY_KEY["p99"]) == [PLAIN, WAITRESS]
    assert list(table)[-1] == GRANIAN


def test_a_difference_of_less_than_three_percent_is_none() -> None:
    small, smaller = record(PLAIN), record(RUN)
    smaller["memory"]["idle"] = 88.0
    table = summarise([small, smaller], 1.0)
    assert set(leaders(table, BY_KEY["idle"])) == {PLAIN, RUN}
    smaller["memory"]["idle"] = 86.0
    assert leaders(summarise([small, smaller], 1.0), BY_KEY["idle"]) == [RUN]


def test_where_more_is_better_the_most_wins() -> None:
    fast = record(GRANIAN)
    for one in fast["steady"]:
        one["rate"] = 900.0
    table = summarise([record(PLAIN), fast], 1.0)
    assert leaders(table, BY_KEY["rate"]) == [GRANIAN]
    assert place(table, BY_KEY["rate"]) == {GRANIAN: 1, PLAIN: 2}


def test_failures_come_before_speed_in_the_order() -> None:
    table = summarise([record(GRANIAN, lost=3, p99=1), record(RUN, p99=50)], 1.0)
    assert list(table) == [RUN, GRANIAN]


def test_the_places_of_the_table_tell_who_shares_one() -> None:
    table = summarise([record(RUN), record(PLAIN), record(GRANIAN, lost=3)], 1.0)
    assert page.order_of(table) == {RUN: "1=", PLAIN: "1=", GRANIAN: "3"}


def test_other_shares_and_contenders_that_did_not_run_are_left_out() -> None:
    found = [record(RUN), record(PLAIN, share=0.1), record(WAITRESS, missing="not installed")]
    assert list(summarise(found, 1.0)) == [RUN]


@pytest.mark.parametrize(
    ("answers", "seconds"),
    [
        ([], 0),
        ([(0, 1, True), (1, 2, True)], 0),
        ([(0, 1, True), (1, 2, False), (2, 3, False), (3, 4, True)], 3),
        ([(1, 2, False), (0, 5, True)], 4),  # sent before, so no sign of an end
        ([(1, 2, False), (3, 9, False)], 8),  # and never again
        ([(0, 1, False), (1, 2, True), (5, 6, False), (6, 7, True)], 4),
    ],
)
def test_an_outage_lasts_from_a_failure_to_the_next_good_answer(
    answers: list[tuple[float, float, bool]], seconds: float
) -> None:
    assert unavailable(answers) == seconds


def test_memory_is_binned_over_the_spans_of_a_phase() -> None:
    points = [(0.0, 1.0), (0.4, 3.0), (0.9, 2.0), (5.0, 99.0), (10.5, 7.0)]
    found = binned(points, [(0.0, 1.0), (10.0, 11.0)], 4)
    assert found[:2] == [3.0, 2.0]
    assert math.isnan(found[2])
    assert found[3] == 7.0


def test_promises_are_checked_against_plain_gunicorn_and_the_best() -> None:
    table = summarise([record(RUN, lost=2, p99=30), record(PLAIN, p99=20)], 1.0)
    broken = {p.text for p in figures.promises(table, (RUN,), PLAIN) if not p.kept}
    assert broken == {
        f"{RUN}: OOM kills",
        f"{RUN}: failed or wrong answers",
        f"{RUN}: more failures than the best",
        f"{RUN}: p99 / {PLAIN}",
    }


def test_two_runs_agree_by_each_contenders_ratio_to_the_median() -> None:
    first = summarise([record(RUN, p99=20), record(PLAIN, p99=20)], 1.0)
    twice = summarise([record(RUN, p99=40), record(PLAIN, p99=40)], 1.0)  # a slower machine
    assert figures.agreement(first, twice, ["p99"])["p99"].most == 0.0
    other = summarise([record(RUN, p99=20), record(PLAIN, p99=30)], 1.0)
    found = figures.agreement(first, other, ["p99"])["p99"]
    assert found.most == pytest.approx(0.2)
    assert found.name == PLAIN or found.most == pytest.approx(found.usual)


def test_counts_that_chance_explains_are_no_difference() -> None:
    kills = BY_KEY["kills"]
    assert not figures.better(figure([6.0]), figure([7.0]), kills)
    assert not figures.better(figure([3.0]), figure([9.0]), kills)
    assert figures.better(figure([3.0]), figure([30.0]), kills)
    assert figures.better(figure([3.0] * 3), figure([9.0] * 3), kills)  # measured more often


def test_none_at_all_is_better_than_any_count() -> None:
    assert figures.better(figure([0.0]), figure([1.0]), BY_KEY["failed"])
    assert not figures.better(figure([0.0, 1.0]), figure([1.0, 1.0]), BY_KEY["failed"])


def test_two_runs_name_the_pairs_that_changed_sides() -> None:
    first = summarise([record(RUN), record(PLAIN, lost=50), record(GRANIAN, lost=500)], 1.0)
    second = summarise([record(RUN), record(PLAIN, lost=500), record(GRANIAN, lost=50)], 1.0)
    assert figures.reversals(first, first) == []
    assert figures.reversals(first, second) == [(PLAIN, GRANIAN)]


# --- What is checked


def answer(status: int, body: bytes = b"", error: str = "") -> Answer:
    return Answer("/", 0.0, 0.0, 1.0, status, error, body)


def test_an_answer_is_good_or_wrong_or_failed() -> None:
    tally = Tally()
    tally.check(answer(200), True)
    tally.check(answer(413), True)
    tally.check(answer(200), False, "upload")
    tally.check(answer(503), False)
    tally.check(answer(0, error="TimeoutError"), False)
    assert (tally.asked, tally.wrong, tally.failed) == (5, 1, 2)
    assert tally.what == {"upload: 200": 1, "/: 503": 1, "/: TimeoutError": 1}


def test_the_page_of_ten_clients_must_be_whole() -> None:
    rows = b"".join(b"<tr><td>%d</td><td>Client %d</td></tr>" % (n, n) for n in range(10))
    assert is_page(answer(200, rows + b"</table>"))
    assert not is_page(answer(200, rows))
    assert not is_page(answer(200, rows[40:] + b"</table>"))
    assert not is_page(answer(500, rows + b"</table>"))


# --- Contenders


@pytest.mark.parametrize("name", CONTENDERS)
def test_each_contender_has_a_command_and_a_source(name: str, tmp_path: Path) -> None:
    row = CONTENDERS[name]
    words = row.server.words(row.app, 8123, tmp_path)
    assert any("8123" in word for word in words)
    assert not [word for word in words if "{" in word]
    assert row.advice.startswith(("https://", "../"))
    re.compile(row.died)
    assert set(row.wins) <= set(BY_KEY)


@pytest.mark.parametrize("name", CONTENDERS)
def test_the_sites_rules_are_kept_by_flask_or_by_lowmemory(name: str, tmp_path: Path) -> None:
    row = CONTENDERS[name]
    found = settings(row, 7)
    assert ("GAUNTLET_RULES" in found) != ("LOWMEM_SESSION_LIFETIME" in found)
    assert environment(row, tmp_path, 7).items() >= found.items()


# --- Charts and page


def test_each_chart_is_well_formed_in_both_dresses() -> None:
    found = a_run(record(RUN), record(PLAIN, lost=30), record(GRANIAN, missing="not here"))
    texts = page.written(found)
    drawn = [text for name, text in texts.items() if name.endswith(".svg")]
    assert len(drawn) == 6
    for text in drawn:
        svg = ElementTree.fromstring(text)
        words = [e.text for e in svg.iter() if e.tag.endswith("text")]
        assert RUN in words
        assert "nan" not in text
    assert "30" in texts["2026-01-02-quick-failures-dark.svg"]


def test_the_cost_is_drawn_and_its_flatness_told() -> None:
    cells = cost.cells((1000, 2000))
    ms = {cell: 2.0 if cell.size == 2000 else 1.0 for cell in cells}
    ElementTree.fromstring(cost.drawn(ms, "light"))
    assert set(cost.flatness(ms, cost.OURS).values()) == {1.0}
    assert set(cost.COLOURS.values()) <= set(charts.Dress._fields)


def test_the_page_has_the_cost_that_was_measured() -> None:
    cells = [{**cell._asdict(), "ms": [1.0, 3.0, 2.0]} for cell in cost.cells((1000, 2000))]
    costs = {**a_run(), "rounds": 3, "seconds": 1.0, "cells": cells}
    text = page.written(a_run(record(RUN)), costs)["README.md"]
    assert 'src="2026-01-02-cost-light.svg"' in text
    assert "| objects on the heap, 1 at once: 1,000 | 2.00 | 2.00 | 2.00 |" in text
    assert "the cost changes by 0 % at most" in text


def test_the_page_says_who_is_better_and_why() -> None:
    small = record(WAITRESS, lost=5)
    small["memory"]["idle"] = 60.0
    text = page.written(a_run(record(RUN), small))["README.md"]
    assert (
        "* idle: the best is 60 MB, by waitress. lowmem-wsgi is behind (lowmem-wsgi run 90 MB)."
        " There is one process" in text
    )
    assert "* failed or wrong: the best is 0, by lowmem-wsgi run." in text
    assert "* p99: no difference beyond the noise." in text


def test_the_page_admits_a_reason_that_nobody_knows() -> None:
    quick = record(WAITRESS)
    quick["start"] = 0.1
    quick["unavailable"] = 0.0
    peer = record(PLAIN)
    peer["start"] = 0.1
    text = page.written(a_run(record(RUN), peer))["README.md"]
    assert "The reason was not looked into." in text


def test_the_page_names_who_was_not_run_and_every_setting() -> None:
    text = page.written(a_run(record(RUN), record(WAITRESS, missing="no compiler")))["README.md"]
    assert "* waitress: no compiler" in text
    for key in vars(QUICK):
        assert f"{key} " in text
    assert "nan" not in text.split("## The contenders")[0].replace("–", "")


def test_the_page_can_be_made_again_from_its_json() -> None:
    texts = page.written(a_run(record(RUN), record(PLAIN, lost=1)))
    again = page.written(json.loads(texts["2026-01-02-quick.json"]))
    assert again == texts


def test_a_last_line_that_is_not_whole_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text('{"contender": "a"}\n{"contender": "b"')
    assert run.saved(file) == [{"contender": "a"}]


def test_bad_shares_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--quick", "--cpu", "3"]) == 2
    assert capsys.readouterr().err == (
        "gauntlet: --cpu takes a share of one processor, from 0.05 to 1\n"
    )


def test_the_page_says_how_far_a_second_run_agrees() -> None:
    first = a_run(record(RUN), record(PLAIN, lost=50), record(GRANIAN, lost=500))
    second = a_run(record(RUN), record(PLAIN, lost=500), record(GRANIAN, lost=50))
    text = page.written(first, again=second)["README.md"]
    assert f"these stand in the other order: {PLAIN} and {GRANIAN}." in text
    assert (
        "no two contenders stand in the other order"
        in page.written(first, again=first)["README.md"]
    )
    assert "Two runs" not in page.written(first)["README.md"]


def test_each_share_of_a_cpu_has_its_charts_and_its_table() -> None:
    found = a_run(record(RUN), record(RUN, share=0.1))
    found["plan"]["shares"] = (1.0, 0.1)
    texts = page.written(found)
    assert "2026-01-02-quick-memory-0.1-cpu-dark.svg" in texts
    for name in texts:
        if name.endswith(".svg"):
            assert name in texts["README.md"]
    assert "## 0.1 of a CPU" in texts["README.md"]
    assert "4 contenders at a time" in texts["README.md"]


def test_records_are_not_changed_by_the_page() -> None:
    found = a_run(record(RUN), record(PLAIN, lost=1))
    before = copy.deepcopy(found)
    page.written(found)
    assert found == before
