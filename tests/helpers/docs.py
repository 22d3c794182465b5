"""The pages of the documentation, and the blocks in them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.glob("*.md")])
# What a page shows the use of. A block for one that is not installed is left out, and told.
FRAMEWORKS = {"flask", "django", "bottle", "falcon", "pyramid"}

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """The fenced blocks in a language: the number of the first line, the text."""
    text = page.read_text(encoding="utf-8")
    for block in _FENCE.finditer(text):
        if block[2] == language:
            yield text.count("\n", 0, block.start()) + 2, textwrap.dedent(block[3])


def languages(page: Path) -> list[str]:
    """The language of each fenced block, empty where it says none."""
    return [block[2] for block in _FENCE.finditer(page.read_text(encoding="utf-8"))]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))
