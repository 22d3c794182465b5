"""What the site uses of what it may: the figures the platform kills on.

Where no cgroup states a limit: the machine's memory, if that is all there is (a small virtual
machine), else the process's own. `Usage.source` says which.
"""

from __future__ import annotations

from collections.abc import Callable

from ..settings import DEFAULT_LIMIT
from ..system.cgroup import Container
from ..system.procfs import OwnRss, read_machine, read_text
from ..system.usage import Usage


class Memory:
    """What the site uses of what it may: call `read`.

    `limit` in bytes is what the settings say (None: what the system says, else DEFAULT_LIMIT).
    """

    def __init__(
        self, limit: int | None = None, *, root: str = "", rss: Callable[[], int] | None = None
    ) -> None:
        self._limit = limit
        self._root = root
        self._last: Usage | None = None
        self._own = False  # whether the last reading was of this process alone
        self._container = Container(root)
        self._rss = OwnRss() if rss is None else rss

    def read(self) -> Usage:
        """The container's figures; else the machine's, where it has no more than the limit; else
        those of this process."""
        usage = self._container.read()
        if usage is not None:
            self._last = usage
        elif self._last is not None and not read_text(f"{self._root}/proc/self/cgroup"):
            usage = self._last  # not even this file opens: we are out of descriptors
        if usage is None:
            asked = self._limit or DEFAULT_LIMIT
            machine = read_machine(self._root)
            fits = machine is not None and machine.limit <= asked
            usage = machine if machine and fits else Usage(self._rss(), asked, "process")
        usage = self._limited(usage)
        self._own = usage.source == "process"
        return usage

    def reopen(self) -> None:
        """In a new child: look again, and at its own figures."""
        self._container = Container(self._root)
        if isinstance(self._rss, OwnRss):
            self._rss.reopen()

    def glance(self) -> Usage:
        """As `read`, but cheaper: of where the limit was found last, if there was one."""
        usage = self._container.glance()
        if usage is None and self._own:
            usage = Usage(self._rss(), self._limit or DEFAULT_LIMIT, "process")
        return self.read() if usage is None else self._limited(usage)

    def _limited(self, usage: Usage) -> Usage:
        if self._limit is None or self._limit >= usage.limit:
            return usage
        return usage._replace(limit=self._limit)

    def parts(self) -> dict[str, int]:
        """What is used of the container and no process's: see Container.parts."""
        return self._container.parts()

    def pids(self) -> list[int]:
        """The processes of the container; none where there is none."""
        return self._container.pids()

    def kills(self) -> int | None:
        """How many processes of the container the OOM killer has taken; None where none is told."""
        return self._container.out_of_memory_kills()
