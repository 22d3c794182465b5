"""Read how much of its limit the site uses: the figures on which the platform kills.

Without a cgroup limit, the figures are the machine's if the machine serves this site alone (a small
virtual machine, or one of OWN_MACHINE), else the process's own. `Usage.source` names the source.
Swap does not count: a site that swaps is slow long before the kernel kills.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from ..settings import DEFAULT_LIMIT
from ..system.cgroup import Container
from ..system.procfs import OwnRss, read_machine, read_swap, read_text
from ..system.usage import Swap, Usage

# Variables of platforms that give each site a virtual machine of its own: Fly's
# (fly.io/docs/machines/runtime-environment). Such a machine's memory is the limit, at any size.
OWN_MACHINE = ("FLY_VM_MEMORY_MB",)


class Memory:
    """Read the memory that the site uses, and the limit.

    `limit`: the limit of the settings in bytes (None: the limit that the system reports, else
    DEFAULT_LIMIT). `root`: a directory in place of `/`, for tests. `rss`: return the process's RSS
    in bytes. `environ`: where to look for OWN_MACHINE.
    """

    def __init__(
        self,
        limit: int | None = None,
        *,
        root: str = "",
        rss: Callable[[], int] | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._limit = limit
        self._own_machine = any(name in environ for name in OWN_MACHINE)
        self._root = root
        self._last: Usage | None = None
        self._own = False  # whether the last reading was of this process alone
        self._container = Container(root)
        self._rss = OwnRss() if rss is None else rss

    def read(self) -> Usage:
        """Return the container's figures.

        Without a container: the machine's, if the machine has no more memory than the limit or is
        the site's own; else this process's.
        """
        usage = self._container.read()
        if usage is not None:
            self._last = usage
        elif self._last is not None and not read_text(f"{self._root}/proc/self/cgroup"):
            usage = self._last  # not even this file opens: the process is out of descriptors
        if usage is None:
            asked = self._limit or DEFAULT_LIMIT
            machine = read_machine(self._root)
            ours = machine is not None and (self._own_machine or machine.limit <= asked)
            usage = machine if machine and ours else Usage(self._rss(), asked, "process")
        usage = self._limited(usage)
        self._own = usage.source == "process"
        return usage

    def reopen(self) -> None:
        """Open the files again in a new child process, to read the child's own figures."""
        self._container = Container(self._root)
        if isinstance(self._rss, OwnRss):
            self._rss.reopen()

    def glance(self) -> Usage:
        """Return the same figures as `read`, but cheaper: from the cgroup found last, if any."""
        usage = self._container.glance()
        if usage is None and self._own:
            usage = Usage(self._rss(), self._limit or DEFAULT_LIMIT, "process")
        return self.read() if usage is None else self._limited(usage)

    def _limited(self, usage: Usage) -> Usage:
        if self._limit is None or self._limit >= usage.limit:
            return usage
        return usage._replace(limit=self._limit)

    def swap(self) -> Swap | None:
        """Return the swap that the site uses and may use; None where that is not reported."""
        machine = read_swap(self._root)
        return machine and self._container.swap(machine)

    def parts(self) -> dict[str, int]:
        """Return the container's memory that belongs to no process (see Container.parts), bytes."""
        return self._container.parts()

    def pids(self) -> list[int]:
        """Return the pids of the container's processes; an empty list without a container."""
        return self._container.pids()

    def kills(self) -> int | None:
        """Return how many processes of the container the OOM killer has ended.

        None where the kernel reports no count.
        """
        return self._container.out_of_memory_kills()
