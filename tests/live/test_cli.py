"""The command `lowmem-wsgi`, and its subcommand `run`: what it sets, and that it is Gunicorn."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.servers import APPS, Server, clean_environ, stop, wait_for
from lowmem_wsgi import __version__
from lowmem_wsgi.cli import COMMANDS, main, run
from lowmem_wsgi.settings import SettingsError
from lowmem_wsgi.system import native
from lowmem_wsgi.workers import variables

COMMAND = [sys.executable, "-m", "lowmem_wsgi"]
NAMES = {row.name for row in variables.VARIABLES}
HEAP = {"MALLOC_ARENA_MAX"}
GLIBC = {*HEAP, "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"}
LOCAL = ("--bind", "127.0.0.1:0")


@pytest.fixture(autouse=True)
def nothing_set_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, "PORT"):
        monkeypatch.delenv(name, raising=False)


# --- The environment


def test_on_glibc_all_variables_are_set_and_the_users_own_are_kept() -> None:
    made = variables.environment({"HOME": "/home/me"}, glibc=True)
    assert made == {"HOME": "/home/me", **{row.name: row.value for row in variables.VARIABLES}}


def test_without_glibc_its_variables_stay_unset() -> None:
    assert variables.environment({}, glibc=False).keys() == NAMES - GLIBC


def test_where_nothing_is_given_back_the_heap_stays_as_it_is() -> None:
    assert variables.environment({"LOWMEM_TRIM": "off"}, glibc=True).keys() & NAMES == NAMES - HEAP


def test_python_keeps_its_allocator_at_the_start() -> None:
    """It holds what is loaded in less memory. (A free-threaded Python has no other.)"""
    assert "PYTHONMALLOC" not in variables.environment({}, glibc=True)


def test_a_value_of_the_users_own_stands_and_an_empty_one_leaves_it_unset() -> None:
    given = {"PYTHONMALLOC": "pymalloc", "OMP_NUM_THREADS": "4", "MALLOC_ARENA_MAX": "", "PORT": ""}
    made = variables.environment(given, glibc=True)
    assert (made["PYTHONMALLOC"], made["OMP_NUM_THREADS"]) == ("pymalloc", "4")
    assert "MALLOC_ARENA_MAX" not in made
    assert "PORT" not in made


def test_a_wrong_setting_is_told_before_anything_starts() -> None:
    with pytest.raises(SettingsError, match="LOWMEM_TRIM='yess'"):
        variables.environment({"LOWMEM_TRIM": "yess"}, glibc=True)


def test_glibc_is_known_from_other_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    def musl(name: str) -> str:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "confstr", musl, raising=False)
    assert not native.on_glibc()
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36")
    assert native.on_glibc()
    monkeypatch.delattr(os, "confstr")
    assert not native.on_glibc()


# --- The command line

OURS = ["-c", run.CONFIG]


def test_the_users_words_follow_ours_in_their_order() -> None:
    words = ["-c", "mine.py", "--threads", "2", "app:app"]
    assert run.arguments(words, {}) == [*OURS, *words]


@pytest.mark.parametrize("port", ["1", " 8080 ", "65535"])
def test_a_port_is_bound_on_all_addresses(port: str) -> None:
    bind = ["--bind", f"0.0.0.0:{port.strip()}"]
    assert run.arguments(["app:app"], {"PORT": port}) == [*OURS, *bind, "app:app"]


@pytest.mark.parametrize(
    "bind", [["-b", ":1"], ["-b:1"], ["--bind", ":1"], ["--bind=:1"], ["--bin=:1"]]
)
def test_a_bind_of_the_users_own_is_the_only_one(bind: list[str]) -> None:
    # A port that nobody binds to is nobody's mistake.
    assert run.arguments([*bind, "app:app"], {"PORT": "http"}) == [*OURS, *bind, "app:app"]


@pytest.mark.parametrize("words", [["--backlog", "9"], ["app:build"], ["--env", "A=-b"]])
def test_what_only_looks_like_a_bind_is_none(words: list[str]) -> None:
    assert "--bind" in run.arguments(words, {"PORT": "80"})


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http", "8000.", "9" * 5000, "\u0668\u0660"])
def test_a_port_that_is_none_is_told(port: str) -> None:
    with pytest.raises(SettingsError, match=r"PORT=.*: expected a port from 1 to 65535"):
        run.arguments(["app:app"], {"PORT": port})


# --- What is said


def test_the_help_lists_the_commands_and_every_variable(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in COMMANDS)
    for words in (["-h"], ["--help"], ["--threads", "2", "--help", "app:app"]):
        assert main(["run", *words]) == 0
        text = capsys.readouterr().out
        assert all(
            f"{row.name}={row.value}" in text and row.why in text for row in variables.VARIABLES
        )
        assert max(map(len, text.splitlines())) <= 100


def test_the_page_on_run_has_the_variables_of_the_table() -> None:
    text = (APPS.parents[1] / "docs" / "run.md").read_text(encoding="utf-8")
    rows = text.partition("## What it sets")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[A-Z].*?) \| `(.+?)` \| (.+?) \|", rows, re.MULTILINE)
    told = {
        (name, value, tuple(re.findall("glibc|trim", where.lower())))
        for names, value, where in cells
        for name in re.findall("`(.+?)`", names)
    }
    assert told == {(row.name, row.value, row.needs) for row in variables.VARIABLES}


def test_every_command_has_a_module() -> None:
    for name in COMMANDS:
        assert importlib.util.find_spec(f"lowmem_wsgi.cli.{name}") is not None


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lowmem-wsgi {__version__}\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rum", "app:app"], "no such command: 'rum'; did you mean run?"),
        (["app:app"], "no such command: 'app:app'; there is run"),
        ([], "usage: lowmem-wsgi COMMAND"),
        (["run"], "usage: lowmem-wsgi run"),
    ],
)
def test_a_wrong_command_is_answered_with_2_and_what_to_type(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert not said.out


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("PORT", "http", "PORT='http': expected a port from 1 to 65535"),
        ("WEB_CONCURRENCY", "two", "WEB_CONCURRENCY='two': expected a whole number from 1"),
        ("MAX_REQUESTS", "-1", "MAX_REQUESTS='-1': expected a whole number from 0"),
        ("LOWMEM_TRIM", "yess", "LOWMEM_TRIM='yess': expected 1/0, true/false, on/off or yes/no"),
        ("LOWMEM_TRMI", "1", "LOWMEM_TRMI='1': no such variable; did you mean LOWMEM_TRIM?"),
    ],
)
def test_a_wrong_variable_is_one_line_and_2(variable: str, value: str, told: str) -> None:
    done = subprocess.run(
        [*COMMAND, "run", "plain:bare"],
        cwd=APPS,
        env=clean_environ({variable: value}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, f"lowmem-wsgi: {told}\n")


def test_without_gunicorn_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    assert main(["run", "app:app"]) == 1
    assert "pip install 'lowmem-wsgi[gunicorn]'" in capsys.readouterr().err


def test_on_windows_it_names_another_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        code = main(["run", "app:app"])
    assert code == 1
    assert "waitress" in capsys.readouterr().err


# --- Real servers


@contextlib.contextmanager
def running(
    tmp_path: Path, *words: str, address: str = "127.0.0.1", cwd: Path = APPS, **env: str
) -> Iterator[Server]:
    """`lowmem-wsgi run` with these words, until the block ends."""
    log_path = tmp_path / "run.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*COMMAND, "run", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=clean_environ(env),
        )
    server = Server(process, log_path, env=env)
    listening = re.compile(rf"Listening at: http://{re.escape(address)}:(\d+)")
    try:
        wait_for(lambda: process.poll() is not None or listening.search(server.log), "a port")
        found = listening.search(server.log)
        assert found, server.log
        server.port = int(found[1])
        yield server
    finally:
        stop(process)


def environ_of(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if pair)


needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc")


@pytest.mark.parametrize(
    ("app", "told"),
    [
        ("plane:bare", "no module 'plane'; did you mean plain:bare?"),
        ("plain:bear", "plain has no 'bear'; did you mean plain:bare?"),
        ("plain:json", "'plain:json' names no WSGI app: "),
        ("plain:bare[0]", "'plain:bare[0]': expected a name or a call after the colon"),
    ],
)
def test_an_app_that_is_not_there_is_one_line_with_the_nearest_name(app: str, told: str) -> None:
    done = subprocess.run(
        [*COMMAND, "run", *LOCAL, app],
        cwd=APPS,
        env=clean_environ({}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 4  # Gunicorn's own for an app that cannot be loaded
    (line,) = [line for line in done.stderr.splitlines() if "[ERROR]" in line]
    assert told in line
    assert "Traceback" not in done.stderr


def test_a_factory_is_called_and_one_line_says_what_is_in_force(tmp_path: Path) -> None:
    (tmp_path / "site_app.py").write_text("import plain\ndef create_app(): return plain.bare\n")
    words = (*LOCAL, "--pythonpath", str(APPS), "--threads", "2", "site_app:create_app()")
    env = {"LOWMEM_MEMORY_LIMIT": "512MB", "WEB_CONCURRENCY": "1"}
    with running(tmp_path, *words, cwd=tmp_path, **env) as server:
        assert server.get("/").text == "hello"
        line = next(line for line in server.log.splitlines() if "limit 512 MB" in line)
        assert "warn at 400 MB, critical at 450 MB; 1 worker of 2 threads; allocator: " in line
        assert ("the C library, 1 heap" in line) == native.on_glibc()
        assert line.endswith("imported late: nothing")


# --- --check


def test_advice_is_told_and_the_site_is_served(tmp_path: Path) -> None:
    words = (*LOCAL, "--check", "--max-requests", "50", "plain:bare")
    with running(tmp_path, *words, LOWMEM_ADMIN_TOKEN="t") as server:
        assert server.get("/").text == "hello"
        told = [line for line in server.log.splitlines() if line.startswith("lowmem-wsgi: ")]
        assert len(told) == 1, told
        assert told[0].startswith("lowmem-wsgi: few requests: each worker ends after 50 requests")


def test_a_healthy_site_is_served_without_a_word(tmp_path: Path) -> None:
    with running(tmp_path, *LOCAL, "--check", "plain:bare", LOWMEM_ADMIN_TOKEN="t") as server:
        assert "lowmem-wsgi: " not in server.log


def test_what_would_die_is_not_served() -> None:
    done = subprocess.run(
        [*COMMAND, "run", "--check", "--workers", "many", "plain:bare"],
        cwd=APPS,
        env=clean_environ({"LOWMEM_ADMIN_TOKEN": "t"}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("lowmem-wsgi: does not load: Gunicorn's config: ")
    assert "many" in line


@needs_proc
def test_the_process_becomes_gunicorn_wrapped_and_in_our_environment(tmp_path: Path) -> None:
    with running(tmp_path, *LOCAL, "plain:bare", OMP_NUM_THREADS="2", MKL_NUM_THREADS="") as server:
        assert json.loads(server.get("/lowmem").body)["home_rows"] == 5  # our config wrapped it
        assert f"({server.process.pid})" in server.log.partition("Listening at")[2]
        (worker,) = server.workers()
        expected = variables.environment({}, native.on_glibc())
        del expected["MKL_NUM_THREADS"]
        for pid in (server.process.pid, worker):
            found = {name: text for name, text in environ_of(pid).items() if name in NAMES}
            assert found == {**expected, "OMP_NUM_THREADS": "2"}
        assert b"lowmem_wsgi\0run" not in Path(f"/proc/{worker}/cmdline").read_bytes()


def test_the_end_of_it_is_gunicorns(tmp_path: Path) -> None:
    with running(tmp_path, *LOCAL, "plain:bare") as server:
        assert server.get("/").text == "hello"
        server.process.terminate()
        assert server.process.wait(20) == 0
        assert "Handling signal: term" in server.log


def test_what_gunicorn_does_not_take_ends_with_its_words_and_its_exit_code() -> None:
    done = subprocess.run(
        [*COMMAND, "run", *LOCAL, "--no-such-option", "plain:bare"],
        env=clean_environ({}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "unrecognized arguments: --no-such-option" in done.stderr


def test_port_beats_the_bind_in_gunicorn_cmd_args(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with running(
        tmp_path,
        "plain:bare",
        address="0.0.0.0",
        PORT=str(port),
        GUNICORN_CMD_ARGS="--preload --access-logfile - --bind=127.0.0.1:1",
    ) as server:
        assert server.port == port
        assert server.get("/").text == "hello"
        wait_for(
            lambda: '"GET / HTTP/1.1" 200' in server.log, "the access log of GUNICORN_CMD_ARGS"
        )


def test_a_config_of_the_sites_own_takes_the_place_of_ours(tmp_path: Path) -> None:
    config = tmp_path / "site_config.py"
    config.write_text("from lowmem_wsgi.gunicorn import *\nworkers = 2\n")
    with running(tmp_path, *LOCAL, "-c", str(config), "plain:bare") as server:
        assert server.get("/lowmem").status == 200
        wait_for(lambda: len(server.workers()) == 2, "two workers")


@pytest.mark.skipif(not run.SAFE_PATH, reason="Python 3.10 takes the file for Gunicorn")
def test_a_file_of_the_apps_named_gunicorn_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "gunicorn.py").write_text("raise SystemExit('the wrong one')\n")
    (tmp_path / "site_app.py").write_text("from plain import bare\n")
    words = (*LOCAL, "--pythonpath", str(APPS), "site_app:bare")
    with running(tmp_path, *words, cwd=tmp_path) as server:
        assert server.get("/").text == "hello"


def test_the_line_of_a_dry_run_does_the_same(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "run", "--dry-run", "--print-config", "plain:bare"],
        cwd=APPS,
        env=clean_environ({"MKL_NUM_THREADS": "", "LOWMEM_ADMIN_TOKEN": "hidden"}),
        capture_output=True,
        text=True,
        check=True,
    )
    words = shlex.split(done.stdout)
    assert words[:3] == ["env", "-u", "MKL_NUM_THREADS"]
    assert "MALLOC_ARENA_MAX=1" in words or not native.on_glibc()
    assert "hidden" not in done.stdout
    asked = subprocess.run(
        words, cwd=APPS, env=clean_environ({}), capture_output=True, text=True, check=False
    )
    assert asked.returncode == 0, asked.stderr
    assert re.search(r"^config += python:lowmem_wsgi\.gunicorn$", asked.stdout, re.MULTILINE)
