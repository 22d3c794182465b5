"""Texts in the kernel's files that no kernel writes today."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowmem_wsgi.system.cgroup import Container, processors

MOUNTED = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize("share", ["0 100000", "² 100000", "100000 0", "100000 ²", "max 100000"])
def test_a_share_that_is_no_share_is_all_processors(tmp_path: Path, share: str) -> None:
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text(share, encoding="utf-8")
    assert processors(str(tmp_path)) == processors(str(tmp_path / "empty")) >= 1


def test_a_share_is_a_fraction(tmp_path: Path) -> None:
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("10000 100000\n", encoding="utf-8")
    assert processors(str(tmp_path)) == 0.1


def test_of_the_processes_those_with_a_number_are_read(tmp_path: Path) -> None:
    files = {
        "proc/self/mountinfo": MOUNTED,
        "proc/self/cgroup": "0::/\n",
        "proc/meminfo": "MemTotal: 1000000 kB\n",
        "sys/fs/cgroup/memory.max": "1000000\n",
        "sys/fs/cgroup/memory.current": "5\n",
        "sys/fs/cgroup/cgroup.procs": "12\n7\n²\n",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    container = Container(str(tmp_path))
    assert container.read() is not None
    assert container.pids() == [7, 12]
