"""The process that measures imports, on every Python: what it tells, and that it ends."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from lowmem_wsgi.cli.imports.process import Measured, measure
from lowmem_wsgi.cli.imports.tree import Node, build
from lowmem_wsgi.imports.app_path import parse_app

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="needs Linux's /proc/self/statm"
)
CODE = """\
import big
from big import keep as kept
try:
    import absent_package
except ImportError:
    pass

def app(environ, start_response):
    return [kept]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "app.py").write_text(CODE)
    (tmp_path / "big.py").write_text("import wave\nkeep = bytearray(8 << 20)\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(measured: Measured) -> Node:
    assert measured.failure is None
    return build("app", measured.events)


def test_each_import_is_told_with_its_place_and_its_size(folder: Path) -> None:
    app = tree(measure(parse_app("app:app"), 60)).children["app"]
    big = app.children["big"]
    assert big.where == f"{folder}/app.py:1"
    assert big.file == f"{folder}/big.py"
    assert "wave" in big.children
    assert big.own_bytes == pytest.approx(8 << 20, rel=0.05)
    assert app.own_bytes < 1 << 20


def test_a_package_can_be_late_left_out_or_imported_in_functions(folder: Path) -> None:
    app = parse_app("app:app")
    as_it_is = tree(measure(app, 60))
    big = as_it_is.children["app"].children["big"].bytes  # with `wave`, which it imports
    without = measure(app, 60, without=["big"]).failure
    assert without is not None
    assert (without.kind, without.at) == ("raised", f"{folder}/app.py:1")
    moved = tree(measure(app, 60, moved=["big"]))
    assert as_it_is.bytes - moved.bytes == pytest.approx(big, rel=0.1)
    with (folder / "app.py").open("a") as file:
        file.write("kept[0]\n")
    used = measure(app, 60, moved=["big"]).failure
    assert used is not None
    assert (used.message, used.at) == (
        "Used: big.keep is used while the app loads",
        f"{folder}/app.py:10",
    )
    (folder / "app.py").write_text("import big\napp = print\n")
    late = measure(app, 60, late=["big"])
    none_late = tree(measure(app, 60, late=[])).bytes
    assert none_late - tree(late).bytes == pytest.approx(big, rel=0.1)
    assert ("late", []) in late.events


def test_an_app_that_hangs_is_ended_with_what_it_was_at(folder: Path) -> None:
    (folder / "big.py").write_text("import time\ntime.sleep(600)\n")
    failure = measure(parse_app("app:app"), 1.5).failure
    assert failure is not None
    assert failure.kind == "timeout"
    assert failure.message == "is not loaded after 1.5 s while it imports big"


@pytest.mark.parametrize("ends", ["", "time.sleep(600)", "os._exit(3)"])
def test_what_the_app_starts_in_a_session_of_its_own_is_ended(folder: Path, ends: str) -> None:
    nested = "import subprocess as s; s.Popen(['sleep', '600'], start_new_session=True).wait()"
    (folder / "big.py").write_text(
        "import os, subprocess, sys, time\n"
        "keep = b''\n"
        f"subprocess.Popen([sys.executable, '-c', {nested!r}], start_new_session=True)\n"
        f"time.sleep(0.5)\n{ends}\n"
    )
    mine = subprocess.Popen(["sleep", "600"], cwd="/")
    try:
        measure(parse_app("app:app"), 3)
        here = [path for path in Path("/proc").glob("[0-9]*/cwd") if is_at(path, folder)]
        assert [path.parent.name for path in here] == [str(os.getpid())]
        assert mine.poll() is None
    finally:
        mine.kill()
        mine.wait()


def is_at(path: Path, folder: Path) -> bool:
    try:
        return path.readlink() == folder
    except OSError:
        return False
