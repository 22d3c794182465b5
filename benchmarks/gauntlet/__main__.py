"""python benchmarks/gauntlet: the gauntlet. python benchmarks/gauntlet cost: see cost.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _common  # noqa: F401  # which finds the tests' helpers

from gauntlet import cost, run

if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(cost.main(words[1:]) if words[:1] == ["cost"] else run.main(words))
