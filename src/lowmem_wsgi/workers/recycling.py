"""Decide when to replace a worker by a fresh one: the only way to free memory still referenced.

No I/O: a situation in, a reason to wait or None out. lifecycle.py calls this and then the server;
servers.py has the way to ask each server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..memory.ceiling import RESERVE_SHARE
from ..memory.levels import OK
from ..settings import MB

# A fresh worker must save at least this share of the limit, to be worth the start.
WORTH = 0.05
# A worker is stuck, and refuses requests that a fresh worker could serve: it holds MUCH of the
# limit, and met its ceiling GIVEN_BACK seconds ago, so freed memory is given back by now.
GIVEN_BACK, MUCH = 1.0, 0.2
# At warn, the level must have lasted LASTED seconds, and the worker must be OLD seconds old. At
# critical, a worker must be as old as a start takes. So starting workers takes at most half of the
# time.
LASTED, OLD = 10.0, 60.0
# Seconds that a busy worker gets at critical to reach an idle moment. LowMemory waits only if
# memory lasts for these seconds, and for the end of the worker after them.
PATIENCE = 2.0
# The lead: LowMemory replaces a worker this long before memory is short. AHEAD times as long as an
# old worker takes in this container to end and release its memory, and at least LEAST_LEAD and at
# most MOST_LEAD seconds.
AHEAD, LEAST_LEAD, MOST_LEAD = 2.0, 0.25, 4.0
# Until an end was measured, it is assumed to take so many times as long as the start: the requests
# in flight must end first.
LONGER = 4.0
# A request in flight for SLOW seconds may keep an ending worker, and its memory, alive for about
# SLOWLY seconds. So LowMemory replaces that worker already when it holds half of the room.
SLOW, SLOWLY = 0.1, 10.0
# Requests a second: with fewer, the slow request itself causes the growth, not the other requests.
OFTEN = 10.0
# Bytes under the ceiling that a new worker beside the old one needs, besides its own size.
ROOM = 32 * MB
# After so many replacements in a row without memory becoming ok, replacing does not help.
IN_VAIN = 3


def lead(release: float) -> float:
    """Return how many seconds before memory is short to replace a worker.

    `release`: seconds that a worker takes to end.
    """
    return min(max(AHEAD * release, LEAST_LEAD), MOST_LEAD)


class Situation(NamedTuple):
    """The figures to decide on. Sizes are in bytes, durations in seconds."""

    level: str
    used: int
    limit: int
    warn: int
    critical: int
    growth: float  # bytes a second, of the site
    rate: float  # requests a second, of this worker
    left: float  # seconds until this worker meets its own ceiling, at its growth
    lasted: float  # since the level was ok; if pressed, since the worker was not pressed
    age: float
    started_in: float  # the duration of a worker's start
    rss: int
    born_rss: int
    idle: bool
    held: int = 0  # growth since the request began that uses the processor most
    lead: float = LEAST_LEAD  # see `lead`
    hit: bool = False  # a request or a few met the ceiling just now
    hit_since: float | None = None  # since requests began to meet the ceiling; None: not lately
    holes: int = 0  # mapped and given back: not usable for new mappings
    full: bool = False  # all requests meet the ceiling
    slow: bool = False  # a request has been in flight for SLOW seconds
    others: Sequence[int] = ()  # the growth of each other worker
    in_vain: int = 0  # replacements in a row without memory becoming ok

    @property
    def grown(self) -> int:
        return self.rss - self.born_rss

    @property
    def pressed(self) -> bool:
        """Whether memory is at critical, or will be before a fresh worker could be ready.

        By the reading, because the level lags behind.
        """
        return self._soon_critical or self.full or self.stuck or (self.slow and self._half_full)

    @property
    def _turns(self) -> int:
        """How many workers, this one included, will have to be replaced at about this time.

        Workers are replaced one after the other, so the last of them waits for all others.
        """
        return 1 + sum(other >= self.grown / 2 for other in self.others)

    @property
    def _soon_critical(self) -> bool:
        """Whether memory reaches critical before all these turns are over, at this growth.

        Growth in an empty container may stop soon, so it counts only from half of critical on.
        """
        lead = self.lead * self._turns
        soon = self.used + self.growth * lead >= self.critical or self.left <= lead
        return soon and self.used >= self.critical / 2

    @property
    def stuck(self) -> bool:
        """Whether this worker refuses requests that a fresh worker could serve.

        True if requests met the ceiling while the worker holds much.
        """
        hit = self.hit_since is not None and self.hit_since >= GIVEN_BACK
        return hit and self.saved >= self.limit * MUCH

    @property
    def saved(self) -> int:
        """Bytes that a fresh worker would save."""
        return max(self.grown, 0 if self.hit_since is None else self.holes)

    @property
    def _half_full(self) -> bool:
        """Whether this worker, kept alive by a slow request, leaves too little for a fresh one."""
        if self.rate < OFTEN:  # then the slow request itself grows
            return False
        room = self.critical - (self.used - self.grown)
        return self.grown >= room / 2 and self.growth * SLOWLY >= self.critical - self.used

    @property
    def spare(self) -> float:
        """Seconds until the container is full, at this growth."""
        room = self.limit * (1 - RESERVE_SHARE) - self.used
        return room / self.growth if self.growth > 0 else float("inf")


TOO_LARGE = "a fresh worker would be as large"
IN_VAIN_SO_FAR = "the last fresh workers soon grew as large"
# The first condition that holds gives the reason to wait.
REASONS: tuple[tuple[str, Callable[[Situation], bool]], ...] = (
    ("memory is ok", lambda s: not s.pressed and (s.level == OK or s.used < s.warn)),
    (TOO_LARGE, lambda s: s.saved < s.limit * WORTH),
    (IN_VAIN_SO_FAR, lambda s: s.in_vain >= IN_VAIN),
    ("another worker has grown more", lambda s: any(s.saved < other for other in s.others)),
    (
        "it is young",
        lambda s: s.age < (s.started_in if s.pressed else OLD),
    ),
    ("it may pass", lambda s: not s.pressed and (s.lasted < LASTED or not s.idle)),
    (
        "a request in flight may hold the memory",
        lambda s: 0 < s.held >= s.grown / 2 and not s.full,
    ),
    ("memory is being given back", lambda s: s.hit and s.lasted < PATIENCE),
    (
        "it is busy, and there is time",
        lambda s: not s.idle and not s.full and s.lasted < PATIENCE and s.spare > PATIENCE + s.lead,
    ),
)


def reason_to_wait(situation: Situation) -> str | None:
    """Return the reason not to replace the worker now; None to replace the worker."""
    return next((reason for reason, holds in REASONS if holds(situation)), None)


def fits(used: int, initial_uss: int, limit: int) -> bool:
    """Return whether a new worker fits beside the old one, with room to work.

    All in bytes. `initial_uss`: memory of a new worker that is not shared.
    """
    return used + initial_uss + ROOM <= limit * (1 - RESERVE_SHARE)
