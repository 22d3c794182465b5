"""What the monitor's thread costs while nothing happens: CPU time in a minute without a request.

One worker under Gunicorn that holds little (tests/apps/memory.py); its thread looks about once a
second.

    python benchmarks/at_rest.py --check
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from _common import Client, Target, bare_parser, positive, print_table, report, scratch, serve

SHARE = 1000  # a thousandth of a core, in ms a second and a minute alike


def main() -> int:
    options = bare_parser(__doc__)
    options.add_argument("--seconds", type=positive, default=60, help="default 60")
    given = options.parse_args()
    with scratch() as directory, serve("memory:app", tmp_path=directory) as server:
        with Client(server.port) as client:
            client.get("/")
            before = json.loads(client.get("/monitor").body)
        time.sleep(given.seconds)
        with Client(server.port) as client:
            after = json.loads(client.get("/monitor").body)
    figures: dict[str, Any] = {
        "ms of CPU time": 1000 * (after["seconds"] - before["seconds"]),
        "looks": after["woken"] - before["woken"],
    }
    print_table(["in seconds", *figures], [[given.seconds, *figures.values()]])
    print()
    bound = given.seconds * 1000 / SHARE
    return report(given, figures, [Target("ms of CPU time", figures["ms of CPU time"], bound)])


if __name__ == "__main__":
    sys.exit(main())
