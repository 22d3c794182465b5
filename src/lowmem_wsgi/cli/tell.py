"""Print the problems of a command on stderr, one line each; and the exit codes."""

from __future__ import annotations

import sys

FAILED = 1  # the command cannot run here
WRONG = 2  # wrong usage; argparse and the shells use the same number


def tell(*problems: str) -> None:
    for problem in problems:
        print(f"lowmem-wsgi: {problem}", file=sys.stderr)
