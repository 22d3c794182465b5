"""`lowmem-wsgi run [Gunicorn's options] app:app`: set the environment, then become Gunicorn.

Some settings must be made before Python starts: the allocator, and the number of heaps. So this
command sets the environment, and then replaces itself by Gunicorn with exec. Gunicorn keeps the
pid, the signals and the exit codes, and none of this process's memory.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import NamedTuple

from ..settings import MB, NUMBERS, Settings, SettingsError, number
from .tell import FAILED, WRONG, tell

CONFIG = "python:lowmem_wsgi.gunicorn"

# As with the `gunicorn` script, and unlike a bare -m: Python must not import a gunicorn.py or a
# logging.py of the app in place of the real module. (Python 3.10 does not have the option.)
SAFE_PATH = ["-P"] if sys.version_info >= (3, 11) else []


class Variable(NamedTuple):
    """A variable to set, if all its conditions hold and you have not set it yourself."""

    name: str
    value: str
    needs: tuple[str, ...]  # the conditions: "glibc", "trim" (LOWMEM_TRIM)
    why: str


# Without glibc the first four do nothing, or harm: nothing calls malloc_trim there.
VARIABLES = (
    Variable(
        "PYTHONMALLOC",
        "malloc",
        ("glibc", "trim"),
        "the C library has all objects, and gives back any free page",
    ),
    Variable(
        "MALLOC_ARENA_MAX",
        "1",
        ("glibc", "trim"),
        "one heap for all threads, one place to give back from",
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
        "what the app prints is logged at once, even if it is then killed",
    ),
    *(
        Variable(
            f"{library}_NUM_THREADS",
            "1",
            (),
            "numpy and its kin start no threads, each with its buffers",
        )
        for library in ("OPENBLAS", "OMP", "MKL", "NUMEXPR")
    ),
)


def main(argv: Sequence[str]) -> int:
    """Become Gunicorn. Return an exit code only if that is not possible or not asked for."""
    if not argv:
        print(USAGE, file=sys.stderr)
        return WRONG
    if "-h" in argv or "--help" in argv:
        print(explained())
        return 0
    if os.name == "nt":
        tell("Gunicorn does not run on Windows; wrap the app (LowMemory) and serve with waitress")
        return FAILED
    if find_spec("gunicorn") is None:
        tell("Gunicorn is not installed: pip install 'lowmem-wsgi[gunicorn]'")
        return FAILED
    try:
        environ = environment(os.environ, on_glibc())
        options = arguments([word for word in argv if word != "--dry-run"], environ)
    except SettingsError as error:
        tell(*error.problems)
        return WRONG
    command = [sys.executable, *SAFE_PATH, "-m", "gunicorn", *options]
    if "--dry-run" in argv:
        print(as_shell(command, os.environ, environ))
        return 0
    os.execve(command[0], command, environ)


def environment(given: Mapping[str, str], glibc: bool) -> dict[str, str]:
    """Return the environment to serve in: your variables, and the rows of VARIABLES not set yet.

    Removes a variable that is set but empty. So you can keep a variable unset, and no library reads
    an empty text as a number. Raises SettingsError.
    """
    holds = {"glibc": glibc, "trim": Settings.load(environ=given).trim}
    for name in NUMBERS:  # check now: otherwise Gunicorn ends with a traceback
        number(name, 0, given)
    ours = {
        row.name: row.value for row in VARIABLES if all(holds[condition] for condition in row.needs)
    }
    names = (*(row.name for row in VARIABLES), "PORT")
    emptied = {name for name in names if name in given and not given[name].strip()}
    return {name: text for name, text in (ours | dict(given)).items() if name not in emptied}


def arguments(argv: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Return Gunicorn's command line: LowMemory's config, $PORT, then your arguments, which win.

    Gunicorn binds to $PORT by itself, but GUNICORN_CMD_ARGS overrides that, and Render sets a port
    there. The command line overrides GUNICORN_CMD_ARGS. Raises SettingsError.
    """
    port = environ.get("PORT", "").strip()
    bind = ["--bind", f"0.0.0.0:{_port(port)}"] if port and not any(map(_binds, argv)) else []
    return ["-c", CONFIG, *bind, *argv]


def on_glibc() -> bool:
    """Return whether the C library is glibc, and not musl (Alpine) or macOS's."""
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (AttributeError, OSError, ValueError):  # no confstr, or no such name
        return False


def as_shell(command: Sequence[str], before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Return a shell command that does the same. Of the environment, only the changes of `run`."""
    unset = (word for name in before if name not in after for word in ("-u", name))
    new = (f"{name}={text}" for name, text in after.items() if name not in before)
    return shlex.join(["env", *unset, *new, *command])


def _binds(word: str) -> bool:
    """Return whether a word of the command line is Gunicorn's --bind, also shortened (--bin)."""
    name, _, _ = word.partition("=")
    return word.startswith("-b") or (len(name) > len("--b") and "--bind".startswith(name))


def _port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise SettingsError([f"PORT={text!r}: expected a port from 1 to 65535"])
    return int(text)


USAGE = "usage: lowmem-wsgi run [--dry-run] [GUNICORN'S OPTIONS] MODULE:APP"
HELP = """\
Serves the app with Gunicorn and the config of lowmem-wsgi: wrapped in LowMemory, one worker of
three threads. Sets these variables first, where they are not set yet. Set one yourself and your
value stands; set it to nothing (NAME=) and it stays unset.

{variables}

*  only on glibc
** only on glibc, and not with LOWMEM_TRIM=off

Binds to 0.0.0.0:$PORT where PORT is set, unless you give --bind. All of Gunicorn's options may
be used, and beat the config: `python -m gunicorn --help` lists them. A config of your own,
-c FILE, takes the place of ours, so begin it with `from lowmem_wsgi.gunicorn import *`.

  --dry-run  show the command that this would become, for a shell, and end
  --help     show this, and end"""


def explained() -> str:
    """Return the help, made from VARIABLES."""
    marks = {(): "", ("glibc",): " *", ("glibc", "trim"): " **"}
    given = [(f"{row.name}={row.value}{marks[row.needs]}", row.why) for row in VARIABLES]
    width = max(len(setting) for setting, _ in given)
    return f"{USAGE}\n\n" + HELP.format(variables="\n".join(_rows(given, width)))


def _rows(given: Sequence[tuple[str, str]], width: int) -> Iterator[str]:
    """Yield one line for each variable. Do not repeat the reason of the line before."""
    last = ""
    for setting, why in given:
        yield f"  {setting:{width}}  {why if why != last else ''}".rstrip()
        last = why
