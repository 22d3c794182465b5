"""A cgroup of one's own: made below, limited, left, removed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.servers import wait_for
from lowmem_wsgi.system.memory_cgroup import inside, kills, memory_cgroup

MB = 1024 * 1024


def test_where_no_cgroup_can_be_made_there_is_none(tmp_path: Path) -> None:
    with memory_cgroup(64 * MB, root=str(tmp_path)) as directory:
        assert directory is None
        assert inside(directory, ["x"]) == ["x"]
        assert kills(directory) == 0


def test_a_cgroup_without_a_limit_of_memory_is_removed_again(tmp_path: Path) -> None:
    own = tmp_path / "cg" / "site"
    own.mkdir(parents=True)
    proc = tmp_path / "proc" / "self"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text("0::/site\n")
    (proc / "mountinfo").write_text("1 2 0:1 / /cg rw - cgroup2 cgroup2 rw\n")
    with memory_cgroup(64 * MB, root=str(tmp_path)) as directory:
        assert directory is None
    assert list(own.iterdir()) == []


def test_what_runs_in_it_is_limited_and_ends_with_it() -> None:
    with memory_cgroup(64 * MB) as directory:
        if directory is None:
            pytest.skip("no memory cgroup can be made here")
        read = "from lowmem_wsgi.system.cgroup import Container as C; print(C().read().limit)"
        command = inside(directory, [sys.executable, "-c", read])
        assert int(subprocess.check_output(command)) == 64 * MB
        eat = subprocess.run(
            inside(directory, [sys.executable, "-c", f"b'x' * {200 * MB}"]), check=False
        )
        assert eat.returncode < 0
        assert kills(directory) > 0
        left = subprocess.Popen(inside(directory, ["sleep", "60"]))
        wait_for(lambda: Path(f"{directory}/cgroup.procs").read_text(), "a process in it")
    assert left.wait(10) < 0
    assert not os.path.exists(directory)
