"""A hook of MkDocs: pages of the repository that are not in docs/ become pages of the site.

So links work in both places: docs/survive.md links to ../benchmarks/README.md, as GitHub wants it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
# Where a page is in the repository -> where it is on the site.
PAGES = {
    "CHANGELOG.md": "CHANGELOG.md",
    "README.md": "index.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/flask_app/README.md": "example.md",
}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in docs/."""
    for source, target in PAGES.items():
        if files.get_file_from_path(target) is None:
            text = (ROOT / source).read_text(encoding="utf-8")
            content = moved(text, posixpath.dirname(source), "docs")
            files.append(File.generated(config, target, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead the links of a page in docs/ to where their targets are on the site."""
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")
    return markdown if page.file.generated_by else moved(markdown, folder, folder)


def moved(markdown: str, folder: str, to: str) -> str:
    """Return a page of the repository's `folder` with its links as it needs them in `to`."""

    def link(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, found[1]))
        target = posixpath.join("docs", PAGES[path]) if path in PAGES else path
        return f"]({posixpath.relpath(target, to)}{found[2] or ''})"

    return re.sub(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)", link, markdown)
