"""One site for each server and framework, and the page that is written of all results."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.cgroup import memory_cgroup
from helpers.servers import serve

from .kinds import APPS, FRAMEWORKS, KINDS, known
from .page import Results, write
from .site import LIFETIME, LIMIT, SECRET, TOKEN, Site

# As `lowmem-wsgi run` has it: malloc gives back pages, and not only whole arenas.
MALLOC = {"PYTHONMALLOC": "malloc", "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "131072"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--page", type=Path, help="write the results to this Markdown file")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "site" in metafunc.fixturenames:
        cells = [
            pytest.param(
                (server, framework),
                id=f"{server}-{framework}",
                marks=pytest.mark.xdist_group(f"{server}-{framework}"),
            )
            for server in KINDS
            for framework in FRAMEWORKS
        ]
        metafunc.parametrize("site", cells, indirect=True, scope="module")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            cell: Any = item.callspec.params["site"]
            found = known(item.originalname, *cell)
            if found is not None:
                # Any other error, such as of a server that does not start, is a failure.
                item.add_marker(
                    pytest.mark.xfail(reason=found.reason, raises=found.raises, strict=True)
                )


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """A framework's app on a server, in a container of its own."""
    server, framework = request.param
    kind = KINDS[server]
    tmp_path = Path(tempfile.mkdtemp(prefix="matrix-"))  # pytest's own is closed to other users
    tmp_path.chmod(0o777)
    try:
        missing = kind.missing(tmp_path)
        if missing and os.environ.get("TESTS_NEED_SERVERS"):
            pytest.fail(missing)
        if missing:
            pytest.skip(missing)
        with (
            memory_cgroup(LIMIT) as group,
            serve(
                f"on_{framework}:app",
                server,
                tmp_path=tmp_path,
                command=lambda port: kind.words(f"on_{framework}:app", port, tmp_path),
                cwd=APPS,
                cgroup=group.path,
                env=MALLOC,
                SESSION_DIR=str(tmp_path),
                XDG_RUNTIME_DIR=str(tmp_path),
                PYTHONDONTWRITEBYTECODE="1",
                LOWMEM_ADMIN_TOKEN=TOKEN,
                LOWMEM_SECRET_KEY=SECRET,
                LOWMEM_SESSION_LIFETIME=f"{LIFETIME}s",
            ) as running,
        ):
            yield Site(running, kind, group)
    finally:
        shutil.rmtree(tmp_path, ignore_errors=True)


class Recorder:
    """Notes the outcome of each test, and writes the page when the run is over."""

    def __init__(self, page: Path) -> None:
        self._page = page
        self._results: Results = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name, _, cell = report.nodeid.rpartition("::")[2].partition("[")
        server, _, framework = cell.rstrip("]").partition("-")
        if server not in KINDS or (report.when != "call" and report.passed):
            return
        outcome, reason = report.outcome, ""
        if report.skipped and hasattr(report, "wasxfail"):
            outcome, reason = "failed", report.wasxfail
        elif report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
        self._results.setdefault((server, framework), {})[name] = (outcome, reason)

    def pytest_sessionfinish(self) -> None:
        write(self._page, self._results)


def pytest_configure(config: pytest.Config) -> None:
    page = config.getoption("--page", None)
    if page is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(page))
