"""A contender in its container, and the platform around it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from _common import APPS
from _container import Container, container
from _load import Caller

from helpers.cgroup import cpu_cgroup, cpu_seconds
from helpers.servers import SLOWER, clean_environ, free_port

from .contenders import Contender
from .plan import Plan

RESTING = 0.25  # s between two looks at the memory of a container at rest
ACTIVE = 0.005
HEALTH_EVERY = 1.0  # s
START = 60.0  # s, at a whole CPU
MB = 1024 * 1024


class Box:
    """A container that serves, and what became of it so far.

    The platform starts the server anew when its main process has ended, as container platforms do,
    and, while `guarded`, when it has given no good answer for too long.
    """

    def __init__(
        self,
        contender: Contender,
        limited: Container,
        groups: list[Path],
        directory: Path,
        plan: Plan,
        share: float,
    ) -> None:
        self.contender = contender
        self.container = limited
        self.port = free_port()
        self.share = share
        self.plan = plan
        self.restarts = 0
        self.trace = directory / "trace"
        self._groups = groups
        self._directory = directory
        self._log = directory / "server.log"
        self._over = threading.Event()
        self._guarded = threading.Event()
        self._process = self._start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _start(self) -> subprocess.Popen[bytes]:
        row = self.contender
        words = row.server.words(row.app, self.port, self._directory)
        for group in self._groups:
            words = ["sh", "-c", 'echo 0 > "$0/cgroup.procs" && exec "$@"', str(group), *words]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=APPS,
                env=environment(row, self._directory, self.plan.session(self.share)),
                start_new_session=True,  # Ctrl-C is for the benchmark, which then ends its servers
            )

    def _keep(self) -> None:
        healthy = checked = time.monotonic()
        while not self._over.wait(0.05):
            now = time.monotonic()
            if not self._guarded.is_set():
                healthy = now
            elif now - checked >= HEALTH_EVERY:
                caller = Caller(self.port, timeout=self.plan.waits(self.share))
                if caller.ask("/").ok:
                    healthy = time.monotonic()
                checked = time.monotonic()
            unhealthy = self._guarded.is_set() and time.monotonic() - healthy > self.unhealthy
            if self._process.poll() is None and not unhealthy:
                continue
            self.end()  # a container ends with all its processes
            if self._over.wait(self.plan.restart_delay):
                return
            self.restarts += 1
            self._process = self._start()
            healthy = time.monotonic() + START / self.share  # a start may take its time

    @property
    def unhealthy(self) -> float:
        return self.plan.unhealthy / min(1.0, 2 * self.share)

    def end(self) -> None:
        """End all processes of the container."""
        for pid in (self.container.path / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        self._over.set()
        self.end()  # nobody then waits for an answer of it
        self._keeper.join()
        self.end()  # what the keeper has started meanwhile

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """The platform asks for signs of health, and the memory is looked at often."""
        self.container.look_every(ACTIVE)
        self._guarded.set()
        try:
            yield
        finally:
            self._guarded.clear()

    def wait_until_well(self, seconds: float) -> bool:
        """Whether the site gives a good answer within so many seconds."""
        end = time.monotonic() + seconds * SLOWER
        while time.monotonic() < end:
            if Caller(self.port, timeout=self.plan.waits(self.share)).ask("/").ok:
                return True
            time.sleep(0.02)
        return False

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def deaths(self) -> int:
        """Workers that did not end in order, by the log, and ends of the whole server. Each OOM
        kill is one, though not each server tells of it."""
        told = len(re.findall(self.contender.died, self.log)) + self.restarts
        return max(told, self.container.kills)

    @property
    def cpu_seconds(self) -> float:
        try:
            return cpu_seconds(self._groups)
        except FileNotFoundError:
            return float("nan")

    def points(self) -> list[tuple[float, float]]:
        """The trace so far: moments (time.monotonic) and MB."""
        with contextlib.suppress(FileNotFoundError):
            lines = self.trace.read_text().splitlines()
            pairs = (line.split() for line in lines)
            return [(float(pair[0]), int(pair[1]) / MB) for pair in pairs if len(pair) == 2]
        return []


def environment(row: Contender, directory: Path, lifetime: int) -> dict[str, str]:
    """What a contender's server finds in its environment."""
    base = {
        "XDG_RUNTIME_DIR": str(directory),
        "HOME": str(directory),
        "TMPDIR": str(directory),
        "MPLCONFIGDIR": str(directory),
        "WEB_CONCURRENCY": "1",
        "PYTHONHASHSEED": "0",
        **settings(row, lifetime),
        "BENCH_DATABASE": str(directory / "clients.db"),
        "SWEEP_PANDAS": "yes",
    }
    found = clean_environ(base)
    for name in [name for name in found if name.startswith(("OPENBLAS_NUM", "MALLOC_"))]:
        if name not in row.env:  # the contender is to have only what it sets itself
            del found[name]
    return found


def settings(row: Contender, lifetime: int) -> dict[str, str]:
    """Of its environment, what is its own, for the page."""
    if not row.keeps_rules:
        return {**row.env, "GAUNTLET_RULES": "flask", "GAUNTLET_LIFETIME": str(lifetime)}
    uploads = {"LOWMEM_UPLOAD_LIMITS": "/edge/runaway/body=4GB"}
    return {**row.env, **uploads, "LOWMEM_SESSION_LIFETIME": f"{lifetime}s"}


@contextlib.contextmanager
def boxed(row: Contender, directory: Path, plan: Plan, share: float) -> Iterator[Box]:
    """A contender that has been started, and may not answer yet. Gone afterwards."""
    directory.mkdir(mode=0o777)
    directory.chmod(0o777)  # Apache serves as another user
    with contextlib.ExitStack() as stack:
        limited = stack.enter_context(container(trace=directory / "trace"))
        groups = [limited.path]
        try:
            groups = stack.enter_context(cpu_cgroup(limited.group, share))
        except (OSError, StopIteration):
            if share != 1:
                raise
        box = Box(row, limited, groups, directory, plan, share)
        stack.callback(box.close)
        yield box
