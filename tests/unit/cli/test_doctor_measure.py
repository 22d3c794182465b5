"""What the doctor says while its child measures."""

from __future__ import annotations

import json

import pytest

from lowmem_wsgi.cli.doctor.figures import AT_ONCE
from lowmem_wsgi.cli.doctor.measure import doing


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ([{"at": "config", "ceiling_works": True}], "the server's settings"),
        ([{"at": "load", "app": "app:app"}], "the app"),
        ([{"loading": "pandas"}], "the import of pandas"),
        ([{"at": "/list?page=2"}], "GET /list?page=2"),
        ([{"at": "/a"}, {"route": {"path": "/a"}}, {"at": "/b"}], "GET /b"),
        ([{"at": "/a"}, {"worker": {}}], "GET /a"),
        ([{"at": AT_ONCE}], "the pages side by side"),
    ],
)
def test_the_latest_step_is_named(told: list[dict[str, object]], said: str) -> None:
    assert doing(b"".join(json.dumps(line).encode() + b"\n" for line in told)) == said


def test_a_part_of_a_line_and_nothing_are_no_step() -> None:
    assert doing(b'{"at": "/a"}\n{"at": "/b') == "GET /a"
    assert doing(b"") == "the app"
