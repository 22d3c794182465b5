"""When a worker is to be replaced by a fresh one: the only way to unload what stays referenced.

A pure decision: a situation in, a reason to wait out, or none. Who asks the server for the
worker, and how, is in servers.py; when it is asked, in lifecycle.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..memory.ceiling import RESERVE_SHARE
from ..memory.levels import OK
from ..settings import MB

# What a new worker must save at least: this share of the limit. Else it is not worth the start.
WORTH = 0.05
# A worker refuses what a fresh one could do: it holds this share of the limit, and its ceiling was
# hit so long (seconds) ago that what was freed is given back.
GIVEN_BACK, MUCH = 1.0, 0.2
# At warn (seconds): it must have lasted so long, in a worker so old. At critical a worker must be
# as old as a start takes: so starting workers takes half of the time at most.
LASTED, OLD = 10.0, 60.0
# At critical, a busy worker is given so long (seconds) to come to an idle moment.
PATIENCE = 2.0
# Memory is short where it would be in so many times as long as an old worker takes, in this
# container, to end and release what it holds; in so long (seconds) at least and at most.
AHEAD, LEAST_LEAD, MOST_LEAD = 2.0, 0.25, 4.0
# An old worker with a slow request in flight stays as long (seconds) as that, and with it what it
# holds: then a fresh one is had when it holds half of the room there is.
SLOW, SLOWLY = 0.1, 10.0
# Others come at least so often (a second), if it is they who leave something behind.
OFTEN = 10.0
# A new worker beside the old one needs so much (bytes) under the ceiling, besides its own size.
ROOM = 32 * MB
# So many in a row after which memory was not ok again: it does not help.
IN_VAIN = 3


def lead(release: float) -> float:
    """Seconds before memory is short to replace a worker, where one takes `release` to end."""
    return min(max(AHEAD * release, LEAST_LEAD), MOST_LEAD)


class Situation(NamedTuple):
    """Sizes in bytes, spans in seconds."""

    level: str
    used: int
    limit: int
    warn: int
    critical: int
    growth: float  # bytes a second, of the site
    rate: float  # requests a second, of this worker
    left: float  # seconds until this worker meets its own ceiling, at its growth
    lasted: float  # since the level was ok; where it is pressed, since it was not
    age: float
    started_in: float  # what the start of a worker takes
    rss: int
    born_rss: int
    idle: bool
    held: int = 0  # by which it has grown since the request began that computes most
    lead: float = LEAST_LEAD  # seconds that a replacement is to come before memory is short
    hit: bool = False  # the ceiling was met just now, by a request or a few
    hit_since: float | None = None  # seconds since the ceiling was met first, if it was lately
    holes: int = 0  # mapped and given back: no room for what must be mapped anew
    full: bool = False  # the ceiling is met by all that come
    slow: bool = False  # a request in flight takes its time
    others: Sequence[int] = ()  # what the other workers have grown by
    in_vain: int = 0

    @property
    def grown(self) -> int:
        return self.rss - self.born_rss

    @property
    def pressed(self) -> bool:
        """At critical (by the reading: the level lags behind), or there before a fresh worker
        could be."""
        return self._soon_critical or self.full or self.stuck or (self.slow and self._half_full)

    @property
    def _soon_critical(self) -> bool:
        """In less than the lead, at this growth. What grows at once in an empty container may stop
        as soon: that says nothing before half of the way."""
        soon = self.used + self.growth * self.lead >= self.critical or self.left <= self.lead
        return soon and self.used >= self.critical / 2

    @property
    def stuck(self) -> bool:
        """Whether this worker refuses what a fresh one could do: its ceiling was hit while it holds
        much."""
        hit = self.hit_since is not None and self.hit_since >= GIVEN_BACK
        return hit and self.saved >= self.limit * MUCH

    @property
    def saved(self) -> int:
        """Bytes that a fresh worker would not take."""
        return max(self.grown, 0 if self.hit_since is None else self.holes)

    @property
    def _half_full(self) -> bool:
        """Whether this worker, kept by a slow request, would leave a fresh one too little room."""
        if self.rate < OFTEN:  # then it is the slow request itself that grows
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
# The first that holds is the reason to wait.
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
        lambda s: not s.idle and not s.full and s.lasted < PATIENCE and s.spare > PATIENCE,
    ),
)


def reason_to_wait(situation: Situation) -> str | None:
    """None: now."""
    return next((reason for reason, holds in REASONS if holds(situation)), None)


def fits(used: int, initial_uss: int, limit: int) -> bool:
    """Whether a new worker can start while the old one is still there, with room to work in."""
    return used + initial_uss + ROOM <= limit * (1 - RESERVE_SHARE)
