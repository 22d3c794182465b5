"""New objects in the C library's memory: each test in a process of its own."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
import textwrap

import pytest

from lowmem_wsgi.system.malloc import MALLOPT, UNSET, in_force, missing, use_system_malloc
from lowmem_wsgi.system.native import has_gil, on_glibc

pytestmark = pytest.mark.skipif(
    not (on_glibc() and has_gil()), reason="LowMemory leaves the allocator alone here"
)

BEGIN = """
    import gc, os, sys, tracemalloc
    from lowmem_wsgi.system.malloc import malloc_trim, use_system_malloc

    def rss():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def spike():
        # Return by how much the process is larger after a spike that leaves a little behind.
        gc.collect()
        malloc_trim()
        before = rss()
        rows = [{"id": n, "name": f"client {n}"} for n in range(200_000)]
        kept = rows[::2000]
        rows = None
        gc.collect()
        malloc_trim()
        return (rss() - before) / 2**20
"""


def said(code: str, **env: str) -> str:
    """What a Python says that has run BEGIN and then `code`."""
    environ = {name: text for name, text in os.environ.items() if name != "PYTHONMALLOC"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BEGIN) + textwrap.dedent(code)],
        env={**environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_spike_that_leaves_objects_behind_is_given_back() -> None:
    pinned = float(said("print(spike())"))
    given_back = float(said("use_system_malloc()\nprint(spike())"))
    assert given_back < pinned / 3


def test_old_and_new_objects_grow_shrink_and_go() -> None:
    code = """
        old = [[n] * 5 for n in range(50_000)]
        texts = [f"text {n}" for n in range(50_000)]
        undo = use_system_malloc()
        for row in old:
            row.extend(range(20))
        new = [[n] * 5 for n in range(50_000)]
        texts = [text + "!" for text in texts]
        undo()
        for row in new:
            row.extend(range(20))
        assert all(row[5:] == list(range(20)) for row in (*old, *new))
        assert texts[-1] == "text 49999!"
        del old, new, texts
        gc.collect()
        print("whole")
    """
    assert said(code) == "whole"


def test_undone_python_has_its_allocator_back() -> None:
    code = """
        def made():
            before = sys.getallocatedblocks()
            kept = [object() for _ in range(10_000)]
            return sys.getallocatedblocks() - before >= 10_000

        undo = use_system_malloc()
        again = use_system_malloc()  # as another interpreter of the process would
        again()
        print(made())
        undo()
        print(made())
    """
    assert said(code) == "False\nTrue"


def test_an_allocator_of_somebody_elses_stays() -> None:
    assert said("print(use_system_malloc())", PYTHONMALLOC="pymalloc") == "None"
    assert said("tracemalloc.start()\nprint(use_system_malloc())") == "None"


def test_tracing_that_begins_later_is_left_on() -> None:
    code = """
        undo = use_system_malloc()
        tracemalloc.start()
        undo()
        kept = [bytearray(1000) for _ in range(1000)]
        print(tracemalloc.get_traced_memory()[0] > 1_000_000)
    """
    assert said(code) == "True"


def test_what_the_user_has_set_or_keeps_unset_is_not_set_at_run_time() -> None:
    assert [*missing({})] == [*MALLOPT]
    given = {"MALLOC_ARENA_MAX": "2", UNSET: "MALLOC_TRIM_THRESHOLD_,OMP_NUM_THREADS"}
    assert [*missing(given)] == ["MALLOC_MMAP_THRESHOLD_"]
    tunables = "glibc.malloc.arena_max=4:glibc.malloc.mmap_threshold=1048576"
    assert [*missing({"GLIBC_TUNABLES": tunables})] == ["MALLOC_TRIM_THRESHOLD_"]


def test_the_status_tells_the_allocator_in_force_and_not_only_the_variables() -> None:
    unset = {"PYTHONMALLOC": None, "MALLOC_ARENA_MAX": None}
    assert in_force({}, switched=False) == unset
    assert in_force({}, switched=True) == {"PYTHONMALLOC": "malloc", "MALLOC_ARENA_MAX": "1"}
    given = {"PYTHONMALLOC": "debug", "MALLOC_ARENA_MAX": "2"}
    assert in_force(given, switched=False) == given
    assert in_force({"MALLOC_ARENA_MAX": "2"}, switched=True)["MALLOC_ARENA_MAX"] == "2"
    assert in_force({UNSET: "MALLOC_ARENA_MAX"}, switched=True)["MALLOC_ARENA_MAX"] is None


def test_a_free_threaded_python_keeps_its_allocator() -> None:
    assert use_system_malloc({}, gil=False) is None


JEMALLOC = ctypes.util.find_library("jemalloc")


@pytest.mark.skipif(JEMALLOC is None, reason="jemalloc is not installed (Debian: libjemalloc2)")
def test_another_malloc_that_is_preloaded_is_left_alone() -> None:
    code = """
        from lowmem_wsgi.system.malloc import fill_holes, find_in_use, is_glibcs
        print(is_glibcs(), use_system_malloc(), find_in_use(), fill_holes())
    """
    assert said(code, LD_PRELOAD=JEMALLOC or "") == "False None None 0"


def test_glibcs_own_malloc_is_known() -> None:
    assert said("from lowmem_wsgi.system.malloc import is_glibcs; print(is_glibcs())") == "True"


HOLES = textwrap.dedent("""
    from lowmem_wsgi.system.malloc import fill_holes

    def private():
        with open("/proc/self/smaps_rollup") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith("Private_Dirty"))

    rows = [bytes(600) for _ in range(70_000)]
    del rows[::7]  # a hole on most pages
    gc.collect()

    def copied():
        # Return how many KB a child has of its own when it has made 3 MB of objects.
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            new = [bytes(600) for _ in range(5_000)]
            os.write(writing, str(private()).encode())
            os._exit(0)
        os.waitpid(child, 0)
        return int(os.read(reading, 100))
""")


def test_a_child_whose_parent_has_filled_its_holes_copies_no_page_for_each_new_object() -> None:
    print_both = HOLES + "print(copied(), fill_holes() and copied())"
    before, after = map(int, said(print_both).split())
    assert before > 20_000
    assert 3_000 < after < 6_000


def test_filling_takes_the_holes_and_no_more() -> None:
    code = """
before = rss()
print(fill_holes(), fill_holes(), rss() - before)
"""
    first, second, grown = map(int, said(HOLES + code).split())
    assert 6_000_000 < first < 8_000_000  # 10,000 of some 616 bytes
    assert second < 500_000
    assert grown < 2_000_000
