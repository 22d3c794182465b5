"""What all tests share."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import hypothesis
import pytest

from lowmem_wsgi import log, runtime
from lowmem_wsgi.imports import tracker
from lowmem_wsgi.workers.record import RECORDS_AT
from lowmem_wsgi.workers.shared_page import SIZE

# How long an example takes says more of the machine than of the library.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of this machine's environment changes what is tested."""
    for name in list(os.environ):
        if name.startswith("LOWMEM_") or name == "SECRET_KEY":
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def restored_interpreter() -> Iterator[None]:
    """Each test leaves the collector, the recursion limit, the ceiling and the logs as it found
    them, the site's counts at nothing, and imports unwatched."""
    threshold, depth = gc.get_threshold(), sys.getrecursionlimit()
    runtime.forget()
    runtime.pages.page.map[RECORDS_AT:] = bytes(SIZE - RECORDS_AT)
    watching = tracker.installed()
    if watching is not None:
        watching.stop()
    log.forget()
    yield
    gc.set_threshold(*threshold)
    sys.setrecursionlimit(depth)
    gc.unfreeze()
    runtime.forget()
