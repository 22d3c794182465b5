"""The tree of imports: figures add up, whatever the order of events, and the text is in order."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lowmem_wsgi.cli.imports import tree
from lowmem_wsgi.cli.imports.tree import Node

MB = 1024 * 1024
Event = tuple[Any, ...]


class Process:
    """Events as `measure.py` tells them. Sizes in MB."""

    def __init__(self, start: int = 4) -> None:
        self.size, self.clock = start * MB, 0.0
        self.events: list[Event] = []
        self._tell("start", 1)

    def grow(self, size: int, seconds: float = 0.0) -> Process:
        self.size += size * MB
        self.clock += seconds
        return self

    def open(self, name: str, thread: int = 1, file: str = "", where: str = "") -> Process:
        return self._tell("open", thread, name, file or f"/lib/{name}.py", where)

    def close(self, thread: int = 1) -> Process:
        return self._tell("close", thread)

    def end(self) -> Process:
        return self._tell("end", 1)

    def _tell(self, kind: str, thread: int, *more: object) -> Process:
        self.events.append((kind, thread, self.clock, self.size, 2 * self.size, *more))
        return self


def sizes(node: Node) -> dict[str, tuple[int, int]]:
    """Name -> cumulative and own MB."""
    return {each.name: (each.bytes // MB, each.own_bytes // MB) for each in node.walk()}


def example() -> Node:
    process = Process().open("app").grow(1, 0.5)
    process.open("pandas", where="/srv/app.py:1").grow(20).open("numpy").grow(8, 2.0).close()
    process.open("pandas.io").grow(3).open("numpy.ma").grow(1).close().close().close()
    process.grow(2).open("small").close().close().end()
    return tree.build("app:app", process.events)


def test_each_module_has_what_it_took_itself_and_what_it_took_with_its_imports() -> None:
    assert sizes(example()) == {
        "app:app": (39, 0),
        "(Python itself)": (4, 4),
        "app": (35, 3),
        "pandas": (32, 20),
        "numpy": (8, 8),
        "pandas.io": (4, 3),
        "numpy.ma": (1, 1),
        "small": (0, 0),
    }
    pandas = example().children["app"].children["pandas"]
    assert (pandas.where, pandas.file, pandas.seconds) == ("/srv/app.py:1", "/lib/pandas.py", 2.0)
    assert pandas.resident == 2 * pandas.bytes


def test_the_modules_of_a_package_are_added_up_but_not_the_apps_own() -> None:
    process = Process().open("site.wsgi").open("site.views").open("numpy.ma").grow(2).close()
    process.grow(1).close().close().end()
    root = tree.build("site.wsgi:app", process.events)
    packages = tree.by_package(root, lambda node: node.name.startswith("site"))
    assert sizes(packages).keys() == {
        *("site.wsgi:app", "(Python itself)", "site.wsgi", "site.views", "numpy")
    }
    packages = tree.by_package(example(), lambda node: node.name == "app")
    assert sizes(packages)["pandas"] == (32, 23)
    assert sizes(packages)["numpy"] == (9, 9)
    assert packages.bytes == example().bytes


def test_what_is_loaded_in_other_threads_counts_once() -> None:
    process = Process().open("app").grow(1).open("a").grow(2).open("b", thread=2).grow(4)
    process.close(thread=1).grow(8).close(thread=2).grow(1).close().end()
    root = tree.build("app", process.events)
    assert root.bytes == process.size
    assert sum(node.own_bytes for node in root.walk()) == process.size


@given(st.lists(st.tuples(st.sampled_from("oc"), st.integers(1, 3), st.integers(-3, 9))))
def test_own_figures_add_up_to_the_process_whatever_happens(
    steps: list[tuple[str, int, int]],
) -> None:
    process, names = Process(), itertools.count()
    for kind, thread, growth in steps:
        process.grow(growth, 1.0)
        process.open(f"m{next(names)}", thread) if kind == "o" else process.close(thread)
    root = tree.build("app", process.end().events)
    assert root.bytes == sum(node.own_bytes for node in root.walk()) == process.size
    assert root.seconds == sum(node.own_seconds for node in root.walk()) == process.clock
    for node in root.walk():
        assert node.bytes == node.own_bytes + sum(c.bytes for c in node.children.values())


def test_a_module_that_is_loaded_again_is_one_node() -> None:
    process = Process().open("app")
    for _ in range(2):
        process.open("again").grow(1).close()
    assert sizes(tree.build("app", process.close().end().events))["again"] == (2, 2)


def test_rows_are_the_largest_first_and_small_ones_share_one() -> None:
    process = Process(9).open("app")
    for name, size in (("one", 1), ("five", 5), ("seven", 7), ("two", 2)):
        process.open(name).grow(size).close()
    root = tree.build("app:app", process.close().end().events)
    shown = [f"{row.branch}{row.name} {row.bytes // MB}" for row in tree.rows(root, 5 * MB)]
    assert shown == [
        "app:app 24",
        "├─ app 15",
        "│  ├─ seven 7",
        "│  ├─ five 5",
        "│  └─ (2 smaller) 3",
        "└─ (Python itself) 9",
    ]


def test_nothing_is_no_row() -> None:
    root = tree.build(
        "app", Process(9).open("app").grow(5).open("zero").close().close().end().events
    )
    assert [row.name for row in tree.rows(root, MB)] == ["app", "(Python itself)", "app"]


def test_as_json_has_the_whole_tree() -> None:
    found = tree.as_json(example())
    assert found["bytes"] == 39 * MB
    (app, python) = found["children"]
    assert (app["module"], app["own_bytes"], app["imported_at"]) == ("app", 3 * MB, None)
    assert python["children"] == []
    assert app["children"][0]["imported_at"] == "/srv/app.py:1"
