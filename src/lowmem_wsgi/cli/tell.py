"""How every command says what is wrong: one line a problem, and an exit code."""

from __future__ import annotations

import sys

FAILED = 1  # it cannot be done here
WRONG = 2  # it was asked for in the wrong way; argparse and the shells use the same number


def tell(*problems: str) -> None:
    for problem in problems:
        print(f"lowmem-wsgi: {problem}", file=sys.stderr)
