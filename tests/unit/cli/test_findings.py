"""What the doctor says of which figures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from lowmem_wsgi.cli.doctor import exit_code
from lowmem_wsgi.cli.doctor.asking import STEP, growth_of
from lowmem_wsgi.cli.doctor.figures import (
    AT_ONCE,
    GUNICORN,
    OTHER,
    Failure,
    Figures,
    Python,
    Route,
    Secret,
    Served,
    Templates,
    Worker,
)
from lowmem_wsgi.cli.doctor.findings import ADVICE, DIE, FINDINGS, NAMES, anchor, findings
from lowmem_wsgi.cli.safe_pages import CHANGES
from lowmem_wsgi.settings import MB

DOCS = Path(__file__).parents[3] / "docs"
HEALTHY = Figures(
    variables={"MALLOC_ARENA_MAX": "1"},
    heavy=("pandas", "numpy"),
    base=20 * MB,
    loaded=40 * MB,
    anonymous=30 * MB,
    imports={"flask": 5 * MB, "app": MB},
    of_app=("app",),
    worker=Worker(own=15 * MB, anonymous=30 * MB, rss=40 * MB),
    routes=(Route("/", 200, MB, 40, 100, True),),
    templates=Templates(3, 400),
    secret=Secret(),
    pages=("/",),
)


def of(**changed: Any) -> list[tuple[str, str]]:
    """The findings of a healthy site with these figures changed: names and levels."""
    return [(found.name, found.level) for found in findings(replace(HEALTHY, **changed))]


def served(**changed: Any) -> dict[str, Any]:
    return {"served": replace(HEALTHY.served, **changed)}


def test_a_healthy_site_has_none() -> None:
    assert of() == []


ONE_EACH: Mapping[str, tuple[dict[str, Any], str]] = {
    "wrong settings": ({"problems": ("LOWMEM_TRIM='x': expected 1/0",)}, DIE),
    "does not load": (
        {"failure": Failure("raised", "load", "KeyError: 'DB'", ("app.py:1: x",)), "worker": None},
        DIE,
    ),
    "born too large": ({"failure": Failure("killed", "load"), "worker": None, "loaded": 0}, DIE),
    "too many workers": (served(workers=8), ADVICE),
    "workers set by the platform": (served(workers=8, set_by_platform="Heroku"), ADVICE),
    "workers from the cores": (served(workers=2, from_cores=True), ADVICE),
    "large request": ({"routes": (Route("/report", 200, 300 * MB),)}, ADVICE),
    "page ends the worker": (
        {"failure": Failure("exited", "/x", "exit 3"), "worker": None, "routes": ()},
        DIE,
    ),
    "page does not end": ({"failure": Failure("hung", "/x"), "worker": None, "routes": ()}, DIE),
    "no page answers": ({"routes": (Route("/", 500, 0, error="KeyError: 'x'"),)}, ADVICE),
    "leak": ({"routes": (Route("/", 200, MB, 40, 20_000, True),)}, ADVICE),
    "template cache": ({"templates": Templates(30, None)}, ADVICE),
    "heavy import": ({"imports": {"pandas": 20 * MB, "numpy": 10 * MB}}, ADVICE),
    "arenas": ({"variables": {}}, ADVICE),
    "python flags": (
        {"python": Python(flags=("PYTHONOPTIMIZE=2",), modules=300, uncompiled=290)},
        ADVICE,
    ),
    "no preload": (served(workers=2, preload=False), ADVICE),
    "few requests": (served(max_requests=50), ADVICE),
    "graceful timeout": ({"platform": "docker", "grace": 10.0}, ADVICE),
    "no ceiling": ({"ceiling_wanted": False}, ADVICE),
    "secret key": ({"secret": Secret(app=False, length=0, setting=False)}, ADVICE),
    "no token": ({"token": False}, ADVICE),
    "python release": ({"python": Python(version=(3, 14, 2))}, ADVICE),
    "free-threaded python": ({"python": Python(gil=False)}, ADVICE),
    "musl": ({"python": Python(glibc=False)}, ADVICE),
    "swap": ({"swap": 512 * MB}, ADVICE),
}


def test_each_name_is_tested_and_explained() -> None:
    assert tuple(ONE_EACH) == NAMES
    assert len(FINDINGS) == len(NAMES) - 2  # one function names three kinds of too many workers
    page = (DOCS / "doctor.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### (.+)$", page, re.MULTILINE)
    assert tuple(headings) == NAMES
    assert anchor("no token") == "docs/doctor.md#no-token"


@pytest.mark.parametrize("name", ONE_EACH)
def test_an_illness_alone_is_the_only_finding(name: str) -> None:
    figures, level = ONE_EACH[name]
    assert of(**figures) == [(name, level)]


@pytest.mark.parametrize("name", ONE_EACH)
def test_a_finding_is_one_line_with_a_remedy(name: str) -> None:
    (found,) = findings(replace(HEALTHY, **ONE_EACH[name][0]))
    for text in (found.figure, found.remedy):
        assert text
        assert "\n" not in text


@pytest.mark.parametrize(
    "changed",
    [
        {"routes": (Route("/", 200, MB, 40, 8000, True),)},  # what a template leaves
        {"routes": (Route("/", 200, MB, 40, 20_000, False),)},  # a cache that was filled once
        {"routes": (Route("/", 200, MB, 40, 20_000, True, templates=20),)},  # up to its bound
        {"routes": (Route("/", 200, 100 * MB),), **served(workers=1)},  # three fit at once
        {"routes": (Route("/", 200, 300 * MB),), **served(workers=1), "max_in_flight": 1},
        {"routes": (Route("/", 500, 0), Route("/x", 404, 0))},  # one page answers
        {"imports": {"app": 100 * MB}},  # the app's own module cannot be late
        {"imports": {"numpy": 10 * MB, "sqlalchemy": 20 * MB}},
        {**served(threads=1), "variables": {}},  # one thread, one heap
        {"python": Python(flags=("PYTHONOPTIMIZE=1",), modules=300, uncompiled=4)},
        served(workers=1, preload=False),
        {**served(max_requests=3), "preset": "ultra"},  # what the source document asks for
        {"platform": "render", "grace": 30.0},
        {"secret": Secret(app=False, length=0, setting=False), "sessions": False},
        served(workers=3),
    ],
)
def test_what_only_looks_ill(changed: dict[str, Any]) -> None:
    assert of(**changed) == []


def test_what_kills_comes_first_and_decides_the_exit_code() -> None:
    found = findings(replace(HEALTHY, token=False, failure=Failure("hung", "load")))
    assert [finding.level for finding in found] == [DIE, ADVICE]
    assert exit_code(found) == 2
    assert exit_code(found[1:]) == 1
    assert exit_code([]) == 0
    assert exit_code([], measured=False) == 2


def test_more_workers_than_the_memory_holds_are_deadly() -> None:
    assert of(**served(workers=40)) == [("too many workers", DIE)]


def test_a_worker_that_dies_of_a_page_names_the_page() -> None:
    figures = replace(HEALTHY, failure=Failure("killed", "/report", "signal 9"), worker=None)
    (found,) = findings(figures)
    assert (found.level, found.name) == (DIE, "large request")
    assert "GET /report" in found.figure


def test_without_lowmemory_its_own_settings_are_no_matter() -> None:
    bare = {"wrapped": False, "token": False, "secret": Secret(False, 0, False, False)}
    assert of(**bare) == [("no ceiling", ADVICE)]
    server = replace(HEALTHY.served, by=OTHER, workers=1)
    assert of(**bare, served=server) == [("no ceiling", ADVICE)]


@pytest.mark.parametrize(
    ("secret", "told"),
    [(Secret(changes=True), "at each start"), (Secret(length=3), "3 characters")],
)
def test_a_secret_of_the_apps_own_that_is_no_secret(secret: Secret, told: str) -> None:
    (found,) = findings(replace(HEALTHY, secret=secret))
    assert found.name == "secret key"
    assert told in found.figure


def test_another_heavy_package_is_added_to_those_that_are_late() -> None:
    (found,) = findings(replace(HEALTHY, imports={"torch": 90 * MB}))
    assert "LOWMEM_LAZY_HEAVY=on LOWMEM_HEAVY_MODULES=pandas,numpy,torch" in found.remedy


def test_one_at_a_time_is_advised_only_where_one_fits() -> None:
    def remedy(size: int) -> str:
        return findings(replace(HEALTHY, routes=(Route("/", 200, size),)))[0].remedy

    assert "LOWMEM_MAX_IN_FLIGHT=1 WEB_CONCURRENCY=1" in remedy(300 * MB)
    assert "LOWMEM_MAX_IN_FLIGHT" not in remedy(480 * MB)


def test_what_fits() -> None:
    assert HEALTHY.fit == 3  # (400 - 40) // (2 * 40 + 32)
    assert HEALTHY.used(2) == 60 * MB
    assert HEALTHY.room(2) == (int(512 * MB * 11 / 12) - 60 * MB) // 2
    without = replace(HEALTHY, wrapped=False, served=Served(by=GUNICORN, preload=False))
    assert without.used(2) == 80 * MB
    assert without.room(2) == 432 * MB  # one request may take it all


def test_of_a_broken_config_nothing_else_is_said() -> None:
    figures = {"variables": {}, "wrapped": False, "worker": None, "token": False}
    for kind in ("exited", "raised", "hung", "killed"):
        assert of(**figures, failure=Failure(kind, "config", "x")) == [("does not load", DIE)]


@pytest.mark.parametrize(
    ("app", "failure", "remedy"),
    [
        ("app:app", Failure("exited", "load", "exit 1", ("no licence",)), "do not exit at import"),
        ("app:app", Failure("raised", "load", "KeyError: 'X'", ("app.py:1: x",)), "the traceback"),
        ("app:create_app(1)", Failure("raised", "load", "TypeError: takes 0"), "the factory"),
    ],
)
def test_the_remedy_is_for_why_the_app_does_not_load(
    app: str, failure: Failure, remedy: str
) -> None:
    (found,) = findings(replace(HEALTHY, app=app, failure=failure, worker=None, routes=()))
    assert remedy in found.remedy


def test_only_a_lack_of_memory_is_mended_by_sending_in_pieces() -> None:
    def remedy(kind: str) -> str:
        failure = Failure(kind, "/x", "text")
        return findings(replace(HEALTHY, failure=failure, worker=None, routes=()))[0].remedy

    assert all("in pieces" in remedy(kind) for kind in ("killed", "memory"))
    assert {remedy(kind) for kind in ("exited", "raised", "hung")} == {"mend GET /x"}


def test_what_happens_while_pages_are_asked_at_once_is_never_deadly() -> None:
    assert of(failure=Failure("killed", AT_ONCE, "signal 9")) == [("large request", ADVICE)]
    for kind in ("raised", "exited", "crashed"):
        assert of(failure=Failure(kind, AT_ONCE, "text")) == [("page ends the worker", ADVICE)]
    assert of(failure=Failure("hung", AT_ONCE)) == [("page does not end", ADVICE)]


def test_a_crash_is_no_lack_of_memory() -> None:
    crash = Failure("crashed", "/", "signal 11")
    assert of(failure=crash, worker=None) == [("page ends the worker", DIE)]
    at_import = of(failure=replace(crash, at="import"), worker=None, routes=())
    assert ("does not load", DIE) in at_import
    assert "born too large" not in dict(at_import)


def test_no_figure_of_free_memory_is_negative() -> None:
    failure = Failure("killed", "/x", "signal 9")
    (found,) = findings(replace(HEALTHY, failure=failure, worker=None, routes=(), loaded=600 * MB))
    assert "with 0 bytes free" in found.figure


def test_under_plain_gunicorn_few_requests_are_mended_by_lowmemory() -> None:
    server = replace(HEALTHY.served, by=GUNICORN, max_requests=50)
    (found,) = findings(replace(HEALTHY, served=server))
    assert found.remedy.endswith("; and start with `lowmem-wsgi run app:app`")


@pytest.mark.parametrize(
    "figures", [{"token": False}, {"secret": Secret(changes=True)}, {"secret": Secret(length=3)}]
)
def test_a_remedy_with_a_secret_is_no_text_for_a_shell(figures: dict[str, Any]) -> None:
    """A platform's form does not run $(...): the secret would be the text in the documentation."""
    (found,) = findings(replace(HEALTHY, **figures))
    assert "$(" not in found.remedy
    assert found.remedy.startswith("run `python -c 'import secrets;")


@pytest.mark.parametrize(
    ("steps", "leaks"),
    [
        ([160_000] * 4, True),
        ([160_000] * 2, True),  # of a slow page
        ([900_000, 160_000, 160_000, 160_000], True),  # a thread has made something beside
        ([160_000, 160_000, -90_000, 160_000], True),  # or given something back
        ([160_000, 160_000, 160_000, 0], False),  # a cache that is full
        ([160_000, 160_000, 0, 0], False),
        ([900_000, 0, 0, 0], False),
        ([20_000] * 4, False),
        ([160_000], False),
        ([], False),
    ],
)
def test_a_leak_goes_on(steps: list[int], leaks: bool) -> None:
    growth, steady = growth_of([*accumulate(steps, initial=10_000_000)])
    assert steady == leaks
    if leaks:
        assert growth == 160_000 / STEP


@pytest.mark.parametrize(
    "page",
    [
        *("/accept", "/a/approve", "/vote/", "/like", "/buy", "/order", "/pay", "/charge"),
        *("/refund", "/run", "/cron", "/trigger", "/start", "/stop", "/sync", "/import"),
        *("/migrate", "/rebuild", "/publish", "/archive", "/revoke", "/drop", "/wipe"),
        *("/confirm", "/activate", "/mail", "/do_run", "/reorder", "/unlike", "/email"),
    ],
)
def test_a_page_that_seems_to_change_something_is_not_asked(page: str) -> None:
    assert CHANGES.search(page)


def test_other_pages_are_asked() -> None:
    for page in ("/", "/brunch", "/getting/display", "/border", "/dislikes", "/clients", "/report"):
        assert not CHANGES.search(page)
