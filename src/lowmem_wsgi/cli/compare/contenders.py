"""The three ways to serve the app that are compared: each a command line and an environment."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ...settings import NUMBERS
from ...workers.variables import STARTED
from ..run import SAFE_PATH

BARE, OURS, DOCUMENT = "bare", "lowmem-wsgi", "document"
_CONFIG = Path(__file__).with_name("gunicorn_config.py")
# Variables of the site's own server, which would make the three differ in more than is compared.
_LEFT_OUT = (*NUMBERS, "GUNICORN_CMD_ARGS", "PORT", STARTED)


class Contender(NamedTuple):
    """`server`: words after `python`, before the options. `variables`: set for this one alone."""

    name: str
    server: tuple[str, ...]
    variables: Mapping[str, str] = {}

    def command(self, app: str, descriptor: int) -> list[str]:
        """Return the command that serves the app on the socket with this file descriptor."""
        return [sys.executable, *SAFE_PATH, *self.server, "--bind", f"fd://{descriptor}", app]

    def environ(self, given: Mapping[str, str], limit: int, runtime: str) -> dict[str, str]:
        """Return the environment to serve in.

        `limit`: bytes; LowMemory takes it where there is no cgroup. `runtime`: a directory for
        sockets and keys, in place of the user's.
        """
        kept = {name: value for name, value in given.items() if name not in _LEFT_OUT}
        return {
            "LOWMEM_MEMORY_LIMIT": str(limit),
            **kept,
            "XDG_RUNTIME_DIR": runtime,
            **self.variables,
        }


_PLAIN = ("-m", "gunicorn", "-c", f"file:{_CONFIG}")
CONTENDERS = (
    Contender(BARE, _PLAIN),
    Contender(OURS, ("-m", "lowmem_wsgi", "run"), {"WEB_CONCURRENCY": "1"}),
    Contender(
        DOCUMENT,
        _PLAIN,
        {
            "PYTHONOPTIMIZE": "2",
            "PYTHONDONTWRITEBYTECODE": "1",
            "_LOWMEM_COMPARE_AS_WRITTEN": "1",
        },
    ),
)


def in_round(number: int) -> list[Contender]:
    """Return the contenders in the order of a round, so that none always follows the same one."""
    first = number % len(CONTENDERS)
    turned = [*CONTENDERS[first:], *CONTENDERS[:first]]
    return turned if number // len(CONTENDERS) % 2 == 0 else turned[::-1]
