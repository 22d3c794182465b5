"""What offload promises of its children: they end with the worker, whatever else lives on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from helpers.servers import clean_environ, wait_for

TASKS = """
    import os, time
    from lowmem_wsgi import offload

    @offload(timeout=None)
    def forever(note):
        with open(note + ".part", "w") as file:
            file.write(str(os.getpid()))
        os.rename(note + ".part", note)
        time.sleep(600)
"""
WORKER = """
    import multiprocessing, os, signal, sys, time
    import forever_tasks

    child, forked = sys.argv[1:3]
    forever_tasks.forever.submit(child)
    while not os.path.exists(child):
        time.sleep(0.01)
    {fork}
"""
FORKS = {
    "os.fork": """
    if os.fork() == 0:
        with open(forked + ".part", "w") as file:
            file.write(str(os.getpid()))
        os.rename(forked + ".part", forked)
    signal.pause()
""",
    "multiprocessing": """
    def stay():
        with open(forked + ".part", "w") as file:
            file.write(str(os.getpid()))
        os.rename(forked + ".part", forked)
        signal.pause()
    multiprocessing.get_context("fork").Process(target=stay).start()
    signal.pause()
""",
}


def alive(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("fork", FORKS)
def test_a_child_ends_with_its_worker_while_a_fork_of_the_worker_lives_on(
    tmp_path: Path, fork: str
) -> None:
    (tmp_path / "forever_tasks.py").write_text(textwrap.dedent(TASKS))
    script = textwrap.dedent(WORKER).replace("{fork}", textwrap.dedent(FORKS[fork]))
    notes = tmp_path / "child", tmp_path / "forked"
    worker = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, *map(str, notes)],
        cwd=tmp_path,
        env=clean_environ({"XDG_RUNTIME_DIR": str(tmp_path)}),
    )
    pids = []
    try:
        for note in notes:
            wait_for(note.exists, note.name)
            pids.append(int(note.read_text()))
        child, forked = pids
        assert alive(child)
        worker.kill()
        worker.wait()
        wait_for(lambda: not alive(child), "the child to end", seconds=20)
        assert alive(forked)
    finally:
        worker.kill()
        worker.wait()
        for pid in pids:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_call_goes_on_while_the_worker_forks(tmp_path: Path) -> None:
    """What the fork lets go of is its own, and not the parent's."""
    (tmp_path / "slow_tasks.py").write_text(
        textwrap.dedent("""
        import os, time
        from lowmem_wsgi import offload

        @offload(timeout="60s")
        def slow(begun, until):
            open(begun, "w").close()
            while not os.path.exists(until):
                time.sleep(0.01)
            return "whole"
        """)
    )
    script = textwrap.dedent("""
        import os, sys, time
        import slow_tasks

        future = slow_tasks.slow.submit("begun", "until")
        while not os.path.exists("begun"):
            time.sleep(0.01)
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        open("until", "w").close()
        print(future.result())
    """)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=tmp_path,
        env=clean_environ({"XDG_RUNTIME_DIR": str(tmp_path)}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr
