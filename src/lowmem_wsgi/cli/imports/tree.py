"""The tree of imports, from the events of `measure.py`: pure. Bytes and seconds.

Between two events, all growth belongs to the module that is being executed in the thread of the
later event. So the own figures of all nodes add up to the process's, whatever the threads do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

PYTHON = "(Python itself)"


@dataclass
class Node:
    """A module, and the modules that it has imported first. `own_*`: without those."""

    name: str
    where: str = ""  # file and line of the import statement
    file: str = ""
    own_bytes: int = 0  # private memory: no file's, no other process's
    own_resident: int = 0  # the same, and the pages of files that are in memory
    own_seconds: float = 0.0
    children: dict[str, Node] = field(default_factory=dict)

    # The same with all below: see `add_up`.
    bytes: int = 0
    resident: int = 0
    seconds: float = 0.0

    def child(self, name: str, where: str = "", file: str = "") -> Node:
        return self.children.setdefault(name, Node(name, where, file))

    def walk(self) -> Iterator[Node]:
        yield self
        for child in self.children.values():
            yield from child.walk()

    def grow(self, private: int, resident: int, seconds: float) -> None:
        """Add to the node's own figures."""
        self.own_bytes += private
        self.own_resident += resident
        self.own_seconds += seconds

    def add_up(self) -> None:
        for child in self.children.values():
            child.add_up()
        below = self.children.values()
        self.bytes = self.own_bytes + sum(child.bytes for child in below)
        self.resident = self.own_resident + sum(child.resident for child in below)
        self.seconds = self.own_seconds + sum(child.seconds for child in below)


def build(app: str, events: Sequence[tuple[Any, ...]]) -> Node:
    """Return the tree of a process: what Python took at its start, and each import since."""
    root = Node(app)
    open_: dict[int, list[Node]] = {}
    last: tuple[float, int, int] | None = None
    for event in events:
        kind, thread, *figures = event
        if kind not in ("start", "open", "close", "end"):
            continue
        seconds, private, resident = figures[:3]
        # A thread of the app's begins where the first one is.
        stack = open_.setdefault(thread, list(next(iter(open_.values()), [root])))
        if last is None:
            root.child(PYTHON).grow(private, resident, 0.0)
        else:
            stack[-1].grow(private - last[1], resident - last[2], seconds - last[0])
        last = (seconds, private, resident)
        if kind == "open":
            stack.append(stack[-1].child(figures[3], figures[5], figures[4]))
        elif kind == "close" and len(stack) > 1:
            stack.pop()
    root.add_up()
    return root


def by_package(root: Node, own: Callable[[Node], bool]) -> Node:
    """Return the tree with a package's modules added up; the app's own modules (`own`) stay.

    What pandas imports of numpy, here and there, is one node below pandas.
    """
    merged = Node(root.name)
    _merge(root, merged, own)
    merged.add_up()
    return merged


def _merge(node: Node, into: Node, own: Callable[[Node], bool]) -> None:
    into.grow(node.own_bytes, node.own_resident, node.own_seconds)
    for child in node.children.values():
        name = child.name if own(child) else package(child.name)
        _merge(child, into if name == into.name else into.child(name, child.where, child.file), own)


def package(module: str) -> str:
    return module if module == PYTHON else module.partition(".")[0]


def ordered(node: Node) -> list[Node]:
    """Return the children, the largest first."""
    return sorted(node.children.values(), key=lambda child: (-child.bytes, child.name))


def pruned(node: Node, least: int) -> tuple[list[Node], list[Node]]:
    """Return the children of at least so many bytes, the largest first, and the others."""
    found = ordered(node)
    large = [child for child in found if child.bytes >= least]
    return large, found[len(large) :]


def as_json(node: Node) -> dict[str, Any]:
    """Return the node and all below as plain values."""
    return {
        "module": node.name,
        "imported_at": node.where or None,
        "file": node.file or None,
        "bytes": node.bytes,
        "own_bytes": node.own_bytes,
        "resident_bytes": node.resident,
        "own_resident_bytes": node.own_resident,
        "seconds": round(node.seconds, 6),
        "own_seconds": round(node.own_seconds, 6),
        "children": [as_json(child) for child in ordered(node)],
    }


class Row(NamedTuple):
    """A line of the tree."""

    branch: str  # what stands before the name
    name: str
    node: Node | None  # None for the sum of the small ones
    bytes: int
    resident: int
    seconds: float


def rows(node: Node, least: int, branch: str = "", below: str = "") -> Iterator[Row]:
    """Yield the rows of the tree. Nodes under `least` bytes share one row for each parent.

    That row is left out where all together are under a tenth of `least`.
    """
    yield Row(branch, node.name, node, node.bytes, node.resident, node.seconds)
    large, small = pruned(node, least)
    if sum(child.bytes for child in small) < least / 10:
        small = []
    for child in large:
        last = child is large[-1] and not small
        yield from rows(
            child, least, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  ")
        )
    if small and large:
        yield Row(
            below + "└─ ",
            f"({len(small)} smaller)",
            None,
            sum(child.bytes for child in small),
            sum(child.resident for child in small),
            sum(child.seconds for child in small),
        )
