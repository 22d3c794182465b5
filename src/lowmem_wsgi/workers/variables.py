"""What must be set before Python starts: the allocator, the number of heaps, lazy imports.

`lowmem-wsgi run` sets these variables and becomes Gunicorn. Gunicorn with LowMemory's config starts
itself anew with them, once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import NamedTuple

from ..settings import MB, NUMBERS, Settings, number
from ..system.malloc import UNSET
from ..system.native import on_glibc

# Python's options for lazy imports (PEP 810). Not the variable PYTHON_LAZY_IMPORTS: the app's child
# processes would inherit the variable.
LAZY = ("-X", "lazy_imports=all")

# Holds the pid of a process that was started with the variables, so that nothing starts twice.
STARTED = "_LOWMEM_STARTED"


class Variable(NamedTuple):
    """A variable to set, if all its conditions hold and you have not set it yourself."""

    name: str
    value: str
    needs: tuple[str, ...]  # the conditions: see `environment`
    why: str


# Without glibc the first three do nothing.
VARIABLES = (
    Variable(
        "MALLOC_ARENA_MAX",
        "1",
        ("glibc", "trim"),
        "all threads share one heap, so free memory is in one place",
    ),
    Variable(
        "MALLOC_TRIM_THRESHOLD_",
        str(8 * MB),
        ("glibc",),
        "free memory at the heap's end goes back from 8 MB on",
    ),
    # Setting either threshold stops glibc from adjusting both, up to 32 and 64 MB (mallopt(3)).
    # Below 4 MB, each numpy operation would pay for new pages.
    Variable(
        "MALLOC_MMAP_THRESHOLD_",
        str(4 * MB),
        ("glibc",),
        "blocks from 4 MB go back when they are freed, and leave no hole",
    ),
    Variable(
        "PYTHONUNBUFFERED",
        "1",
        (),
        "the app's output is logged at once, even if the app is killed",
    ),
    *(
        Variable(
            f"{library}_NUM_THREADS",
            "1",
            (),
            "numpy and the like start no threads with buffers of their own",
        )
        for library in ("OPENBLAS", "OMP", "MKL", "NUMEXPR")
    ),
)


def environment(given: Mapping[str, str], glibc: bool) -> dict[str, str]:
    """Return the environment to serve in: your variables, and the rows of VARIABLES not set yet.

    Conditions of a row: "glibc", it is the C library; "trim", LOWMEM_TRIM is on.

    Removes a variable that is set but empty, and remembers it in UNSET. So you can keep a variable
    unset, and no library reads an empty text as a number. Raises SettingsError.
    """
    holds = {"glibc": glibc, "trim": Settings.load(environ=given).trim}
    for name in NUMBERS:  # check now: otherwise Gunicorn ends with a traceback
        number(name, 0, given)
    names = (*(row.name for row in VARIABLES), "PORT")
    emptied = {name for name in names if name in given and not given[name].strip()}
    unset = emptied.union(filter(None, given.get(UNSET, "").split(",")))
    ours = {
        row.name: row.value
        for row in VARIABLES
        if row.name not in unset and all(holds[condition] for condition in row.needs)
    }
    found = ours | dict(given) | ({UNSET: ",".join(sorted(unset))} if unset else {})
    return {name: text for name, text in found.items() if name not in emptied}


def is_lazy(given: Mapping[str, str], version: tuple[int, ...] = sys.version_info[:3]) -> bool:
    """Return whether Python shall import modules at their first use. Raises SettingsError.

    Not with a recursion limit: a late import in the middle of a request needs frames.
    """
    if version < (3, 15) or "PYTHON_LAZY_IMPORTS" in given:
        return False
    settings = Settings.load(environ=given)
    return settings.lazy_imports and settings.recursion_limit is None


def anew(given: Mapping[str, str]) -> tuple[list[str], dict[str, str]] | None:
    """Return the command and the environment that start this process anew, with the variables.

    None if nothing is missing, or if this process was started so already. Raises SettingsError.
    """
    if not sys.executable or given.get(STARTED) == str(os.getpid()):
        return None
    environ = environment(given, on_glibc())
    options = LAZY if is_lazy(given) and "lazy_imports" not in sys._xoptions else ()
    if environ == dict(given) and not options:
        return None
    command = [sys.executable, *options, *sys.orig_argv[1:]]
    return command, {**environ, STARTED: str(os.getpid())}
