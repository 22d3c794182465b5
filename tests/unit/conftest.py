"""What the unit tests share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def allocator_as_it_is(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test changes the allocator of the process that all of them share: each test of that has a
    process of its own (system/test_malloc.py)."""
    monkeypatch.setenv("LOWMEM_SYSTEM_MALLOC", "off")
