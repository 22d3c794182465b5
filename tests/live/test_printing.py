"""How `lowmem-wsgi imports` and `doctor` print, whatever stdout is; and Ctrl-C from the start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.servers import SLOWER, clean_environ

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")

COMMAND = [sys.executable, "-m", "lowmem_wsgi"]
# Command line -> the exit code of its report.
REPORTS = {("imports", "--try", "0", "app:app"): 0, ("doctor", "--no-requests", "broken:app"): 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text("app = lambda environ, start_response: []\n")
    (tmp_path / "broken.py").write_text("raise ValueError('caf\\xe9')\n")
    return tmp_path


def run(folder: Path, words: tuple[str, ...], stdout: int, **env: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [*COMMAND, *words],
        cwd=folder,
        env=clean_environ({"PYTHONIOENCODING": "utf-8", **env}),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        timeout=120 * SLOWER,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("words", REPORTS)
def test_what_stdout_cannot_show_is_printed_in_plain_signs(
    words: tuple[str, ...], folder: Path
) -> None:
    code, out, errors = run(folder, words, subprocess.PIPE, PYTHONIOENCODING="ascii")
    assert (code, errors) == (REPORTS[words], "")
    assert out.isascii()
    assert ("caf\\xe9" if words[0] == "doctor" else "`- ") in out


@pytest.mark.parametrize("words", REPORTS)
def test_where_nobody_reads_on_the_exit_code_is_the_reports(
    words: tuple[str, ...], folder: Path
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    code, _, errors = run(folder, words, writer)
    os.close(writer)
    assert (code, errors) == (REPORTS[words], "")


@pytest.mark.parametrize("words", REPORTS)
@pytest.mark.parametrize("closed", ["<&- >&-", ">&-", ">&- 2>&-"])
def test_closed_streams_change_no_exit_code(
    words: tuple[str, ...], closed: str, folder: Path
) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, *words],
        cwd=folder,
        env=clean_environ({}),
        capture_output=True,
        text=True,
        timeout=120 * SLOWER,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (REPORTS[words], "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", REPORTS)
def test_a_full_disk_is_one_line(words: tuple[str, ...], folder: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    code, _, errors = run(folder, words, full)
    os.close(full)
    assert code == {"imports": 1, "doctor": 64}[words[0]]
    (line,) = errors.splitlines()
    assert line.startswith("lowmem-wsgi: ")
    assert "No space left on device" in line


@pytest.mark.parametrize("words", REPORTS)
@pytest.mark.parametrize("at", ["import", "app"])
def test_a_stopped_command_says_so(words: tuple[str, ...], at: str, folder: Path) -> None:
    """`import`: while the subcommand is imported."""
    (folder / "stops.py").write_text(
        "import os, signal, time\n"
        "os.kill(int(os.environ['COMMAND']), signal.SIGINT)\n"
        "time.sleep(600)\n"
    )
    start = (
        "import os, signal, sys\n"
        "from lowmem_wsgi import cli\n"
        # A job in the background ignores the signal.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "os.environ['COMMAND'] = str(os.getpid())\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'lowmem_wsgi.cli.' + sys.argv[1]: signal.raise_signal(signal.SIGINT)\n"
        "if sys.argv.pop() == 'import': sys.meta_path.insert(0, Finder())\n"
        "sys.exit(cli.main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", start, *words[:-1], "stops:app", at],
        cwd=folder,
        env=clean_environ({}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120 * SLOWER,
        check=False,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "lowmem-wsgi: stopped\n"
