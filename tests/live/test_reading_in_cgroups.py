"""Reading memory in a real kernel's cgroups, of both versions: nested, stalled, seen from inside.

tests/unit/memory/test_reading.py reads many more shapes, from files. `make test-v2` runs these
tests under cgroup v2.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.cgroup import Cgroup, memory_cgroup, nested
from helpers.forks import child, fork, found
from helpers.load import crowd
from helpers.servers import serve, wait_for
from lowmem_wsgi.memory.reading import Memory
from lowmem_wsgi.system.cgroup import Container

MB = 1024 * 1024
LAG = 4 * MB  # the kernel counts in batches, for each processor


def inside(group: Cgroup, mb: int = 0) -> dict[str, Any]:
    """What a process of the cgroup reads that holds so much."""

    def look() -> object:
        group.join()
        held = b"x" * (mb * MB)
        memory = Memory()
        return {**memory.read()._asdict(), "kills": memory.kills(), "held": len(held)}

    read: dict[str, Any] = found(look)
    return read


def test_the_limit_of_an_outer_cgroup_counts_and_so_does_all_that_is_used_in_it() -> None:
    """Also by processes beside the own cgroup, as in a Kubernetes pod of several containers."""
    held: list[bytes] = []
    with (
        memory_cgroup(200 * MB) as pod,
        nested(pod, "app") as app,
        nested(pod, "beside") as beside,
    ):
        app.limit(300 * MB)

        def hold() -> None:
            beside.join()
            held.append(b"x" * (60 * MB))

        with child(hold):
            read = inside(app, 20)
        assert read["source"] == f"cgroup v{pod.version}"
        assert read["limit"] == 200 * MB
        assert 80 * MB - LAG <= read["used"] <= 80 * MB + 4 * LAG


def test_the_limit_of_the_own_cgroup_counts_where_it_is_lower() -> None:
    with memory_cgroup(200 * MB) as pod, nested(pod, "app") as app:
        app.limit(100 * MB)
        read = inside(app, 20)
        assert read["limit"] == 100 * MB
        assert 20 * MB - LAG <= read["used"] <= 20 * MB + 4 * LAG


def test_files_that_were_read_do_not_count(tmp_path: Path) -> None:
    """`memory.current` counts them."""
    file = tmp_path / "sixty"
    with file.open("wb") as output:
        for _ in range(60):
            output.write(b"x" * MB)
        output.flush()
        os.fsync(output.fileno())  # what is yet to be written stays in the page cache
        os.posix_fadvise(output.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    usage = {1: "memory.usage_in_bytes", 2: "memory.current"}
    with memory_cgroup(128 * MB) as group:

        def read_it() -> object:
            group.join()
            container = Container()
            before, raw = container.read(), group.number(usage[group.version])
            with file.open("rb", buffering=0) as source:
                while source.read(MB):
                    pass
            after = container.read()
            assert before is not None
            assert after is not None
            return after.used - before.used, group.number(usage[group.version]) - raw

        counted, raw = found(read_it)
        assert raw > 50 * MB
        assert counted < LAG


def test_an_oom_kill_in_the_own_cgroup_is_counted_and_one_beside_it_is_not() -> None:
    with (
        memory_cgroup(200 * MB) as pod,
        nested(pod, "app") as app,
        nested(pod, "beside") as beside,
    ):
        assert inside(app)["kills"] == 0
        overfill(beside)
        assert inside(app)["kills"] == 0
        overfill(app)
        assert inside(app)["kills"] == 1


def overfill(group: Cgroup) -> None:
    """Have the OOM killer end a process of the cgroup."""
    group.limit(24 * MB)
    pid = fork()
    if pid == 0:
        try:
            group.join()
            b"x" * (48 * MB)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9


# --- Version 2 alone


def only_v2(group: Cgroup) -> None:
    if group.version != 2:
        pytest.skip("memory is limited by cgroup v1 here: `make test-v2` runs this under v2")


# Each as a shell's commands, in a mount namespace of its own. $1 is the cgroup.
VIEWS = {
    "a namespace of its own": "umount /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup",
    "the cgroup's folder in place of all": 'mount --bind "$1" /sys/fs/cgroup',
}
READ = """
import json
from lowmem_wsgi.memory.reading import Memory
read = Memory().read()
print(json.dumps({**read._asdict(), "own": open("/proc/self/cgroup").read()}))
"""


@pytest.mark.parametrize("view", VIEWS)
def test_a_container_that_sees_only_itself_reads_its_own_limit(view: str) -> None:
    """As under Docker, whose containers find themselves at the path `/`."""
    with memory_cgroup(160 * MB) as group:
        only_v2(group)
        own = view == "a namespace of its own"
        flags = "--mount --cgroup" if own else "--mount"
        script = (
            'echo 0 > "$1/cgroup.procs" && exec unshare '
            f'{flags} sh -ec \'{VIEWS[view]}; shift; exec "$@"\' sh "$@"'
        )
        command = ["sh", "-c", script, "sh", str(group.path), sys.executable, "-c", READ]
        read = json.loads(subprocess.check_output(command))
        path = "/" if own else f"/{group.path.relative_to('/sys/fs/cgroup')}"
        assert f"0::{path}\n" in read["own"]
        assert (read["limit"], read["source"]) == (160 * MB, "cgroup v2")
        assert 4 * MB < read["used"] < 60 * MB


def test_memory_high_counts_as_the_limit_and_a_leak_does_not_come_near_it(tmp_path: Path) -> None:
    """From `memory.high` on, the kernel stalls the processes: requests would take seconds."""
    high = 192 * MB
    with memory_cgroup(384 * MB) as group:
        only_v2(group)
        (group.path / "memory.high").write_text(str(high))
        assert inside(group)["limit"] == high
        with serve(
            "survive:bare",
            tmp_path=tmp_path,
            config="python:lowmem_wsgi.gunicorn",
            cgroup=group.path,
            WEB_CONCURRENCY="1",
            XDG_RUNTIME_DIR=str(tmp_path),
        ) as server:
            sizes: list[int] = []
            with crowd(server.port, 2, "/leak?kb=1024", most=300, pause=0.01) as leaks:

                def asked() -> bool:
                    sizes.append(group.working_set())
                    return len(leaks.answers) == 300

                wait_for(asked, "all to be answered", seconds=60)
            assert not leaks.failed, server.log
            assert "recycled at" in server.log
            assert max(sizes) < high
            assert group.kills() == 0
