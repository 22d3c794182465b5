"""What the log says at the start."""

from __future__ import annotations

import pytest

from lowmem_wsgi.admin import in_force
from lowmem_wsgi.admin.in_force import at_start, of_memory, of_python
from lowmem_wsgi.memory.reading import Memory
from lowmem_wsgi.settings import GB, MB, Settings
from lowmem_wsgi.system.native import has_gil, on_glibc
from lowmem_wsgi.system.usage import Swap, Usage


@pytest.mark.parametrize("version", [(3, 14, 0), (3, 14, 4)])
def test_the_releases_that_keep_more_memory_are_named_and_the_one_that_does_not(
    version: tuple[int, int, int],
) -> None:
    warning = of_python(version)
    assert warning is not None
    assert ".".join(map(str, version)) in warning
    assert "Use 3.14.5 or later" in warning


@pytest.mark.parametrize("version", [(3, 10, 13), (3, 13, 99), (3, 14, 5), (3, 15, 0)])
def test_other_releases_are_not_warned_of(version: tuple[int, int, int]) -> None:
    assert of_python(version) is None


def test_a_free_threaded_build_has_another_collector_and_is_not_warned_of() -> None:
    assert of_python((3, 14, 0), gil=False) is None


def test_without_a_gil_the_start_says_when_garbage_is_collected() -> None:
    settings = Settings.load({}, {})
    assert "3 passes after each request" in in_force.in_force(settings)
    said = in_force.in_force(settings, gil=False)
    assert "garbage collected when memory has grown, because this Python has no GIL" in said
    assert "passes after" not in said


def test_the_start_logs_the_limits_and_the_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(in_force, "of_python", lambda version, gil: "an old one")
    with caplog.at_level("INFO", logger="lowmem_wsgi"):
        in_force.announce(Settings.load({}, {}), Memory(256 * MB))
    limits, memory, warning = (record.getMessage() for record in caplog.records)
    assert "uploads to 512 KB (LOWMEM_MAX_UPLOAD)" in limits
    assert "256 MB" in memory
    assert warning == "an old one"


@pytest.mark.parametrize(
    ("usage", "swap", "said"),
    [
        (
            Usage(43 * MB, 512 * MB, "cgroup v2"),
            Swap(0, 0),
            "Memory: 43 MB of 512 MB (the container, cgroup v2).",
        ),
        (
            Usage(180 * MB, 480 * MB, "machine"),
            Swap(12 * MB, 512 * MB),
            "Memory: 180 MB of 480 MB (this machine). The 512 MB of swap do not count: a site that "
            "swaps is slow.",
        ),
        (
            Usage(30 * MB, 512 * MB, "process"),
            None,
            "Memory: no container's limit found. Each process is measured alone, against 512 MB. "
            "Set LOWMEM_MEMORY_LIMIT to what the plan allows, divided by the number of workers.",
        ),
    ],
)
def test_the_start_says_whose_memory_is_read(usage: Usage, swap: Swap | None, said: str) -> None:
    assert of_memory(usage, swap) == said


def test_the_start_does_not_ask_for_a_limit_that_is_set() -> None:
    said = of_memory(Usage(30 * MB, 256 * MB, "process"), None, asked=256 * MB)
    assert said == (
        "Memory: no container's limit found. Each process is measured alone, against 256 MB "
        "(LOWMEM_MEMORY_LIMIT)."
    )


def test_one_line_says_what_a_server_has_to_live_with() -> None:
    settings = Settings.load({}, {})
    tuned = {"PYTHONMALLOC": "malloc", "MALLOC_ARENA_MAX": "1"}
    line = at_start(settings, Usage(0, 512 * MB, "cgroup v2"), 2, 3, tuned)
    assert line == (
        "limit 512 MB (cgroup v2); warn at 400 MB, critical at 450 MB; 2 workers of 3 threads; "
        "allocator: the C library, 1 heap; imported late: nothing"
    )
    line = at_start(settings, Usage(0, GB, "process"), 1, 1, {"MALLOC_ARENA_MAX": "two"})
    assert "limit 1 GB (for each process; the system enforces none)" in line
    assert "1 worker of 1 thread; allocator: " in line


@pytest.mark.parametrize(
    ("given", "environ", "cs"),
    [
        ({}, {}, on_glibc() and has_gil()),
        ({"system_malloc": "off"}, {}, False),
        ({"trim": "off"}, {}, False),
        ({"trim": "off"}, {"PYTHONMALLOC": "malloc"}, True),
        ({}, {"PYTHONMALLOC": "pymalloc"}, False),
    ],
)
def test_the_start_says_who_holds_the_objects_of_requests(
    given: dict[str, str], environ: dict[str, str], cs: bool
) -> None:
    holder = "the C library" if cs else "Python's own"
    line = at_start(Settings.load(given, {}), Usage(0, GB, "process"), 1, 1, environ)
    assert f"allocator: {holder}; " in line
