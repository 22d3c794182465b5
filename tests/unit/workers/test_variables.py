"""When Gunicorn starts itself anew, and with what."""

from __future__ import annotations

import os
import sys

import pytest

from lowmem_wsgi.settings import SettingsError
from lowmem_wsgi.system.malloc import UNSET
from lowmem_wsgi.system.native import on_glibc
from lowmem_wsgi.workers import variables


def test_the_same_command_with_the_variables() -> None:
    found = variables.anew({"HOME": "/home/me"})
    assert found is not None
    command, environ = found
    assert command[0] == sys.executable
    assert command[-len(sys.orig_argv) + 1 :] == sys.orig_argv[1:]
    assert environ == {
        **variables.environment({"HOME": "/home/me"}, on_glibc()),
        variables.STARTED: str(os.getpid()),
    }


def test_never_twice() -> None:
    found = variables.anew({})
    assert found is not None
    assert variables.anew(found[1]) is None
    # Even if a variable is lost on the way.
    assert variables.anew({variables.STARTED: str(os.getpid())}) is None


def test_a_wrong_setting_is_told() -> None:
    with pytest.raises(SettingsError):
        variables.anew({"LOWMEM_TRIM": "yess"})


@pytest.mark.parametrize(
    ("version", "environ", "lazy"),
    [
        ((3, 15, 0), {}, True),
        ((3, 16, 1), {}, True),
        ((3, 14, 9), {}, False),
        ((3, 15, 0), {"LOWMEM_LAZY_IMPORTS": "off"}, False),
        ((3, 15, 0), {"LOWMEM_PRESET": "ultra"}, False),
        ((3, 15, 0), {"PYTHON_LAZY_IMPORTS": "none"}, False),
    ],
)
def test_when_imports_are_lazy(
    version: tuple[int, ...], environ: dict[str, str], lazy: bool
) -> None:
    assert variables.is_lazy(environ, version) is lazy


def test_a_variable_set_to_nothing_stays_unset_also_in_a_process_started_later() -> None:
    first = variables.environment({"MALLOC_ARENA_MAX": ""}, True)
    assert "MALLOC_ARENA_MAX" not in first
    assert first[UNSET] == "MALLOC_ARENA_MAX"
    assert variables.environment(first, True) == first
