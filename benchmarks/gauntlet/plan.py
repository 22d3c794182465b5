"""How much of everything a run has."""

from __future__ import annotations

from dataclasses import dataclass, replace

from _runaways import KINDS


@dataclass(frozen=True)
class Plan:
    """Seconds, unless the name says otherwise. Each is written on the page."""

    name: str
    shares: tuple[float, ...]  # of one processor
    rounds: int
    idle: float
    slices: int  # of the steady phase, taken in turn with the other contenders
    slice_seconds: float
    spikes: int  # of each kind, and so many times three at once
    leaks: int  # requests that keep 2 MB each
    leak_rate: float  # of these a second, at most
    kinds: tuple[str, ...]  # of runaways
    phase_seconds: float  # after so many, no further request of the phase is made
    well: float  # that a site is waited for until it answers again
    lifetime: int  # of a session after its last use
    recovery: float
    final_idle: float
    unhealthy: float  # without a good answer, before the platform restarts the container
    restart_delay: float = 1.0  # between the end of the server's process and its new start
    patience: float = 10.0  # that a client waits for an answer, at a whole CPU

    def waits(self, share: float) -> float:
        """How long a client waits on such a share of a CPU."""
        return self.patience if share >= 0.5 else 4 * self.patience

    def session(self, share: float) -> int:
        """The lifetime of a session on such a share of a CPU."""
        return self.lifetime if share >= 0.5 else 4 * self.lifetime


FULL = Plan(
    "full",
    shares=(1.0, 0.5, 0.1),
    rounds=3,
    idle=30,
    slices=4,
    slice_seconds=5,
    spikes=5,
    leaks=1200,
    leak_rate=40,
    kinds=KINDS,
    phase_seconds=300,
    well=90,
    lifetime=3,
    recovery=5,
    final_idle=30,
    unhealthy=60,
)
QUICK = replace(
    FULL,
    name="quick",
    shares=(1.0,),
    rounds=1,
    idle=10,
    slices=5,
    slice_seconds=0.8,
    spikes=2,
    leaks=300,
    leak_rate=75,
    kinds=("small_dicts", "array", "text", "late_import", "body", "stream"),
    phase_seconds=20,
    well=10,
    lifetime=2,
    recovery=1,
    final_idle=1,
    unhealthy=5,
    patience=5,
)
TINY = replace(
    QUICK,
    name="tiny",
    idle=0.3,
    slices=2,
    slice_seconds=0.3,
    spikes=1,
    leaks=10,
    kinds=("small_dicts",),
)
PLANS = {plan.name: plan for plan in (FULL, QUICK, TINY)}
