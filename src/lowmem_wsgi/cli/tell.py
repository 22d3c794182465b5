"""What the commands print: the report on stdout, problems on stderr; and the exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TextIO

FAILED = 1  # the command cannot run here
WRONG = 2  # wrong usage; argparse and the shells use the same number
STOPPED = 130  # by Ctrl-C, as shells have it

# The signs of the reports, where stdout cannot show them.
PLAIN = {
    **{ord("├"): "|", ord("└"): "`", ord("│"): "|", ord("─"): "-", ord("…"): "..."},
    **{ord("✗"): "x", ord("✓"): "ok", ord("→"): "->"},
    **{ord("−"): "-", ord("–"): "-", ord("±"): "+-", ord("×"): "x"},
}


def tell(*problems: str) -> None:
    for problem in problems:
        print(f"lowmem-wsgi: {problem}", file=sys.stderr)


def show(words: str) -> None:
    """Print on stdout, whatever letters it has. Quiet if nobody reads on, as with `| head`.

    Raises OSError if stdout takes nothing, as on a full disk.
    """
    try:
        print(plain(words, sys.stdout.encoding), flush=True)
    except OSError as error:
        # Python writes what is left at its end. That must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


def plain(words: str, encoding: str) -> str:
    """Return the words as this encoding can show them: itself, or with plain signs and escapes."""
    try:
        words.encode(encoding)
    except UnicodeEncodeError:
        return words.translate(PLAIN).encode(encoding, "backslashreplace").decode(encoding)
    return words


def colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Return whether to print in colour: on a terminal, and never with NO_COLOR."""
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def open_closed() -> None:
    """Open /dev/null for each of stdin, stdout and stderr that is closed.

    Else print() fails, and the next file that is opened becomes stdout.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(null, "r" if name == "stdin" else "w", closefd=False))
