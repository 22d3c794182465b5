"""README.md and docs/: what they say can be run, is there, and is up to date."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from helpers.docs import DOCS, FRAMEWORKS, PAGES, ROOT, blocks, languages, prose
from helpers.servers import clean_environ
from lowmem_wsgi.admin.diagnosis import FINDINGS, FULL
from lowmem_wsgi.memory import admission, ceiling, interrupt, monitor, trimmer, watchdog
from lowmem_wsgi.memory import gc_runner as collector
from lowmem_wsgi.memory import levels as governor
from lowmem_wsgi.settings import Settings, parse_duration, parse_size, table, threshold_bytes
from lowmem_wsgi.workers import recycling as recycle

TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
ROUTES = ("", "/", "/healthz", "/api/memory-status", "/api/force-cleanup")

# What a page may take for granted: an app, and a Django project.
PRELUDE = "app = lambda environ, start_response: (start_response('200 OK', []), [b'hello'])[1]"
DJANGO_SETTINGS = "SECRET_KEY = 'of a page of the documentation'\nROOT_URLCONF = 'mysite.urls'\n"

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def anchors(page: Path) -> set[str]:
    """The names that headings get where Markdown is shown (GitHub's way)."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def test_there_are_pages_to_test() -> None:
    assert {page.name for page in PAGES} >= {"README.md", "settings.md", "render.md"}


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(blocks(page, "python"))], ids=lambda page: page.name
)
def test_the_python_blocks_of_a_page_run_one_after_the_other(page: Path, tmp_path: Path) -> None:
    found, left_out = [], []
    for first, code in blocks(page, "python"):
        wanted = set(re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE))
        missing = {name for name in wanted & FRAMEWORKS if importlib.util.find_spec(name) is None}
        if missing:
            left_out.append(f"line {first} needs {', '.join(missing)}")
        else:
            found.append((first, code))
    (tmp_path / "mysite").mkdir()
    (tmp_path / "mysite" / "__init__.py").touch()
    (tmp_path / "mysite" / "settings.py").write_text(DJANGO_SETTINGS)
    # One script whose lines have the numbers of the page's, so that a traceback tells where.
    lines = [PRELUDE]
    for first, code in found:
        lines += [""] * (first - 1 - len(lines)) + code.splitlines()
    script = tmp_path / f"{page.stem}.py"
    script.write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:'cgi' is deprecated", script],  # webob
        cwd=tmp_path,
        env=clean_environ(
            {"XDG_RUNTIME_DIR": str(tmp_path), "DJANGO_SETTINGS_MODULE": "mysite.settings"}
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{page.name}:\n{done.stderr}"
    if left_out:
        pytest.skip(f"{page.name}: all other blocks ran; {'; '.join(left_out)}")


@each_page
def test_every_block_says_what_language_it_is_in(page: Path) -> None:
    assert set(languages(page)) <= {"python", "sh", "html", "json", "yaml", "toml", "text"}


@each_page
def test_blocks_of_data_can_be_read(page: Path) -> None:
    for _, text in blocks(page, "json"):
        json.loads(text)
    if "toml" in languages(page):
        tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no reader of TOML")
        for _, text in blocks(page, "toml"):
            tomllib.loads(text)
    if "yaml" in languages(page):
        yaml = pytest.importorskip("yaml", reason="make docs installs a reader of YAML")
        for _, text in blocks(page, "yaml"):
            assert isinstance(yaml.safe_load(text), dict)


@each_page
def test_the_shell_blocks_name_what_is_there(page: Path) -> None:
    wrong = []
    for first, code in blocks(page, "sh"):
        for number, line in enumerate(code.splitlines(), first):
            words = shlex.split(line, comments=True)
            wrong += [f"{page.name}:{number}: {word}" for word in missing(words)]
    assert not wrong


def missing(words: list[str]) -> Iterator[str]:
    """The words of a command that name a target, file, module or route that is not there."""
    if words[:1] == ["make"]:
        yield from (word for word in words[1:] if "=" not in word and word not in TARGETS)
    for word in words:
        address = re.fullmatch(r"(?:http://127\.0\.0\.1:\d+|\$SITE)(.*)", word)
        if address is not None:
            if address[1] not in ROUTES:
                yield word
        elif word.startswith("python:"):
            if importlib.util.find_spec(word.removeprefix("python:")) is None:
                yield word
        elif (
            word.endswith((".py", ".sh", ".txt", ".toml"))
            or word.startswith(("docs/", "examples/", "tests/", "tools/", "benchmarks/"))
        ) and not (ROOT / word).exists():
            yield word


@each_page
def test_every_variable_of_ours_that_is_named_exists(page: Path) -> None:
    named = set(re.findall(r"LOWMEM_[A-Z_]*[A-Z]", page.read_text(encoding="utf-8")))
    assert named <= {row.variable for row in table()}


@each_page
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@each_page
def test_every_file_that_is_named_exists(page: Path) -> None:
    named = re.findall(
        r"`((?:src|docs|examples|tests|guards|memory|admin|lowmem_wsgi)/[\w/]+\.(?:py|md|txt))`",
        prose(page),
    )
    package = ROOT / "src" / "lowmem_wsgi"
    places = (ROOT, package, package.parent)
    assert not [name for name in named if not any((place / name).exists() for place in places)]


@each_page
def test_tables_have_as_many_cells_in_each_row(page: Path) -> None:
    wrong = []
    width = 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        if width and cells and cells != width:
            wrong.append(f"{page.name}:{number}: {line}")
        width = cells
    assert not wrong


def generate(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, script, *arguments],
        env=clean_environ({}),
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_pages_that_are_made_are_up_to_date() -> None:
    done = generate(DOCS / "generate.py", "--check")
    assert done.returncode == 0, done.stderr


def test_a_stale_settings_page_is_told_and_written_anew(tmp_path: Path) -> None:
    script = tmp_path / "generate.py"
    script.write_text((DOCS / "generate.py").read_text(encoding="utf-8"), encoding="utf-8")
    assert generate(script, "--check").returncode == 1  # there is none
    assert generate(script).returncode == 0
    assert generate(script, "--check").returncode == 0
    page = tmp_path / "settings.md"
    page.write_text(page.read_text(encoding="utf-8").replace("512KB", "513KB"), encoding="utf-8")
    done = generate(script, "--check")
    assert done.returncode == 1
    assert "make docs" in done.stderr
    assert generate(script, "--chekc").returncode == 2


def test_a_row_that_is_marked_as_not_acting_yet_is_a_row(tmp_path: Path) -> None:
    script = tmp_path / "generate.py"
    text = (DOCS / "generate.py").read_text(encoding="utf-8")
    script.write_text(text.replace("NOT_YET = {", 'NOT_YET = {"gone": "x",', 1), encoding="utf-8")
    done = generate(script)
    assert done.returncode == 1
    assert "gone" in done.stderr


def test_the_page_on_the_source_document_lists_all_that_ultra_changes() -> None:
    text = (DOCS / "source-document.md").read_text(encoding="utf-8")
    section = text.partition("## LOWMEM_PRESET=ultra")[2]
    listed = set(re.findall(r"^\| `(LOWMEM_[A-Z_]+)`", section, re.MULTILINE))
    changed = {row.variable for row in table() if row.defaults["balanced"] != row.defaults["ultra"]}
    assert listed == changed - {"LOWMEM_PRESET"}


def constants_told(page: str, heading: str) -> dict[str, object]:
    """The table of constants below a heading: name -> value."""
    text = (DOCS / page).read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    rows = re.findall(r"^\| `([A-Z_]+)` \| ([^|]+) \|", text.partition("\n## ")[0], re.MULTILINE)
    return {name: value(number) for name, number in rows}


def test_the_collectors_constants_are_those_of_the_code() -> None:
    assert constants_told("how-it-works.md", "The collector") == {
        name: value
        for name, value in (vars(collector) | vars(trimmer)).items()
        if name.isupper() and name != "MB"
    }


def test_the_governors_and_the_monitors_constants_are_those_of_the_code() -> None:
    assert constants_told("memory.md", "The levels") == {
        name: getattr(governor, name) for name in ("UP", "DOWN", "MARGIN")
    }
    imported = {"MB", "LEVELS", "CALM", *map(str.upper, governor.LEVELS)}
    assert constants_told("memory.md", "The monitor") == {
        name: getattr(monitor, name)
        for name in vars(monitor)
        if name.isupper() and name not in imported
    }


@pytest.mark.parametrize(
    ("heading", "modules"),
    [
        ("Large uploads are turned away", [admission]),
        ("The worker is recycled", [recycle]),
        ("The ceiling", [ceiling]),
        ("The interrupt", [watchdog, interrupt]),
    ],
)
def test_the_constants_told_of_what_survives_are_those_of_the_code(
    heading: str, modules: list[ModuleType]
) -> None:
    told = constants_told("survive.md", heading)
    code = {name: getattr(module, name) for module in modules for name in vars(module)}
    assert told
    assert told == {name: code.get(name) for name in told}


def test_the_thresholds_that_are_told_are_those_of_the_code() -> None:
    text = (DOCS / "memory.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+ MB) \|(.*)\|$", text, re.MULTILINE)
    assert len(rows) >= 4
    rules = Settings.load({}, {})
    for limit, cells in rows:
        warn, critical = (
            threshold_bytes(share, parse_size(limit))
            for share in (rules.warn_at, rules.critical_at)
        )
        levels = governor.Levels(warn, critical)
        ok_again, warn_from, warn_again, critical_from = (
            parse_size(cells.split("|")[place]) for place in (1, 0, 3, 2)
        )
        for edge, zone in (
            (ok_again, governor.EASING),
            (warn_from, governor.HIGH),
            (warn_again, governor.FALLING),
            (critical_from, governor.OVER),
        ):
            assert (levels.zone(edge - 1), levels.zone(edge)) == (zone - 1, zone), (limit, edge)


def value(text: str) -> object:
    if "," in text:
        return {int(number) for number in text.split(",")}
    if "/" in text:
        above, _, below = text.partition("/")
        return int(above) / int(below)
    return parse_size(text) if text.endswith("B") else parse_duration(text)


def test_each_finding_of_the_diagnosis_leads_to_a_section_of_the_docs() -> None:
    for remedy in {*FINDINGS.values(), FULL}:
        page, _, anchor = remedy.partition("#")
        assert anchor in anchors(DOCS / page), remedy
