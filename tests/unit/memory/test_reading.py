"""Reading the container's memory from trees of files like those of real systems."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.forks import asked
from lowmem_wsgi.memory.reading import Memory
from lowmem_wsgi.system.cgroup import Container
from lowmem_wsgi.system.procfs import process_seconds, read_machine
from lowmem_wsgi.system.usage import Swap

MB = 1024 * 1024
NO_LIMIT_V1 = 9223372036854771712

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw\n"
V1 = "35 28 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


def tree(root: Path, files: dict[str, object]) -> str:
    """Lay out files under `root`; its path."""
    for name, content in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n" if not str(content).endswith("\n") else str(content))
    return str(root)


def meminfo(total_mb: int = 8192, available_mb: int = 6000, swap_mb: int = 0) -> str:
    return (
        f"MemTotal: {total_mb * 1024} kB\nMemAvailable: {available_mb * 1024} kB\n"
        f"SwapTotal: {swap_mb * 1024} kB\nSwapFree: {swap_mb * 1000} kB\n"
    )


def v2_group(path: str, used: int, limit: object, cache: int = 0) -> dict[str, object]:
    return {
        f"{path}/memory.current": used * MB,
        f"{path}/memory.max": limit,
        f"{path}/memory.stat": f"anon 1\ninactive_file {cache * MB}\nactive_file 5\n",
    }


def v1_group(path: str, used: int, limit: int, cache: int = 0) -> dict[str, object]:
    return {
        f"{path}/memory.usage_in_bytes": used * MB,
        f"{path}/memory.limit_in_bytes": limit,
        f"{path}/memory.stat": f"inactive_file 7\ntotal_inactive_file {cache * MB}\n",
    }


GROUP = "/sys/fs/cgroup"
GROUP1 = "/sys/fs/cgroup/memory"

# name -> (files, used MB, limit MB, source), or None for what is read where there is no container.
SHAPES: dict[str, tuple[dict[str, object], tuple[int, int, str] | None]] = {
    "v2, plain": (
        {
            "/proc/self/cgroup": "0::/app",
            "/proc/self/mountinfo": V2,
            **v2_group(f"{GROUP}/app", 300, 512 * MB, cache=100),
        },
        (200, 512, "cgroup v2"),
    ),
    "v2, nested, the parent's limit is lower and its usage counts": (
        {
            "/proc/self/cgroup": "0::/site/worker",
            "/proc/self/mountinfo": V2,
            **v2_group(f"{GROUP}/site/worker", 100, 900 * MB),
            **v2_group(f"{GROUP}/site", 250, 400 * MB, cache=50),
        },
        (200, 400, "cgroup v2"),
    ),
    "v2, only an ancestor has a limit": (
        {
            "/proc/self/cgroup": "0::/a/b/c",
            "/proc/self/mountinfo": V2,
            **v2_group(f"{GROUP}/a/b/c", 10, "max"),
            **v2_group(f"{GROUP}/a/b", 20, "max"),
            **v2_group(f"{GROUP}/a", 30, 256 * MB),
        },
        (30, 256, "cgroup v2"),
    ),
    "v2, in a container that sees itself as /": (
        {
            "/proc/self/cgroup": "0::/",
            "/proc/self/mountinfo": V2,
            **v2_group(GROUP, 120, 512 * MB, cache=20),
        },
        (100, 512, "cgroup v2"),
    ),
    "v2, the mount begins at the container's own cgroup": (
        {
            "/proc/self/cgroup": "0::/docker/abc",
            "/proc/self/mountinfo": V2.replace(" / /sys", " /docker/abc /sys"),
            **v2_group(GROUP, 120, 512 * MB),
        },
        (120, 512, "cgroup v2"),
    ),
    "v2, a path that climbs out of the namespace": (
        {
            "/proc/self/cgroup": "0::/../other",
            "/proc/self/mountinfo": V2,
            **v2_group(GROUP, 120, 512 * MB),
        },
        (120, 512, "cgroup v2"),
    ),
    "v2, memory.high lower than memory.max": (
        {
            "/proc/self/cgroup": "0::/app",
            "/proc/self/mountinfo": V2,
            **v2_group(f"{GROUP}/app", 300, 512 * MB),
            f"{GROUP}/app/memory.high": 400 * MB,
        },
        (300, 400, "cgroup v2"),
    ),
    "v2, no limit": (
        {
            "/proc/self/cgroup": "0::/app",
            "/proc/self/mountinfo": V2,
            **v2_group(f"{GROUP}/app", 300, "max"),
        },
        None,
    ),
    "v1": (
        {
            "/proc/self/cgroup": "5:cpu:/x\n4:memory:/app\n",
            "/proc/self/mountinfo": V1,
            **v1_group(f"{GROUP1}/app", 300, 512 * MB, cache=100),
        },
        (200, 512, "cgroup v1"),
    ),
    "v1, controllers mounted together": (
        {
            "/proc/self/cgroup": "4:cpu,memory:/app\n",
            "/proc/self/mountinfo": V1.replace("rw,memory", "rw,cpu,memory"),
            **v1_group(f"{GROUP1}/app", 300, 512 * MB),
        },
        (300, 512, "cgroup v1"),
    ),
    "v1 in Docker: the path in /proc is the host's": (
        {
            "/proc/self/cgroup": "4:memory:/docker/abc\n",
            "/proc/self/mountinfo": V1.replace(" / /sys", " /docker/abc /sys"),
            **v1_group(GROUP1, 300, 512 * MB),
        },
        (300, 512, "cgroup v1"),
    ),
    "v1 in Docker, mounted from the root: the path is not there": (
        {
            "/proc/self/cgroup": "4:memory:/docker/abc\n",
            "/proc/self/mountinfo": V1,
            **v1_group(GROUP1, 300, 512 * MB),
        },
        (300, 512, "cgroup v1"),
    ),
    "v1, no limit": (
        {
            "/proc/self/cgroup": "4:memory:/app\n",
            "/proc/self/mountinfo": V1,
            **v1_group(f"{GROUP1}/app", 300, NO_LIMIT_V1),
        },
        None,
    ),
    "hybrid: v2 is there, memory is v1's": (
        {
            "/proc/self/cgroup": "4:memory:/app\n0::/app\n",
            "/proc/self/mountinfo": V2.replace("cgroup rw,", "cgroup/unified rw,") + V1,
            "/sys/fs/cgroup/unified/app/cgroup.procs": "1",
            **v1_group(f"{GROUP1}/app", 300, 512 * MB),
        },
        (300, 512, "cgroup v1"),
    ),
    "hybrid, v2 mounted elsewhere": (
        {
            "/proc/self/cgroup": "4:memory:/app\n0::/app\n",
            "/proc/self/mountinfo": V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified") + V1,
            **v1_group(f"{GROUP1}/app", 300, 512 * MB),
        },
        (300, 512, "cgroup v1"),
    ),
    "a limit above the machine's memory is none": (
        {
            "/proc/self/cgroup": "0::/app",
            "/proc/self/mountinfo": V2,
            **v2_group(f"{GROUP}/app", 300, 16384 * MB),
        },
        None,
    ),
    "no cgroup at all": ({}, None),
    "no mountinfo": ({"/proc/self/cgroup": "0::/app", **v2_group(GROUP, 1, 2 * MB)}, None),
    "files missing": ({"/proc/self/cgroup": "0::/app", "/proc/self/mountinfo": V2}, None),
    "usage missing": (
        {
            "/proc/self/cgroup": "0::/app",
            "/proc/self/mountinfo": V2,
            f"{GROUP}/app/memory.max": 512 * MB,
        },
        None,
    ),
    "stat missing: nothing is taken off": (
        {
            "/proc/self/cgroup": "0::/app",
            "/proc/self/mountinfo": V2,
            f"{GROUP}/app/memory.max": 512 * MB,
            f"{GROUP}/app/memory.current": 300 * MB,
        },
        (300, 512, "cgroup v2"),
    ),
    "garbage in every file": (
        {
            "/proc/self/cgroup": "garbage\n0::/app\n:::::\n4:memory",
            "/proc/self/mountinfo": "garbage\n1 2 3 - \n" + V2,
            f"{GROUP}/app/memory.max": "a lot",
            f"{GROUP}/app/memory.current": "-5",
            f"{GROUP}/app/memory.stat": "inactive_file\ninactive_file x\n\x00",
        },
        None,
    ),
    "v1, a limit of an ancestor that is out of sight": (
        {
            "/proc/self/cgroup": "4:memory:/docker/abc\n",
            "/proc/self/mountinfo": V1.replace(" / /sys", " /docker/abc /sys"),
            **v1_group(GROUP1, 100, NO_LIMIT_V1),
            f"{GROUP1}/memory.stat": f"hierarchical_memory_limit {128 * MB}\n",
        },
        (100, 128, "cgroup v1"),
    ),
    "of equal limits the outer one, which holds more": (
        {
            "/proc/self/cgroup": "0::/pod/app",
            "/proc/self/mountinfo": V2,
            **v2_group(f"{GROUP}/pod/app", 100, 512 * MB),
            **v2_group(f"{GROUP}/pod", 500, 512 * MB),
        },
        (500, 512, "cgroup v2"),
    ),
    "a limit that is all of the machine's memory": (
        {
            "/proc/self/cgroup": "0::/app",
            "/proc/self/mountinfo": V2,
            **v2_group(f"{GROUP}/app", 900, 8192 * MB),
        },
        (900, 8192, "cgroup v2"),
    ),
    "a mount point with a space": (
        {
            "/proc/self/cgroup": "0::/app",
            "/proc/self/mountinfo": V2.replace("/sys/fs/cgroup", "/sys/fs/c\\040g"),
            **v2_group("/sys/fs/c g/app", 300, 512 * MB),
        },
        (300, 512, "cgroup v2"),
    ),
    "a mount point with a NUL": (
        {"/proc/self/cgroup": "0::/app", "/proc/self/mountinfo": V2.replace("/fs", "/\x00")},
        None,
    ),
    "more cache than usage": (
        {
            "/proc/self/cgroup": "0::/app",
            "/proc/self/mountinfo": V2,
            **v2_group(f"{GROUP}/app", 50, 512 * MB, cache=60),
        },
        (0, 512, "cgroup v2"),
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_container_is_read_right_or_not_at_all(tmp_path: Path, name: str) -> None:
    files, expected = SHAPES[name]
    usage = Container(tree(tmp_path, {"/proc/meminfo": meminfo(), **files})).read()
    found = usage and (usage.used // MB, usage.limit // MB, usage.source)
    assert found == expected


@pytest.mark.parametrize("name", SHAPES)
def test_there_is_always_a_reading_and_it_says_what_it_is_of(tmp_path: Path, name: str) -> None:
    files, expected = SHAPES[name]
    root = tree(tmp_path, {"/proc/meminfo": meminfo(), **files})
    usage = Memory(root=root, rss=lambda: 60 * MB).read()
    if expected is None:
        assert (usage.used, usage.limit, usage.source) == (60 * MB, 512 * MB, "process")
    else:
        assert usage.source == expected[2]


def test_files_that_may_not_be_read_are_as_good_as_missing(tmp_path: Path) -> None:
    files, _ = SHAPES["v2, plain"]
    root = tree(tmp_path, {"/proc/meminfo": meminfo(), **files})
    path = tmp_path / "sys/fs/cgroup/app/memory.current"
    path.unlink()
    path.mkdir()  # what even root cannot read as a file
    assert Container(root).read() is None


def test_a_small_machine_is_its_own_limit(tmp_path: Path) -> None:
    root = tree(tmp_path, {"/proc/meminfo": meminfo(480, 300)})
    usage = Memory(root=root, rss=lambda: 1).read()
    assert (usage.used // MB, usage.limit // MB, usage.source) == (180, 480, "machine")


def test_on_fly_the_machine_is_the_sites_own_at_any_size(tmp_path: Path) -> None:
    root = tree(tmp_path, {"/proc/meminfo": meminfo(2000, 1500, swap_mb=512)})
    memory = Memory(root=root, rss=lambda: 1, environ={"FLY_VM_MEMORY_MB": "2048"})
    usage = memory.read()
    assert (usage.used // MB, usage.limit // MB, usage.source) == (500, 2000, "machine")
    assert memory.swap() == Swap(12 * MB, 512 * MB)
    asked = Memory(600 * MB, root=root, rss=lambda: 1, environ={"FLY_VM_MEMORY_MB": "2048"})
    assert asked.read().limit == 600 * MB


# name -> (files beside those of `SHAPES`, MB that are swapped out, MB that may be)
SWAPS: dict[str, tuple[str, dict[str, object], tuple[int, int]]] = {
    "v2, as much as the machine has": (
        "v2, plain",
        {f"{GROUP}/app/memory.swap.current": 7 * MB, f"{GROUP}/app/memory.swap.max": "max"},
        (7, 1024),
    ),
    "v2, none": (
        "v2, plain",
        {f"{GROUP}/app/memory.swap.current": 0, f"{GROUP}/app/memory.swap.max": 0},
        (0, 0),
    ),
    "v2, an ancestor allows less": (
        "v2, nested, the parent's limit is lower and its usage counts",
        {
            f"{GROUP}/site/memory.swap.current": 7 * MB,
            f"{GROUP}/site/memory.swap.max": 100 * MB,
            f"{GROUP}/site/worker/memory.swap.max": 300 * MB,
        },
        (7, 100),
    ),
    "v2, a kernel that does not count swap": ("v2, plain", {}, (24, 1024)),
    "v1, Docker's twice the memory": (
        "v1",
        {
            f"{GROUP1}/app/memory.stat": f"total_inactive_file 0\ntotal_swap {7 * MB}\n"
            f"hierarchical_memory_limit {512 * MB}\nhierarchical_memsw_limit {1024 * MB}\n"
        },
        (7, 512),
    ),
    "v1, a kernel that does not count swap": ("v1", {}, (24, 1024)),
    "no container: the machine's": ("no cgroup at all", {}, (24, 1024)),
}


@pytest.mark.parametrize("name", SWAPS)
def test_swap_is_told_beside_the_limit_and_not_counted_in_it(tmp_path: Path, name: str) -> None:
    shape, files, expected = SWAPS[name]
    plain = Memory(
        root=tree(tmp_path / "without", {"/proc/meminfo": meminfo(), **SHAPES[shape][0]})
    )
    root = tree(
        tmp_path / "with", {"/proc/meminfo": meminfo(swap_mb=1024), **SHAPES[shape][0], **files}
    )
    memory = Memory(root=root, rss=lambda: 60 * MB)
    assert memory.read().limit == plain.read().limit
    swap = memory.swap()
    assert swap is not None
    assert (swap.used // MB, swap.limit // MB) == expected


def test_where_the_kernel_does_not_tell_of_swap_nothing_is_said(tmp_path: Path) -> None:
    assert Memory(root=str(tmp_path), rss=lambda: 1).swap() is None


def test_out_of_descriptors_the_last_reading_of_the_container_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import builtins

    files, _ = SHAPES["v2, plain"]
    memory = Memory(root=tree(tmp_path, {"/proc/meminfo": meminfo(), **files}), rss=lambda: 1)
    before = memory.read()

    def cannot(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(builtins, "open", cannot)
    after = memory.read()
    monkeypatch.undo()
    assert (after.used, after.limit, after.source) == (before.used, before.limit, before.source)


def test_a_limit_from_the_settings_counts_where_it_is_the_lower(tmp_path: Path) -> None:
    files, _ = SHAPES["v2, plain"]
    root = tree(tmp_path, {"/proc/meminfo": meminfo(), **files})
    assert Memory(256 * MB, root=root).read().limit == 256 * MB
    assert Memory(900 * MB, root=root).read().limit == 512 * MB


def test_the_kernels_count_of_kills_is_read(tmp_path: Path) -> None:
    files, _ = SHAPES["v2, plain"]
    events = {f"{GROUP}/app/memory.events": "low 0\nmax 3\noom 2\noom_kill 1\n"}
    assert Container(tree(tmp_path / "2", {**files, **events})).out_of_memory_kills() == 1
    files, _ = SHAPES["v1"]
    events = {f"{GROUP1}/app/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"}
    assert Container(tree(tmp_path / "1", {**files, **events})).out_of_memory_kills() == 4
    assert Container(str(tmp_path / "none")).out_of_memory_kills() is None


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=80), min_size=5, max_size=5))
def test_no_content_of_any_file_makes_the_reader_raise(contents: list[bytes]) -> None:
    import tempfile

    names = ["proc/self/cgroup", "proc/self/mountinfo", "sys/fs/cgroup/app/memory.max"]
    names += ["sys/fs/cgroup/app/memory.current", "proc/meminfo"]
    with tempfile.TemporaryDirectory() as root:
        tree(Path(root), {"/proc/self/cgroup": "0::/app", "/proc/self/mountinfo": V2})
        for name, content in zip(names, contents, strict=True):
            path = Path(root) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content:
                path.write_bytes(content)
        usage = Memory(root=root, rss=lambda: 1).read()
        assert usage.used >= 0
        assert usage.limit > 0


def test_the_machine_is_read_here() -> None:
    usage = read_machine()
    assert usage is not None
    assert 0 < usage.used < usage.limit
    if os.path.exists("/proc/meminfo"):
        import psutil

        assert abs(usage.limit - psutil.virtual_memory().total) < MB


# --- How old a process is


def aged(root: Path, stat: str) -> float:
    (root / "self").mkdir(exist_ok=True)
    (root / "self" / "stat").write_text(stat)
    return process_seconds(str(root))


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="Linux's clock")
@pytest.mark.parametrize("name", ["python", "a) R (b 9", ") ) )"])
def test_a_process_is_as_old_as_its_start_is_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Field 22 of its stat, in ticks since the boot; the second may hold anything (proc(5))."""
    ticks = os.sysconf("SC_CLK_TCK")
    fields = " ".join(str(number) for number in range(4, 22))
    stat = f"7 ({name}) S {fields} {1000 * ticks} 23 24\n"
    monkeypatch.setattr(time, "clock_gettime", {time.CLOCK_BOOTTIME: 1012.5}.__getitem__)
    assert aged(tmp_path, stat) == pytest.approx(12.5)
    monkeypatch.setattr(time, "clock_gettime", {time.CLOCK_BOOTTIME: 999.9}.__getitem__)
    assert aged(tmp_path, stat) == 0.0


@pytest.mark.parametrize("stat", ["", "7 (a", "7 (a) S 1 2", "garbage", ") " + "x " * 30])
def test_where_that_is_not_told_it_is_no_seconds_old(tmp_path: Path, stat: str) -> None:
    assert aged(tmp_path, stat) == 0.0
    assert process_seconds(str(tmp_path / "nowhere")) == 0.0


def test_a_system_without_that_clock_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    assert process_seconds() == 0.0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's /proc")
def test_a_forked_process_is_younger_than_its_parent() -> None:
    before = time.monotonic()
    own = process_seconds()
    assert 0 < own < time.clock_gettime(time.CLOCK_BOOTTIME)
    assert asked(lambda: process_seconds() <= time.monotonic() - before + 0.05)
    assert process_seconds() >= own
