"""Run the frameworks' own tests without LowMemory and with it, and compare (make frameworks).

    python tests/frameworks/run.py [--page docs/frameworks.md] [FRAMEWORK...]

Downloads the source of each installed framework into a temporary folder. Exits with 1 if a test
fails that passes without LowMemory and that suites.py does not explain, or if an explanation fits
no failure any more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from suites import PRESETS, SUITES, Suite, expected, stale

HERE = Path(__file__).parent
MINUTES = 10  # for one run of one suite

PAGE = """\
# Frameworks

<!-- Made by `make frameworks` from a run of tests/frameworks. Do not edit. -->

The frameworks' own tests, from their source distributions, with every app wrapped in LowMemory:
once with the preset `memory` and once with the defaults (`balanced`). A cell says how many tests
pass, of those that pass without LowMemory. Run on {date} with Python {python}, {system}.

| | tests | `memory` | `balanced` | requests through LowMemory |
|---|---|---|---|---|
{rows}

How each app is wrapped:

{wrapped}

## Each test that fails only with LowMemory

| framework | preset | tests | why |
|---|---|---|---|
{reasons}
"""


class Result(NamedTuple):
    """What one run gave: the names of the tests that passed, and requests through LowMemory."""

    passed: list[str]
    requests: int


def download(suite: Suite, folder: Path) -> Path:
    """Download and unpack the source of the installed version. Return where its tests run."""
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--no-binary", ":all:", "--dest", str(folder)),
            f"{suite.package}=={version(suite.package)}",
        ],
        check=True,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "FALCON_DISABLE_CYTHON": "1"},  # pip builds metadata, and no more
    )
    archive = next(folder.glob("*.tar.gz"))
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    archive.unlink()
    return next(folder.iterdir()) / suite.folder


def run(framework: str, preset: str, folder: Path) -> Result:
    """Run a suite. `preset`: of LowMemory, or bare. Raises RuntimeError if no result came."""
    suite = SUITES[framework]
    result = folder.parent / f"{preset}.json"
    command = [sys.executable, str(HERE / "wrapped.py"), framework, preset, str(result)]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("LOWMEM_")}
    done = subprocess.run(
        [*command, *suite.command],
        cwd=folder,
        env={**environ, "XDG_RUNTIME_DIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60 * MINUTES,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    found = Result(**json.loads(result.read_text("utf-8"))) if result.exists() else None
    if found is None or not found.passed or (preset != "bare") != (found.requests > 0):
        raise RuntimeError(f"{suite.title}, {preset}: no result to compare\n{done.stdout[-4000:]}")
    return found


def compare(framework: str, results: dict[str, Result]) -> Iterator[str]:
    """Yield what is wrong: failures without an explanation, explanations without a failure."""
    for preset in PRESETS:
        broken = broken_by(results, preset)
        for test in broken:
            if expected(framework, preset, test) is None:
                yield f"{framework}, {preset}: {test} fails, and suites.py has no reason for it"
        for pattern in stale(framework, preset, broken):
            yield f"{framework}, {preset}: nothing fails that fits {pattern} in suites.py"


def broken_by(results: dict[str, Result], preset: str) -> list[str]:
    """Return the tests that pass without LowMemory only."""
    return sorted({*results["bare"].passed} - {*results[preset].passed})


def page(all_results: dict[str, dict[str, Result]]) -> str:
    """Return docs/frameworks.md."""
    rows, reasons = [], []
    for framework, results in all_results.items():
        suite = SUITES[framework]
        whole = len(results["bare"].passed)
        cells = [f"{suite.title} {version(suite.package)}", str(whole)]
        why: dict[str, tuple[set[str], list[str]]] = {}
        for preset in PRESETS:
            broken = broken_by(results, preset)
            cells.append(f"{'🔴' if broken else '🟢'} {whole - len(broken)}/{whole}")
            for test in broken:
                row = expected(framework, preset, test)
                presets, tests = why.setdefault(row.why if row else "**Not known.**", (set(), []))
                presets.add(preset)
                tests.append(_short(test))
        cells.append(str(results["balanced"].requests))
        rows.append("| " + " | ".join(cells) + " |")
        reasons += [
            f"| {suite.title} | {'both' if len(presets) > 1 else presets.pop()} "
            f"| {', '.join(dict.fromkeys(tests))} | {text} |"
            for text, (presets, tests) in why.items()
        ]
    return PAGE.format(
        date=time.strftime("%Y-%m-%d"),
        python=platform.python_version(),
        system=f"{platform.system()}, {' '.join(platform.libc_ver())}".strip(", "),
        rows="\n".join(rows),
        wrapped="\n".join(
            f"* {SUITES[name].title}: {SUITES[name].wrapped}." for name in all_results
        ),
        reasons="\n".join(reasons) or "| none | | | |",
    )


def _short(test: str) -> str:
    """Return the name of a test without its module and its parameters."""
    name = test.partition("[")[0]
    return f"`{name.rpartition('::' if '::' in name else '.')[2]}`"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--page", type=Path, help="write the results to this Markdown file")
    parser.add_argument("frameworks", nargs="*", metavar="FRAMEWORK", help="all, if none is given")
    given = parser.parse_args()
    unknown = {*given.frameworks} - {*SUITES}
    if unknown:
        parser.error(f"no such framework: {', '.join(unknown)} (there are {', '.join(SUITES)})")
    all_results: dict[str, dict[str, Result]] = {}
    wrong: list[str] = []
    for framework in given.frameworks or SUITES:
        with tempfile.TemporaryDirectory(prefix="frameworks-") as temporary:
            folder = download(SUITES[framework], Path(temporary))
            results: dict[str, Result] = {}
            for preset in ("bare", *PRESETS):
                began = time.monotonic()
                results[preset] = run(framework, preset, folder)
                print(
                    f"{SUITES[framework].title}, {preset}: {len(results[preset].passed)} passed, "
                    f"{results[preset].requests} requests through LowMemory, "
                    f"{time.monotonic() - began:.0f} s",
                    flush=True,
                )
        all_results[framework] = results
        wrong += compare(framework, results)
    if given.page:
        given.page.write_text(page(all_results), encoding="utf-8")
    print("\n".join(wrong) or "Each failure has its reason in tests/frameworks/suites.py.")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped")
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"frameworks: {error}")
