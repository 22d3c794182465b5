"""How serious it is: readings in, level out. No clock, no I/O.

The rules:

1. A reading falls in one of five zones, by the two thresholds and, some way under each, the
   point to which memory must fall for that threshold to count as left (hysteresis).
2. The level follows the table: at most one step up at a time, so that what `warn` asks for is
   done before what `critical` asks for.
3. A step up takes `UP` consecutive readings that ask for it, a step down `DOWN`: one odd
   reading changes nothing, and a noisy signal does not flap.
"""

from __future__ import annotations

from bisect import bisect_right

OK, WARN, CRITICAL = LEVELS = ("ok", "warn", "critical")

UP = 2
DOWN = 3

# Memory must fall this share of the threshold under it. Wide enough for the swing of single
# requests, and narrow enough that at the usual thresholds (78 and 88 % of the limit) the way
# back from critical ends above warn.
MARGIN = 0.05

# The zones, lowest first: below the margin under warn, in it, above warn, in the margin under
# critical, above critical.
CALM, EASING, HIGH, FALLING, OVER = range(5)

#            CALM  EASING HIGH  FALLING OVER
TABLE = {
    OK: (OK, OK, WARN, WARN, WARN),
    WARN: (OK, WARN, WARN, WARN, CRITICAL),
    CRITICAL: (WARN, WARN, WARN, CRITICAL, CRITICAL),
}


class Levels:
    """Keeps the level of one process. Thresholds in bytes, `warn` below `critical`."""

    def __init__(self, warn: int, critical: int) -> None:
        if not 0 < warn < critical:
            raise ValueError(f"expected 0 < warn < critical, not {warn}, {critical}")
        self.restart(warn, critical)

    def restart(self, warn: int, critical: int) -> None:
        """Nothing was read yet."""
        self.level = OK
        self._asked = OK
        self._times = 0
        self.move(warn, critical)

    def move(self, warn: int, critical: int) -> None:
        """Other thresholds from now on; level and readings stand."""
        self.warn = warn
        self.critical = critical
        self._edges = (warn - warn * MARGIN, warn, max(warn, critical * (1 - MARGIN)), critical)

    def zone(self, used: int) -> int:
        """The zone a reading falls in; never lower for a higher reading."""
        return bisect_right(self._edges, used)

    def observe(self, used: int) -> str:
        """Take a reading in bytes; the level after it."""
        asked = TABLE[self.level][self.zone(used)]
        self._times = self._times + 1 if asked == self._asked else 1
        self._asked = asked
        up = LEVELS.index(asked) > LEVELS.index(self.level)
        if asked != self.level and self._times >= (UP if up else DOWN):
            self.level = asked
            self._times = 0
        return self.level

    @property
    def unsettled(self) -> bool:
        """Whether the last reading asked for another level: the next is wanted soon."""
        return self._asked != self.level
