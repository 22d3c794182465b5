"""How the doctor shows what was found."""

from __future__ import annotations

import io
import json

import pytest

from lowmem_wsgi.cli.doctor import report
from lowmem_wsgi.cli.doctor.figures import Failure, Figures, Route, Worker
from lowmem_wsgi.cli.doctor.findings import findings
from lowmem_wsgi.cli.tell import plain
from lowmem_wsgi.settings import MB

FIGURES = Figures(
    token=False,
    loaded=40 * MB,
    anonymous=30 * MB,
    imports={"flask": 5 * MB},
    worker=Worker(own=15 * MB, rss=40 * MB),
    routes=(Route("/", 200, MB),),
    variables={"MALLOC_ARENA_MAX": "1"},
)


class Terminal(io.TextIOWrapper):
    def __init__(self, encoding: str, terminal: bool = True) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def shown(stream: Terminal, **environ: str) -> str:
    return report.text(FIGURES, findings(FIGURES), stream, environ)


@pytest.mark.parametrize(
    ("terminal", "environ", "colour"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_colour_is_for_a_terminal_that_wants_it(
    terminal: bool, environ: dict[str, str], colour: bool
) -> None:
    assert ("\033[" in shown(Terminal("utf-8", terminal), **environ)) == colour


def test_a_terminal_without_such_letters_gets_plain_ones() -> None:
    text = plain(shown(Terminal("ascii", terminal=False)), "ascii")
    text.encode("ascii")
    assert "    -> run `python -c " in text


def test_the_report_has_the_figures_each_finding_and_its_remedy() -> None:
    text = shown(Terminal("utf-8", terminal=False))
    assert "loaded    40 MB in 0.0 s: flask 5 MB" in text
    assert "a worker  15 MB of its own, 25 MB shared" in text
    assert "3 fit by memory" in text
    assert "! no token: " in text
    assert "1 to improve" in text


def test_a_traceback_is_shown_by_its_last_lines() -> None:
    figures = Figures(failure=Failure("raised", "load", "KeyError: 'DB'", ("app.py:3: x['DB']",)))
    text = report.text(figures, findings(figures), Terminal("utf-8", terminal=False), {})
    assert "✗ does not load: KeyError: 'DB'" in text
    assert "    | app.py:3: x['DB']" in text


def test_the_json_has_all_of_it() -> None:
    found = json.loads(report.as_json(FIGURES, findings(FIGURES), 1))
    assert found["exit"] == 1
    assert found["workers_that_fit"] == 3
    assert found["largest_request_that_fits_bytes"] == FIGURES.room(3)
    (finding,) = found["findings"]
    assert finding.keys() == {"level", "name", "figure", "remedy", "docs"}
