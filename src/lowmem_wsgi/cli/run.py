"""`lowmem-wsgi run [Gunicorn's options] app:app`: set the environment, then become Gunicorn.

Some things can only be said before Python starts: who allocates, and into how many heaps. So the
environment is made here, and Gunicorn takes this process's place by exec: its pid, its signals, its
exit codes, and nothing of our memory.
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

# As the `gunicorn` script does, and unlike a bare -m: a gunicorn.py or a logging.py among the app's
# files is not taken for the real one. (Python 3.10 does not know the option.)
SAFE_PATH = ["-P"] if sys.version_info >= (3, 11) else []


class Variable(NamedTuple):
    """One row: set to this value, where all that it needs is so and the user has not set it."""

    name: str
    value: str
    needs: tuple[str, ...]  # of "glibc" and "trim" (LOWMEM_TRIM)
    why: str


# Where there is no glibc the first four do nothing, or harm: no one calls malloc_trim there.
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
    # Setting either one ends glibc's own adjusting of both, up to 32 and 64 MB (mallopt(3)). Not
    # lower: below 4 MB each numpy operation would pay for new pages.
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
    """Become Gunicorn; the exit code where that cannot be."""
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
    """The environment to serve in: the user's own, and ours where there is none.

    One that is there but empty is taken out: that is how to leave it unset, and some of those who
    read them take an empty text for a number. Raises SettingsError.
    """
    holds = {"glibc": glibc, "trim": Settings.load(environ=given).trim}
    for name in NUMBERS:  # Gunicorn would end with a traceback
        number(name, 0, given)
    ours = {
        row.name: row.value for row in VARIABLES if all(holds[condition] for condition in row.needs)
    }
    names = (*(row.name for row in VARIABLES), "PORT")
    emptied = {name for name in names if name in given and not given[name].strip()}
    return {name: text for name, text in (ours | dict(given)).items() if name not in emptied}


def arguments(argv: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Gunicorn's command line: our config, $PORT, then the user's words, which beat both.

    Gunicorn binds to $PORT by itself, but GUNICORN_CMD_ARGS beats that, and Render's names a port
    there. The command line beats GUNICORN_CMD_ARGS. Raises SettingsError.
    """
    port = environ.get("PORT", "").strip()
    bind = ["--bind", f"0.0.0.0:{_port(port)}"] if port and not any(map(_binds, argv)) else []
    return ["-c", CONFIG, *bind, *argv]


def on_glibc() -> bool:
    """Whether the C library is glibc: not musl (Alpine), not macOS's."""
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (AttributeError, OSError, ValueError):  # no confstr; no such name
        return False


def as_shell(command: Sequence[str], before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """The line for a shell that does the same. Of the environment only what `run` changes."""
    unset = (word for name in before if name not in after for word in ("-u", name))
    new = (f"{name}={text}" for name, text in after.items() if name not in before)
    return shlex.join(["env", *unset, *new, *command])


def _binds(word: str) -> bool:
    """Whether a word of the command line is Gunicorn's --bind, shortened (--bin) or not."""
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
    """The help, made from the table."""
    marks = {(): "", ("glibc",): " *", ("glibc", "trim"): " **"}
    given = [(f"{row.name}={row.value}{marks[row.needs]}", row.why) for row in VARIABLES]
    width = max(len(setting) for setting, _ in given)
    return f"{USAGE}\n\n" + HELP.format(variables="\n".join(_rows(given, width)))


def _rows(given: Sequence[tuple[str, str]], width: int) -> Iterator[str]:
    """A line each; a reason that was given in the line before is not given again."""
    last = ""
    for setting, why in given:
        yield f"  {setting:{width}}  {why if why != last else ''}".rstrip()
        last = why
