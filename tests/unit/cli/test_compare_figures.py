"""What `lowmem-wsgi compare` makes of its rounds: noise, the table, the page."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import pytest

from lowmem_wsgi.cli.compare import chart, report
from lowmem_wsgi.cli.compare.contenders import BARE, CONTENDERS, DOCUMENT, OURS, in_round
from lowmem_wsgi.cli.compare.figures import (
    FIGURES,
    Difference,
    Round,
    Value,
    difference,
    thinned,
    typical,
    value,
)
from lowmem_wsgi.cli.compare.report import Report, beside, in_unit

MB = 1024 * 1024
ROWS = {figure.key: figure for figure in FIGURES}


def made(*rounds: float) -> Value:
    return value(ROWS["first"], [Round(first=number) for number in rounds])


def a_round(peak: int, milliseconds: float, *, failed: int = 0, asked: int = 100) -> Round:
    answers = [(milliseconds / 1000, False)] * (asked - failed) + [(30.0, True)] * failed
    return Round(
        first=0.5,
        initial=30 * MB,
        idle=40 * MB,
        peak=peak * MB,
        answers=tuple(answers),
        seconds=4.0,
        readings=((-1.0, 10 * MB), (0.5, peak * MB), (5.0, 40 * MB)),
    )


def a_report(**rounds: Sequence[Round]) -> Report:
    names = {"bare": BARE, "ours": OURS, "document": DOCUMENT}
    return Report(
        app="app:app",
        python="3.13.1",
        limit=512 * MB,
        cgroup=True,
        paths=("/", "/a?b=<script>"),
        source="found from /",
        notes=("left out: pages beyond the first 30",),
        seconds=4.0,
        rounds={names[name]: found for name, found in rounds.items()},
    )


@pytest.fixture
def measured() -> Report:
    return a_report(
        bare=[a_round(100 + number, 2.0) for number in range(3)],
        ours=[a_round(50 + number, 1.9 + number / 10) for number in range(3)],
        document=[a_round(101, 800, failed=2, asked=12) for _ in range(3)],
    )


# --- Noise


def test_rounds_that_overlap_are_noise_and_rounds_that_do_not_are_a_difference() -> None:
    bare = made(1.0, 1.1, 1.2)
    assert difference(made(1.2, 1.3, 1.4), bare).noise
    assert difference(made(0.5, 1.0, 1.0), bare).noise
    assert difference(made(0.9, 1.15, 1.5), bare).noise
    assert difference(made(2.1, 2.2, 2.4), bare) == Difference(2.2 / 1.1, False)
    assert difference(made(0.5, 0.55, 0.6), bare) == Difference(0.5, False)


def test_two_rounds_show_no_difference() -> None:
    assert difference(made(2.0, 2.0), made(1.0, 1.0, 1.0)).ratio is None
    assert difference(made(), made(1.0, 1.0, 1.0)).ratio is None
    lost = value(ROWS["first"], [Round(failure="x"), Round(first=2.0), Round(first=2.0)])
    assert lost.median == 2.0
    assert difference(lost, made(1.0, 1.0, 1.0)).ratio is None


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, ""),
        (Difference(None, False), ""),
        (Difference(1.5, True), "noise"),
        (Difference(1.001, False), "±0 %"),
        (Difference(1.104, False), "+10 %"),
        (Difference(0.3, False), "−70 %"),
        (Difference(2.04, False), "2.0 ×"),
        (Difference(241.3, False), "241 ×"),
        (Difference(0.00787, False), "1/127"),
        (Difference(0.0, False), "none"),
    ],
)
def test_a_difference_in_words(found: Difference | None, expected: str) -> None:
    assert beside(found) == expected


@pytest.mark.parametrize(
    ("number", "unit", "expected"),
    [
        (None, "bytes", "–"),
        (1.5 * MB, "bytes", "1.5 MB"),
        (0.00214, "seconds", "2.1 ms"),
        (0.219, "seconds", "219 ms"),
        (1.44, "seconds", "1.4 s"),
        (3.14, "rate", "3.1"),
        (601.4, "rate", "601"),
    ],
)
def test_a_figure_in_its_unit(number: float | None, unit: str, expected: str) -> None:
    assert in_unit(number, unit) == expected


# --- One round


def test_requests_that_failed_have_no_time_and_do_not_count_as_answered() -> None:
    found = a_round(100, 2.0, failed=50)
    assert found.percentile(0.99) == 0.002
    assert found.rate == 50 / 4.0
    assert (found.asked, found.failed) == (100, 50)
    assert Round().percentile(0.5) is None
    assert Round().rate is None


def test_percentiles_are_times_that_were_measured() -> None:
    found = Round(answers=tuple((number / 100, False) for number in range(100, 0, -1)))
    assert found.percentile(0.50) == 0.5
    assert found.percentile(0.99) == 0.99


def test_the_round_with_the_middle_peak_is_drawn() -> None:
    rounds = [a_round(peak, 1.0) for peak in (300, 100, 200)]
    assert typical([*rounds, Round(failure="x")]) == rounds[2]
    assert typical([Round(failure="x")]) is None


def test_thinned_readings_keep_the_peak() -> None:
    readings = [(number / 100, number % 7) for number in range(1000)]
    readings[777] = (7.77, 500)
    found = thinned(readings, 50)
    assert len(found) == 50
    assert (7.77, 500) in found
    assert found == sorted(found)
    assert thinned(readings[:3], 50) == readings[:3]


def test_no_contender_always_comes_after_the_same_one() -> None:
    orders = [[each.name for each in in_round(number)] for number in range(6)]
    assert all(sorted(order) == sorted(each.name for each in CONTENDERS) for order in orders)
    assert len({tuple(order) for order in orders}) == 6


# --- The contenders


def test_the_contenders_differ_in_how_they_are_served_alone() -> None:
    given = {"A": "b", "GUNICORN_CMD_ARGS": "-w 9", "WEB_CONCURRENCY": "8", "PORT": "80"}
    found = {each.name: each.environ(given, 64 * MB, "/run/x") for each in CONTENDERS}
    common = {"A": "b", "LOWMEM_MEMORY_LIMIT": str(64 * MB), "XDG_RUNTIME_DIR": "/run/x"}
    assert found[BARE] == common
    assert found[OURS] == {**common, "WEB_CONCURRENCY": "1"}
    written = found[DOCUMENT].items() - common.items()
    assert {("PYTHONOPTIMIZE", "2"), ("PYTHONDONTWRITEBYTECODE", "1")} < written
    for each in CONTENDERS:
        assert each.command("app:app", 7)[-3:] == ["--bind", "fd://7", "app:app"]


# --- The report


def test_the_table_has_each_figure_beside_the_bare_apps(measured: Report) -> None:
    lines = report.text(measured, colour=False).splitlines()
    cells = {line[:14].strip(): re.split(r"\s{2,}", line[14:].strip()) for line in lines[4:14]}
    assert cells["initial RAM"] == ["30.0 MB", "30.0 MB", "noise", "30.0 MB", "noise", "30–40 MB"]
    assert cells["peak"][:5] == ["101.0 MB", "51.0 MB", "−50 %", "101.0 MB", "noise"]
    assert cells["p50"] == ["2.0 ms", "2.0 ms", "noise", "800 ms", "400 ×"]
    assert cells["failed"] == ["0 of 300", "0 of 300", "6 of 36"]
    assert "OOM kills" not in cells
    assert "3 rounds in turn, each 4 s with 3 clients; 2 requests found from /" in lines
    assert "left out: pages beyond the first 30" in lines
    assert "\x1b" not in "\n".join(lines)
    assert "\x1b[1m" in report.text(measured, colour=True)


def test_what_went_wrong_is_told(measured: Report) -> None:
    rounds = {
        **measured.rounds,
        DOCUMENT: [Round(failure="it ends as it starts (exit status 3)", kills=2)] * 3,
        OURS: [*measured.rounds[OURS][:2], a_round(51, 1.0)._replace(died=True, kills=1)],
    }
    text = report.text(measured._replace(rounds=rounds, cgroup=False), colour=False)
    assert re.search(r"OOM kills +0 +1 +6\n", text)
    assert "lowmem-wsgi: the server has ended in 1 of 3 rounds" in text
    assert "document: does not start (3 of 3 rounds): it ends as it starts (exit" in text
    assert "No memory cgroup was made: no limit holds" in text


def test_the_document_has_medians_rounds_and_memory(measured: Report) -> None:
    found = json.loads(json.dumps(report.document(measured)))
    assert (found["limit_bytes"], found["measured_in"], found["rounds"]) == (512 * MB, "cgroup", 3)
    ours = found["contenders"][OURS]
    assert ours["peak_bytes"]["rounds"] == [50 * MB, 51 * MB, 52 * MB]
    assert ours["peak_bytes"]["to_bare"] == pytest.approx(51 / 101, abs=1e-5)
    assert ours["peak_bytes"]["noise"] is False
    assert ours["p50_seconds"]["noise"] is True
    assert "to_bare" not in found["contenders"][BARE]["peak_bytes"]
    assert ours["memory"][1] == {"seconds": 0.5, "bytes": 51 * MB}
    assert found["contenders"][DOCUMENT]["failed"] == 6


def test_the_page_needs_no_other_file_and_escapes_what_comes_from_the_site(
    measured: Report,
) -> None:
    text = chart.page(measured).decode()
    assert "{{" not in text
    assert "<script" not in text
    assert "/a?b=&lt;script&gt;" in text
    assert not re.search(r"(?:src|href)=\"(?!data:)", text)
    assert text.count('class="line c') == 6  # of the chart, and of its legend
    assert "−50 %" in text
    assert "limit 512 MB" not in text  # far above the lines
    assert "limit 128 MB" in chart.page(measured._replace(limit=128 * MB)).decode()


def test_the_page_without_a_server_that_ran(measured: Report) -> None:
    rounds = {name: [Round(failure="x")] * 3 for name in measured.rounds}
    assert b"No server has run." in chart.page(measured._replace(rounds=rounds))


@pytest.mark.parametrize(("least", "expected"), [(0.1, 1), (1, 1), (3, 5), (11, 20), (60, 100)])
def test_steps_of_the_axes(least: float, expected: int) -> None:
    assert chart.nice(least) == expected
