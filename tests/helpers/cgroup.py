"""A real memory limit around processes of a test's own: a cgroup that is gone afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lowmem_wsgi.system.cgroup import _mounts


@dataclass
class Cgroup:
    path: Path
    version: int

    def limit(self, size: int) -> None:
        names = {1: ("memory.limit_in_bytes",), 2: ("memory.max", "memory.swap.max")}
        for name, value in zip(names[self.version], (size, 0), strict=False):
            with contextlib.suppress(FileNotFoundError):
                (self.path / name).write_text(str(value))
        if self.version == 1:  # no swap beyond it
            with contextlib.suppress(OSError):
                (self.path / "memory.memsw.limit_in_bytes").write_text(str(size))

    def join(self) -> None:
        """Put this process into it."""
        (self.path / "cgroup.procs").write_text("0")

    def number(self, name: str) -> int:
        return int((self.path / name).read_text())

    def stat(self, key: str) -> int:
        lines = (line.split() for line in (self.path / "memory.stat").read_text().splitlines())
        return next(int(value) for name, value in lines if name == key)

    def working_set(self) -> int:
        """Usage without the cache that the kernel drops first, by the kernel's own files."""
        if self.version == 2:
            return self.number("memory.current") - self.stat("inactive_file")
        return self.number("memory.usage_in_bytes") - self.stat("total_inactive_file")

    def kills(self) -> int:
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        lines = (line.split() for line in (self.path / name).read_text().splitlines())
        return next((int(value) for key, value in lines if key == "oom_kill"), 0)


@contextlib.contextmanager
def memory_cgroup(size: int) -> Iterator[Cgroup]:
    """A cgroup limited to `size` bytes, child of our own.

    Where none can be made the test is skipped with the reason. With TESTS_NEED_CGROUP=1 it fails
    there; with TESTS_NEED_CGROUP=v2 it fails also where the version is another.
    """
    group, reason = _make(os.environ.get("TESTS_NEED_CGROUP", ""))
    if group is None:
        import pytest  # the benchmarks have none

        if os.environ.get("TESTS_NEED_CGROUP"):
            pytest.fail(f"no memory cgroup can be made here: {reason}")
        pytest.skip(f"no memory cgroup can be made here: {reason}")
    try:
        group.limit(size)
        yield group
    finally:
        _remove(group.path)


@contextlib.contextmanager
def nested(outer: Cgroup, name: str) -> Iterator[Cgroup]:
    """A cgroup inside another, without a limit of its own. Under v2, `outer` has no processes."""
    if outer.version == 2:
        (outer.path / "cgroup.subtree_control").write_text("+memory")
    group = Cgroup(outer.path / name, outer.version)
    group.path.mkdir()
    try:
        yield group
    finally:
        _remove(group.path)


def _remove(path: Path) -> None:
    """Remove a cgroup, and end its processes: none is in it but what the test put there."""
    for pid in (path / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    for _ in range(500):
        try:
            path.rmdir()
            break
        except OSError:
            time.sleep(0.01)


def _make(needed: str) -> tuple[Cgroup | None, str]:
    reason = "no cgroup file system with memory"
    for version, own, _ in _mounts(""):
        if needed == "v2" and version != 2:
            reason = f"memory is limited by cgroup v{version}"
            continue
        path = Path(own) / f"lowmem-test-{uuid.uuid4().hex[:12]}"
        try:
            path.mkdir()
        except OSError as error:
            reason = str(error)
            continue
        name = "memory.max" if version == 2 else "memory.limit_in_bytes"
        if (path / name).exists():
            return Cgroup(path, version), ""
        path.rmdir()
        reason = f"{own} has no memory controller"
    return None, reason


@contextlib.contextmanager
def cpu_cgroup(memory: Cgroup, share: float) -> Iterator[list[Path]]:
    """Give processes of a memory cgroup `share` of one processor; yield the cgroups to join.

    Under v2 one cgroup does both. Under v1 the share and the time used have cgroups of their own.
    """
    period = 100_000  # µs, the kernel's default and that of container platforms
    quota = int(share * period)
    if memory.version == 2:
        (memory.path / "cpu.max").write_text(f"{quota} {period}")
        yield [memory.path]
        return
    paths = [_own("cpu") / memory.path.name]
    with contextlib.suppress(FileNotFoundError):
        paths.append(_own("cpuacct") / memory.path.name)
    made: list[Path] = []
    try:
        for path in paths:
            if not path.exists():  # often both controllers are in one hierarchy
                path.mkdir()
                made.append(path)
        (paths[0] / "cpu.cfs_period_us").write_text(str(period))
        (paths[0] / "cpu.cfs_quota_us").write_text(str(quota))
        yield [memory.path, *made]
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # so that what is left ends at full speed
                (path / "cpu.cfs_quota_us").write_text("-1")
            _remove(path)


def cpu_seconds(groups: list[Path]) -> float:
    """Seconds of processor time that the processes of a `cpu_cgroup` have used."""
    for path in groups:
        if (path / "cpuacct.usage").exists():
            return int((path / "cpuacct.usage").read_text()) / 1e9
        if (path / "cpu.stat").exists():
            lines = (line.split() for line in (path / "cpu.stat").read_text().splitlines())
            used = next((int(value) for name, value in lines if name == "usage_usec"), None)
            if used is not None:
                return used / 1e6
    raise FileNotFoundError("no cgroup here counts processor time")


def _own(controller: str) -> Path:
    """The directory of this process's cgroup under a v1 controller."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, own = line.split(":", 2)
        if controller in controllers.split(","):
            return Path(f"/sys/fs/cgroup/{controller}{own}")
    raise FileNotFoundError(f"no cgroup controller {controller} is mounted")
