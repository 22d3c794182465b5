"""docs/servers.md, from the results of a run."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from pathlib import Path

from .kinds import FRAMEWORKS, KINDS, Kind, version

# (server, framework) -> test -> (outcome, the reason of a failure that is known, or of a skip)
Results = dict[tuple[str, str], dict[str, tuple[str, str]]]

TEMPLATE = """\
# Servers

<!-- Made by `make matrix` from a run of tests/matrix. Do not edit. -->

Each cell is a site of one framework on one server, wrapped in the one line, in a container of
192 MB. The first number is how many tests of the contract it passes, the second how many were run:
requests, uploads, streams, sessions, the status, a request that asks for too much memory, a worker
that has grown, the end. Run on {date} with Python {python}, {system}.

{matrix}

{summary}

Versions: {versions}.

## What the tests ask

{tests}

## Each server

{servers}

## Cells that are not all green

{reasons}
"""


def write(page: Path, results: Results) -> None:
    """Write the page, whatever order the results came in."""
    cells = ((server, framework) for server in KINDS for framework in FRAMEWORKS)
    results = {at: dict(sorted(results[at].items())) for at in cells if at in results}
    page.write_text(
        TEMPLATE.format(
            date=time.strftime("%Y-%m-%d"),
            python=platform.python_version(),
            system=f"{platform.system()}, {' '.join(platform.libc_ver())}".strip(", "),
            matrix="\n".join(_matrix(results)),
            summary=_summary(results),
            versions=", ".join(_versions()),
            tests="\n".join(_tests(results)),
            servers="\n\n".join(map(_server, KINDS.values())),
            reasons="\n".join(_reasons(results)),
        ),
        encoding="utf-8",
    )


def _matrix(results: Results) -> Iterator[str]:
    yield "| | " + " | ".join(framework.title for framework in FRAMEWORKS.values()) + " |"
    yield "|---|" + "---|" * len(FRAMEWORKS)
    for server, kind in KINDS.items():
        cells = (cell(results.get((server, framework), {})) for framework in FRAMEWORKS)
        yield f"| {kind.title} | " + " | ".join(cells) + " |"


def cell(tests: dict[str, tuple[str, str]]) -> str:
    """Return how many tests passed, of how many; "not run" where none was."""
    outcomes = [outcome for outcome, _ in tests.values() if outcome != "skipped"]
    if not outcomes:
        return "not run"
    passed = outcomes.count("passed")
    sign = "🟢" if passed == len(outcomes) else "🔴"
    return f"{sign} {passed}/{len(outcomes)}"


def _summary(results: Results) -> str:
    outcomes = [outcome for tests in results.values() for outcome, _ in tests.values()]
    run = len(outcomes) - outcomes.count("skipped")
    return f"In all: {outcomes.count('passed')} of {run} tests passed, in {len(results)} cells."


def _versions() -> Iterator[str]:
    packages = [kind.package for kind in KINDS.values()]
    packages += [framework.package for framework in FRAMEWORKS.values() if framework.package]
    for package in dict.fromkeys(packages):
        yield f"{package} {version(package) or '(not installed)'}"


def _tests(results: Results) -> Iterator[str]:
    names = dict.fromkeys(name for tests in results.values() for name in tests)
    return (f"* {_plain(name)}" for name in names)


def _plain(test: str) -> str:
    words = test.removeprefix("test_").replace("_", " ")
    return words[0].upper() + words[1:]


def _server(kind: Kind) -> str:
    command = kind.command.format(module="app", name="app", port=8000, venv='"$VIRTUAL_ENV"')
    notes = "\n".join(f"* {note}" for note in kind.notes)
    return f"### {kind.title}\n\n```sh\n{command}\n```\n\n{notes}"


def _reasons(results: Results) -> Iterator[str]:
    """One row for each reason: which tests do not pass where, and why."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    for (server, framework), tests in results.items():
        place = f"{KINDS[server].title} × {FRAMEWORKS[framework].title}"
        for name, (outcome, reason) in tests.items():
            if outcome == "passed":
                continue
            place_of = found.setdefault(reason or "**Not explained yet.**", {})
            place_of.setdefault(_plain(name), {})[place] = None
    if not found:
        yield "There is none."
        return
    yield "| why | what does not hold | where |"
    yield "|---|---|---|"
    for reason, tests_of in found.items():
        places = dict.fromkeys(place for places in tests_of.values() for place in places)
        yield f"| {reason} | {'; '.join(tests_of)} | {_short([*places])} |"


def _short(places: list[str]) -> str:
    """Name a whole row or column of the matrix by its title."""
    pairs = [tuple(place.split(" × ")) for place in places]
    servers, frameworks = (list(dict.fromkeys(side)) for side in zip(*pairs, strict=True))
    if len(pairs) < len(servers) * len(frameworks):
        return ", ".join(places)
    all_of = {len(KINDS): "every server", len(FRAMEWORKS): "every framework"}
    left = "every server" if len(servers) == len(KINDS) else ", ".join(servers)
    right = all_of[len(FRAMEWORKS)] if len(frameworks) == len(FRAMEWORKS) else ", ".join(frameworks)
    return f"{left} × {right}"
