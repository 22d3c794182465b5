"""The gauntlet's pure parts: figures with their noise, places, outages, charts and the page."""

from __future__ import annotations

import copy
import json
import math
import re
import threading
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from _load import Answer
from gauntlet import charts, cost, course, figures, page, run
from gauntlet.box import environment, settings
from gauntlet.contenders import CONTENDERS, PLAIN, RUN
from gauntlet.figures import BY_KEY, Figure, binned, figure, leaders, place, summarise, unavailable
from gauntlet.phases import Tally, is_page
from gauntlet.plan import QUICK

WAITRESS, GRANIAN = "waitress", "Granian workers-max-rss"


def record(
    name: str, *, lost: int = 0, kills: int | None = None, p99: float = 20.0, **more: Any
) -> dict[str, Any]:
    kills = int(lost > 0) if kills is None else kills
    phases = {
        phase: {
            **{"asked": 100, "failed": 0, "wrong": 0, "what": {}, "runaways": {}},
            **{"kills": 0, "deaths": 0, "seconds": 1.0},
        }
        for phase in page.PHASES
    }
    phases["leak"] |= {"failed": lost, "kills": kills}
    if lost:
        phases["leak"]["what"] = {"neighbour: ConnectionRefusedError": lost}
    memory = {"initial": 90.0, "idle": 90.0, "spiked": 95.0, "peak": 512.0, "final": 91.0}
    one = {"p50": 5.0, "p99": p99, "p999": 2 * p99, "rate": 400.0, "cpu": 2.0}
    return {
        **{"contender": name, "share": 1.0, "round": 0, "missing": "", "version": "server 1.0"},
        **{"memory": memory, "phases": phases, "start": 1.0, "kills": kills, "slowest": 0.5},
        **{"deaths": 0, "restarts": 0, "refused": 10, "unavailable": lost / 10, "plan": "quick"},
        "steady_all": {"answers": 1000, **one},
        "steady": [{**one, "p99": p99 * factor} for factor in (0.9, 1.0, 1.1)],
        "trace": {phase: [90.0, None, 120.0] for phase in ("start", "idle", *page.PHASES)},
        **more,
    }


def a_run(*records: dict[str, Any]) -> dict[str, Any]:
    found = run.document(list(records), QUICK)
    return {**found, "date": "2026-01-02"}


# --- Figures


def test_a_figure_is_the_median_with_the_least_and_the_most() -> None:
    assert figure([3.0, 1.0, 2.0]) == Figure(2.0, 1.0, 3.0, 3, 6.0)
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
    table = summarise([record(GRANIAN, lost=9, p99=1), record(RUN, p99=50)], 1.0)
    assert list(table) == [RUN, GRANIAN]


def test_the_places_of_the_table_tell_who_shares_one() -> None:
    table = summarise([record(RUN), record(PLAIN), record(GRANIAN, lost=9)], 1.0)
    assert page.order_of(table) == {RUN: "1=", PLAIN: "1=", GRANIAN: "3"}


def test_where_failures_are_not_told_apart_the_kills_decide_for_each_pair() -> None:
    table = summarise(
        [
            record(PLAIN, lost=10, kills=7, unavailable=1.0),
            record(WAITRESS, lost=16, kills=7, unavailable=1.0),
            record(RUN, lost=22, kills=0, unavailable=1.0),
        ],
        1.0,
    )
    # RUN has lost more than PLAIN beyond chance, and has fewer kills than WAITRESS.
    assert figures.standing(table) == {PLAIN: 1, RUN: 2, WAITRESS: 2}


def test_slices_with_too_few_answers_are_taken_together() -> None:
    slow = record(PLAIN)
    for one in slow["steady"]:
        one["p99"] = math.nan
    slow["steady_all"]["p99"] = 70.0
    assert summarise([slow], 1.0)[PLAIN]["p99"] == Figure(70.0, 70.0, 70.0, 1, 70.0)


def test_too_few_answers_have_no_p99() -> None:
    few = figures.percentiles([float(n) for n in range(1, 100)])
    assert few["p50"] == 50.0
    assert math.isnan(few["p99"])
    many = figures.percentiles([float(n) for n in range(1, 1001)])
    assert (many["p99"], many["p999"]) == (990.0, 999.0)


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
        f"{RUN}: failed answers",
        f"{RUN}: more failures than the best",
        f"{RUN}: p99 / {PLAIN}",
    }


def test_two_runs_agree_by_each_contenders_ratio_to_the_median() -> None:
    first = summarise([record(RUN, p99=20), record(PLAIN, p99=20)], 1.0)
    twice = summarise([record(RUN, p99=40), record(PLAIN, p99=40)], 1.0)  # a slower machine
    assert figures.agreement(first, twice, ["p99"])["p99"].most == 0.0
    three = [record(RUN, p99=20), record(PLAIN, p99=20), record(WAITRESS, p99=10)]
    other = [record(RUN, p99=20), record(PLAIN, p99=20), record(WAITRESS, p99=30)]
    found = figures.agreement(summarise(three, 1.0), summarise(other, 1.0), ["p99"])["p99"]
    assert found == figures.Change(0.0, 2.0, WAITRESS)


@pytest.mark.parametrize(
    ("few", "many", "differ"),
    [
        ([6.0], [7.0], False),
        ([0.0], [3.0], False),
        ([0.0], [9.0], True),
        ([3.0], [9.0], False),
        ([3.0] * 3, [9.0] * 3, True),  # measured more often
        ([90.0], [130.0], False),  # by a third of the larger, at least
        ([3.0, 9.0, 3.0], [8.0, 30.0, 30.0], False),  # they overlap
    ],
)
def test_counts_are_told_apart_where_chance_does_not_explain_them(
    few: list[float], many: list[float], differ: bool
) -> None:
    assert figures.better(figure(few), figure(many), BY_KEY["failed"]) == differ
    assert not figures.better(figure(many), figure(few), BY_KEY["failed"])


def test_two_runs_name_the_pairs_that_changed_sides() -> None:
    first = summarise([record(RUN), record(PLAIN, lost=50), record(GRANIAN, lost=500)], 1.0)
    second = summarise([record(RUN), record(PLAIN, lost=500), record(GRANIAN, lost=50)], 1.0)
    assert figures.order(first, first) == figures.Order(3, [], 0)
    assert figures.order(first, second) == figures.Order(2, [(PLAIN, GRANIAN)], 0)
    alike = summarise([record(RUN), record(PLAIN), record(GRANIAN, lost=500)], 1.0)
    assert figures.order(first, alike) == figures.Order(2, [], 1)


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
    svg = ElementTree.fromstring(texts["2026-01-02-quick-failures-dark.svg"])
    assert "30" in [e.text for e in svg.iter() if e.tag.endswith("text")]


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
        "* idle: the best is 60 MB, by waitress. Behind: lowmem-wsgi run 90 MB."
        " Likely reason: There is one process" in text
    )
    assert "* failed: the best is 0, by lowmem-wsgi run." in text
    assert "* p99: no difference beyond the noise." in text


def test_the_page_says_that_one_of_ours_is_behind_where_another_of_ours_is_best() -> None:
    small = record("lowmem-wsgi run, ultra")
    small["memory"]["idle"] = 60.0
    text = page.written(a_run(record(RUN), small))["README.md"]
    assert "the best is 60 MB, by lowmem-wsgi run, ultra. Behind: lowmem-wsgi run 90 MB." in text


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
    file.write_text('{"plan": "quick"}\n{"plan": "qui')
    assert run.saved(file, QUICK) == [{"plan": "quick"}]
    with file.open("a") as more:
        more.write('{"plan": "quick", "round": 1}\n')
    assert len(run.saved(file, QUICK)) == 2


def test_records_of_another_plan_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text('{"plan": "full"}\n')
    with pytest.raises(ValueError, match="records of the plan full, not quick"):
        run.saved(file, QUICK)


def test_two_runs_must_be_two_and_of_one_kind() -> None:
    first, second = a_run(record(RUN)), a_run(record(RUN, p99=30))
    run.same_kind(first, second)
    with pytest.raises(ValueError, match="the two runs are the same"):
        run.same_kind(first, first)
    second["plan"]["leaks"] += 1
    with pytest.raises(ValueError, match="differ in leaks"):
        run.same_kind(first, second)


# --- The course


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_all_are_damaged_so_many_at_a_time(at_a_time: int) -> None:
    now, most, names = [0], [0], [str(n) for n in range(9)]
    together = threading.Barrier(at_a_time)

    def damage(name: str) -> None:
        now[0] += 1
        together.wait(10)
        most[0] = max(most[0], now[0])
        together.wait(10)
        now[0] -= 1

    assert sorted(course.all_damaged(names, damage, at_a_time)) == names
    assert most == [at_a_time]


def test_a_failure_of_the_damage_is_raised() -> None:
    def damage(name: str) -> None:
        if name == "b":
            raise BrokenPipeError

    done = course.all_damaged(["a", "b", "c"], damage, 1)
    assert next(done) == "a"
    with pytest.raises(BrokenPipeError):
        next(done)


def test_whoever_stops_early_does_not_wait_for_the_damage() -> None:
    goes_on = threading.Event()

    def damage(name: str) -> None:
        if name != "a":
            goes_on.wait(10)

    done = course.all_damaged(["a", "b", "c"], damage, 1)
    assert next(done) == "a"
    began = time.monotonic()
    done.close()
    assert time.monotonic() - began < 5
    goes_on.set()


def test_slow_containers_are_damaged_side_by_side() -> None:
    assert [course.side_by_side(share) for share in (1, 0.5, 0.1, 0.05)] == [1, 2, 4, 4]


def test_bad_shares_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--quick", "--cpu", "3"]) == 2
    assert capsys.readouterr().err == (
        "gauntlet: --cpu takes a share of one processor, from 0.05 to 1\n"
    )


def test_the_page_says_how_far_a_second_run_agrees() -> None:
    first = a_run(record(RUN), record(PLAIN, lost=50), record(GRANIAN, lost=500))
    second = a_run(record(RUN), record(PLAIN, lost=500), record(GRANIAN, lost=50))
    text = page.written(first, again=second)["README.md"]
    assert (
        "A whole CPU: 2 pairs of contenders are told apart in both runs and stand in the same"
        f" order, 1 in the other order (in this run {PLAIN} before {GRANIAN}); 0 are told apart"
        in text
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
    assert "| **lowmem-wsgi run** | 0 · 0 | 0 · 0 | 90 · 90 | 20.0 · 20.0 |" in texts["README.md"]
    assert "4 contenders at a time" in texts["README.md"]


def test_records_are_not_changed_by_the_page() -> None:
    found = a_run(record(RUN), record(PLAIN, lost=1))
    before = copy.deepcopy(found)
    page.written(found)
    assert found == before
