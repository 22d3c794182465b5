"""Find the shared page of this process's site, and write the master's part on the page.

The page is inherited from the master, opened from a file, or the process's own.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time

from ..system.cgroup import Container
from ..system.private_dir import Refused, private_directory, runtime_directory
from ..system.procfs import read_stat
from . import postmortem
from .record import GONE, REPLACED, RETIRING
from .servers import Server
from .shared_page import MAGIC, SharedPage, is_alive


class Pages:
    """Find the page, and write on the page what only the master knows."""

    def __init__(self) -> None:
        self._page: SharedPage | None = None
        self._highest = 0  # the highest peak RSS (bytes) of all reaped children

    @property
    def page(self) -> SharedPage:
        """The page of this process's site, made at first access."""
        if self._page is None:
            self._page = SharedPage.private()
        return self._page

    def join(self, server: Server | None) -> SharedPage:
        """Return the page made before the fork, if there is one.

        Else, under a server that did not preload the app, the page in a file that all workers of
        the server open. Else a page of this process's own.
        """
        if self._page is not None and self._page.made_by != os.getpid():
            return self._page
        if server is not None:
            with contextlib.suppress(OSError, Refused):
                directory = private_directory(runtime_directory())
                _sweep(directory)
                found = SharedPage.at(os.path.join(directory, file_name(server.master)))
                self.close()
                self._page = found
        return self.page

    def close(self) -> None:
        if self._page is not None:
            self._page.close()
            self._page = None

    def after_fork(self) -> None:
        """Forget the parent's locks in a new child process."""
        if self._page is not None:
            self._page.after_fork()

    # --- In the master

    def lay_out(self) -> None:
        """Make the page before the master forks, and note that the master handles deaths.

        Idempotent.
        """
        if self.page.master == os.getpid():
            return
        kills = Container().out_of_memory_kills() or 0
        self.page.change(master=os.getpid(), kills=kills)
        self._new_peak()  # skip children that were no workers

    def worker_gone(self, pid: int, *, timed_out: bool) -> bool:
        """Log why the worker died, and fold in its figures.

        Return whether a replacement was started before the worker ended.
        """
        page = self.page
        seen = next((seen for seen in page.workers() if seen.pid == pid), None)
        if seen is None:  # the worker ended before it took a place
            return False
        kills = Container().out_of_memory_kills() or 0
        why = postmortem.cause(
            timed_out=timed_out, killed=kills > page.kills, orderly=postmortem.left_in_order(seen)
        )
        page.change(kills=kills)
        if why is None and seen.state & ~GONE in (RETIRING, REPLACED):
            page.released(time.monotonic() - seen.retired)
        peak = self._new_peak()
        if why is None:
            page.fold_in(seen)
        else:
            limit = Container().read() if why == postmortem.OOM_KILL else None
            seen = postmortem.completed(seen, peak, limit.limit if limit else 0)
            postmortem.report(page, seen, why)
        return seen.replaced

    def _new_peak(self) -> int:
        """Return the peak RSS (bytes) of the child just reaped, if that is the highest so far.

        Else 0: the kernel reports only the highest of all children (RUSAGE_CHILDREN, getrusage(2)).
        """
        try:
            import resource
        except ImportError:  # Windows has no such master
            return 0
        before, unit = self._highest, 1 if sys.platform == "darwin" else 1024
        self._highest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
        return self._highest if self._highest > before else 0


def file_name(master: int) -> str:
    """Return the file name of a server's page.

    The name contains the start of the master, because pids repeat after a container's restart, and
    the layout of the page: after an upgrade, old workers still write to theirs.
    """
    return f"workers-{_life(master)}-{MAGIC[4:].hex()}"


def _life(master: int) -> str:
    stat = read_stat(master)
    start = stat.started if stat is not None else 0 if is_alive(master) else "gone"
    return f"{master}-{start}"


def _sweep(directory: str) -> None:
    """Remove the pages of servers that are gone."""
    for name in os.listdir(directory):
        kind, pid, start = (*name.split("-"), "", "")[:3]
        if kind == "workers" and pid.isdecimal() and f"{pid}-{start}" != _life(int(pid)):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(directory, name))
