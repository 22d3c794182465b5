"""Each target of the fuzzer, briefly, with the same examples each time (make fuzz takes longer)."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from .targets import TARGETS

EXAMPLES = 50


@pytest.mark.parametrize("name", TARGETS)
def test_the_property_holds(name: str) -> None:
    target = TARGETS[name]
    briefly = settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    briefly(given(**target.given)(target.holds))()
