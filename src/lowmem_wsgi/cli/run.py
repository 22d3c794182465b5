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

from ..settings import SettingsError
from ..system.native import on_glibc
from ..workers.variables import LAZY, STARTED, VARIABLES, environment, is_lazy
from .tell import FAILED, WRONG, tell

CONFIG = "python:lowmem_wsgi.gunicorn"
OWN = ("--dry-run", "--check")  # options of this command; the others are Gunicorn's

# As with the `gunicorn` script, and unlike a bare -m: Python must not import a gunicorn.py or a
# logging.py of the app in place of the real module. (Python 3.10 does not have the option.)
SAFE_PATH = ["-P"] if sys.version_info >= (3, 11) else []


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
        words = [word for word in argv if word not in OWN]
        options = arguments(words, environ)
    except SettingsError as error:
        tell(*error.problems)
        return WRONG
    if "--check" in argv:
        from .doctor import DEADLY, check

        if check(os.environ, words) == DEADLY:
            return FAILED
    lazy = LAZY if is_lazy(environ) and not any(map(_configures, argv)) else ()
    command = [sys.executable, *SAFE_PATH, *lazy, "-m", "gunicorn", *options]
    if "--dry-run" in argv:
        print(as_shell(command, os.environ, environ))
        return 0
    os.execve(command[0], command, {**environ, STARTED: str(os.getpid())})


def arguments(argv: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Return Gunicorn's command line: LowMemory's config, $PORT, then your arguments, which win.

    Gunicorn binds to $PORT by itself, but GUNICORN_CMD_ARGS overrides that, and Render sets a port
    there. The command line overrides GUNICORN_CMD_ARGS. Raises SettingsError.
    """
    port = environ.get("PORT", "").strip()
    bind = ["--bind", f"0.0.0.0:{_port(port)}"] if port and not any(map(_binds, argv)) else []
    return ["-c", CONFIG, *bind, *argv]


def as_shell(command: Sequence[str], before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Return a shell command that does the same. Of the environment, only the changes of `run`."""
    unset = (word for name in before if name not in after for word in ("-u", name))
    new = (f"{name}={text}" for name, text in after.items() if name not in before)
    return shlex.join(["env", *unset, *new, *command])


def _binds(word: str) -> bool:
    """Return whether a word of the command line is Gunicorn's --bind, also shortened (--bin)."""
    name, _, _ = word.partition("=")
    return word.startswith("-b") or (len(name) > len("--b") and "--bind".startswith(name))


def _configures(word: str) -> bool:
    """Return whether a word of the command line is Gunicorn's --config, also shortened (--conf)."""
    name, _, _ = word.partition("=")
    long = len(name) > len("--con") and "--config".startswith(name)
    return (word.startswith("-c") and not word.startswith("--")) or long


def _port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise SettingsError([f"PORT={text!r}: expected a port from 1 to 65535"])
    return int(text)


# Conditions -> the mark that HELP explains.
MARKS: dict[tuple[str, ...], str] = {
    (): "",
    ("glibc",): " *",
    ("glibc", "trim"): " **",
}
USAGE = "usage: lowmem-wsgi run [--check] [--dry-run] [GUNICORN'S OPTIONS] MODULE:APP"
HELP = """\
Serve the app with Gunicorn and LowMemory's config: the app wrapped, as many workers
as fit, three threads each.
LowMemory first sets these variables, except those that you have set. To keep a variable unset, set
it to nothing (NAME=).

{variables}

*   only on glibc
**  only on glibc, and not with LOWMEM_TRIM=off

From Python 3.15 on, LowMemory also starts Python with -X lazy_imports=all, not with
LOWMEM_LAZY_IMPORTS=off.

Binds to 0.0.0.0:$PORT if PORT is set and you give no --bind. You can use all options of Gunicorn
(`python -m gunicorn --help` lists them). An option wins over the config. Your own config, -c FILE,
replaces LowMemory's, so begin it with `from lowmem_wsgi.gunicorn import *`.

  --check    first say what is wrong with settings and platform; do not serve what would die
  --dry-run  print the command for a shell, and exit
  --help     print this help, and exit"""


def explained() -> str:
    """Return the help, made from VARIABLES."""
    given = [(f"{row.name}={row.value}{MARKS[row.needs]}", row.why) for row in VARIABLES]
    width = max(len(setting) for setting, _ in given)
    return f"{USAGE}\n\n" + HELP.format(variables="\n".join(_rows(given, width)))


def _rows(given: Sequence[tuple[str, str]], width: int) -> Iterator[str]:
    """Yield one line for each variable. Do not repeat the reason of the line before."""
    last = ""
    for setting, why in given:
        yield f"  {setting:{width}}  {why if why != last else ''}".rstrip()
        last = why
