"""Decide the level (ok, warn, critical) from readings. No clock, no I/O.

The rules:

1. A reading falls in one of five zones. The bounds are the two thresholds and, some way under
   each, the point to which memory must fall for that threshold to count as left (hysteresis).
2. The level follows the table, at most one step up at a time. So LowMemory does what `warn` asks
   for before what `critical` asks for.
3. A step up takes `UP` consecutive readings that ask for the step, a step down takes `DOWN`. A
   single odd reading changes nothing, and a noisy signal does not flap.
"""

from __future__ import annotations

from bisect import bisect_right

OK, WARN, CRITICAL = LEVELS = ("ok", "warn", "critical")

UP = 2
DOWN = 3

# Memory must fall this far under a threshold (a share of that threshold). Wide enough for the swing
# of single requests, and narrow enough that at the usual thresholds (78 and 88 % of the limit) the
# way back from critical ends above warn.
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
    """Keep the level of one process. Thresholds are in bytes, `warn` below `critical`.

    Raises ValueError for other thresholds.
    """

    def __init__(self, warn: int, critical: int) -> None:
        if not 0 < warn < critical:
            raise ValueError(f"expected 0 < warn < critical, not {warn}, {critical}")
        self.restart(warn, critical)

    def restart(self, warn: int, critical: int) -> None:
        """Start again at ok, without readings."""
        self.level: str = OK
        self._asked = OK
        self._times = 0
        self.move(warn, critical)

    def move(self, warn: int, critical: int) -> None:
        """Use other thresholds from now on. Keep the level and the readings."""
        self.warn = warn
        self.critical = critical
        self._edges = (warn - warn * MARGIN, warn, max(warn, critical * (1 - MARGIN)), critical)

    def zone(self, used: int) -> int:
        """Return the zone of a reading in bytes; never lower for a higher reading."""
        return bisect_right(self._edges, used)

    def observe(self, used: int) -> str:
        """Take a reading in bytes. Return the level after that reading."""
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
        """Whether the last reading asked for another level. The next reading should come soon."""
        return self._asked != self.level
