"""The command `lowmem-wsgi`: import a subcommand's module, and pass it the other arguments."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from .._version import __version__
from .tell import STOPPED, WRONG, open_closed, tell

# Name -> purpose. The subcommand's module here has the same name and a `main(arguments) -> exit
# code`. Only the called subcommand is imported.
COMMANDS = {
    "run": "serve an app with Gunicorn, set up for little memory",
    "compare": "serve an app bare, with lowmem-wsgi and by the old advice, side by side",
    "imports": "show what each import of an app costs, and what could be saved",
    "doctor": "say what is wrong with a site's memory, and what mends it",
    "trace": "find the lines of a running site that keep the memory",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, for the script and `python -m lowmem_wsgi`. Return the exit code."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name in ("-V", "--version"):
        print(f"lowmem-wsgi {__version__}")
        return 0
    if name in COMMANDS:
        return _run(name, rest)
    if name:
        tell(_no_such(name))
    else:
        print(usage(), file=sys.stderr)
    return WRONG


def _run(name: str, arguments: Sequence[str]) -> int:
    """Run the subcommand, and say if Ctrl-C has stopped it. Return the exit code."""
    open_closed()
    try:
        code: int = import_module(f".{name}", __name__).main(arguments)
    except KeyboardInterrupt:
        code = STOPPED
    if code == STOPPED:
        tell("stopped")
    return code


def usage() -> str:
    width = max(map(len, COMMANDS))
    rows = (f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
    return "\n".join(
        [
            "usage: lowmem-wsgi COMMAND ...",
            "       lowmem-wsgi --help | --version",
            "",
            *rows,
            "",
            "lowmem-wsgi COMMAND --help explains a command.",
        ]
    )


def _no_such(name: str) -> str:
    from difflib import get_close_matches

    nearest = get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"there is {', '.join(COMMANDS)}"
    return f"no such command: {name!r}; {hint}"
