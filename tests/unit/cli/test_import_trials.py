"""What is tried late or left out, and what is said of it; with processes that are made up."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lowmem_wsgi.cli.imports import icicle, report, tree, trials
from lowmem_wsgi.cli.imports.process import Failure, Measured, still_open
from lowmem_wsgi.cli.imports.tree import Node
from lowmem_wsgi.cli.imports.trials import Candidate

MB = 1024 * 1024
PYTHON = ("start", 1, 0.0, 4 * MB, 8 * MB)


def is_app(node: Node) -> bool:
    return node.name in ("app", "views")


def events(*modules: tuple[str, int, str]) -> list[tuple[Any, ...]]:
    """A process whose app imports these: name, MB, the import's place."""
    size, found = 4 * MB, [PYTHON, ("open", 1, 0.0, 4 * MB, 8 * MB, "app", "/srv/app.py", "")]
    for name, growth, where in modules:
        found.append(("open", 1, 0.0, size, size, name, "", where))
        size += growth * MB
        found.append(("close", 1, 0.0, size, size))
    return [*found, ("close", 1, 0.0, size, size), ("end", 1, 0.0, size, size)]


class Machine:
    """An app that imports `all`, one after the other; and what hinders."""

    def __init__(self, **all_: int) -> None:
        self.all = all_
        self.at_once: dict[str, str] = {}  # package -> place that loads it at once
        self.used: dict[str, str] = {}  # package -> place that uses it while the app loads
        self.needed: dict[str, str] = {}  # package -> place that needs it
        self.asked: list[str] = []

    def __call__(
        self,
        *,
        late: Sequence[str] | None = None,
        without: Sequence[str] = (),
        moved: Sequence[str] = (),
    ) -> Measured:
        words = {"late": late, "without": without or None, "moved": moved or None}
        self.asked += [f"{how} {','.join(x)}" for how, x in words.items() if x is not None]
        for name in without:
            if name in self.needed:
                message = f"ModuleNotFoundError: No module named '{name}'"
                return Measured([], Failure("raised", message, self.needed[name]))
        for name in moved:
            if name in self.used:
                return Measured([], Failure("raised", "Used: x is used", self.used[name]))
        waits = {name for name in late or () if name not in {*self.at_once, *self.used}}
        rest = {n: s for n, s in self.all.items() if n not in {*waits, *without, *moved}}
        told = events(*((name, size, self.at_once.get(name, "")) for name, size in rest.items()))
        if late is not None:
            told.append(("late", [(n, self.used[n]) for n in late if n in self.used]))
        return Measured(told, None)


def attempt(machine: Machine) -> trials.Found:
    packages = tree.by_package(tree.build("app:app", machine().events), is_app)
    chosen = trials.candidates(packages, is_app, [], MB)
    return trials.attempt(chosen, packages.bytes, machine, lambda what: None, is_app)


def said(found: trials.Found) -> dict[str, list[str]]:
    return {
        each.candidate.name: list(trials.sentences(each, report.size, str)) for each in found.tried
    }


def test_candidates_are_what_the_app_imports_itself_and_what_is_heavy() -> None:
    deep = [
        PYTHON,
        *(
            ("open", 1, 0.0, 4 * MB, 0, name, "", f"{name}:1")
            for name in ("app", "views", "pandas")
        ),
        ("open", 1, 0.0, 5 * MB, 0, "numpy", "", "pandas:3"),
        *(("close", 1, 0.0, size * MB, 0) for size in (13, 14, 14, 14)),
        ("end", 1, 0.0, 14 * MB, 0),
    ]
    packages = tree.build("app:app", deep)
    assert trials.candidates(packages, is_app, [], MB) == [Candidate("pandas", 10 * MB, "pandas:1")]
    found = trials.candidates(packages, is_app, ["numpy.linalg", "absent"], MB)
    assert found == [
        Candidate("pandas", 10 * MB, "pandas:1"),
        Candidate("numpy", 8 * MB, "pandas:3"),
    ]
    assert trials.candidates(packages, is_app, ["numpy"], 9 * MB) == found[:1]


def test_a_package_counts_once_where_it_is_below_itself() -> None:
    packages = tree.build("r", events(("a", 2, "")))
    packages.child("x").child("a").own_bytes = 3 * MB
    packages.children["x"].children["a"].child("b").child("a").own_bytes = MB
    packages.add_up()
    assert trials.outermost(packages, "a") == 6 * MB


def test_what_can_be_late_is_late_together() -> None:
    found = attempt(Machine(pandas=30, flask=10))
    assert found.late == ["pandas", "flask"]
    assert found.together is not None
    assert found.together.saved == 40 * MB
    assert said(found)["pandas"] == [
        "late: saves 30.0 MB until the app uses pandas",
        "left out: saves 30.0 MB, and the app loads",
    ]


def test_what_is_loaded_or_used_at_once_is_said_with_its_line(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text("from flask import Flask\napp = Flask(__name__)\nimport pandas\n")
    machine = Machine(flask=10, numpy=8, pandas=30)
    machine.at_once = {"flask": f"{app}:1"}
    machine.used = {"flask": f"{app}:2", "numpy": f"{app}:2"}
    machine.needed = {"flask": f"{app}:1", "numpy": f"{app}:9"}
    machine.all |= {"gevent": 2}
    found = attempt(machine)
    assert found.late == ["pandas"]
    del machine.used["flask"]
    again = attempt(machine)
    words = said(found) | {"flask again": said(again)["flask"]}
    first, where = f"{app}:1  from flask import Flask", f"{app}:2  app = Flask(__name__)"
    assert words == {
        "pandas": [
            "late: saves 30.0 MB until the app uses pandas",
            "left out: saves 30.0 MB, and the app loads",
        ],
        "flask": [
            f"late: saves nothing; the app uses flask while it loads: {where}",
            f"left out: the app does not load: {app}:1  from flask import Flask",
        ],
        "numpy": [
            f"late: saves nothing; the app uses numpy while it loads: {where}",
            f"left out: the app does not load: {app}:9",
        ],
        "gevent": [
            "late: not tried, it must patch the standard library before others take from it",
            "left out: saves 2.0 MB, and the app loads",
        ],
        "flask again": [
            f"late: saves nothing; the app uses flask while it loads: {first}",
            "imported in functions, not at the top: saves 10.0 MB until one is called",
            f"left out: the app does not load: {app}:1  from flask import Flask",
        ],
    }
    assert "late gevent" not in machine.asked


def test_nothing_to_try_measures_nothing() -> None:
    machine = Machine()
    assert trials.attempt([], 0, machine, print, is_app) == trials.Found([], None, [])
    assert machine.asked == []


def test_an_app_that_does_not_load_late_is_not_told_to_be_late() -> None:
    machine = Machine(pandas=30)

    def broken(**how: Any) -> Measured:
        if how.get("late"):
            return Measured([], Failure("timeout", "is not loaded after 1 s"))
        return machine(**how)

    found = trials.attempt([Candidate("pandas", 30 * MB, "")], 34 * MB, broken, print, is_app)
    assert found.late == []
    assert said(found)["pandas"][0] == "late: the app is not loaded after 1 s"


def test_the_innermost_module_that_is_still_loading_is_known() -> None:
    told = [PYTHON, ("open", 1, 0, 0, 0, "a", "", ""), ("open", 2, 0, 0, 0, "x", "", "")]
    told += [("open", 1, 0, 0, 0, "b", "", ""), ("close", 1, 0, 0, 0)]
    assert [event[5] for event in still_open(told)] == ["a"]


# --- The report


def made(name: str = "pandas", folder: str = "/srv") -> report.Report:
    machine = Machine(**{name: 30})
    modules = tree.build("app:app", machine().events)
    packages = tree.by_package(modules, is_app)
    return report.Report("app:app", "3.11.7", modules, packages, MB, attempt(machine), folder)


def test_the_text_has_totals_tree_savings_and_the_command() -> None:
    text = report.text(made(), colour=False)
    assert text.splitlines()[0].startswith("app:app on Python 3.11.7: 34.0 MB, and ")
    assert "├─ app" in text or "└─ app" in text
    assert "pandas   30.0 MB  late: saves 30.0 MB" in text
    command = "LOWMEM_LAZY_HEAVY=on LOWMEM_HEAVY_MODULES=pandas lowmem-wsgi run app:app"
    assert text.endswith(command)
    assert "\x1b" not in text
    coloured = report.text(made(), colour=True)
    assert "\x1b[1m" in coloured
    assert report.text(made(), colour=False) == re.sub(r"\x1b\[\d+m", "", coloured)


@pytest.mark.parametrize(
    ("where", "shown"),
    [
        ("/srv/app.py:3", "app.py:3"),
        ("/srv/.venv/lib/python3.11/site-packages/pandas/x.py:3", "pandas/x.py:3"),
        ("/usr/lib/python3.14t/ssl.py:3", "ssl.py:3"),
        ("/opt/app.py:3", "/opt/app.py:3"),
        ("", ""),
    ],
)
def test_a_place_is_as_short_as_it_can_be(where: str, shown: str) -> None:
    assert made().place(where) == shown


def test_the_document_is_json_and_has_all_figures() -> None:
    found = json.loads(json.dumps(report.document(made())))
    assert found["bytes"] == found["packages"]["bytes"] == found["modules"]["bytes"] == 34 * MB
    (tried,) = found["tried"]
    assert tried["late"] == {
        "app_loads": True,
        "saved_bytes": 30 * MB,
        "loaded_by": None,
        "error": None,
        "error_at": None,
    }
    assert tried["in_functions"] is None


@pytest.mark.parametrize(
    "text", ["</script><script>alert(1)</script>", "<!--", "{{data}}", "\udc80"]
)
def test_hostile_names_stay_text_in_the_page(text: str) -> None:
    plain, hostile = icicle.page(made()).decode(), icicle.page(made(text)).decode()
    assert hostile.count("<script") == plain.count("<script")
    assert hostile.count("<!--") == plain.count("<!--")
    data = hostile.split('id="data">')[1].split("</script>")[0]
    assert json.loads(data)["packages"][6][0][6][0][0] == text


def test_the_page_asks_for_nothing_outside() -> None:
    page = icicle.page(made()).decode()
    assert "default-src 'none'" in page
    assert "http://" not in page
    assert "https://" not in page
    assert "{{" not in page
