"""README.md and docs/: each line of a shell block runs, or the table below says why not."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.docs import PAGES, blocks
from helpers.example import EXAMPLE
from helpers.servers import SLOWER, Server, clean_environ, serve

# What a line begins with, after its variables -> why it is not run here.
NOT_RUN = {
    "make ": "takes minutes; CI runs it, and tests/live/test_example.py the example",
    "pip ": "asks a package index",
    "python3 -m pip ": "asks a package index; CI builds the wheel, and tests it",
    "gunicorn app:app ": "make matrix starts it",
    "uwsgi ": "make matrix starts it",
    "waitress-serve ": "make matrix starts it",
    "granian ": "make matrix starts it",
    "python -m cheroot ": "make matrix starts it",
    "mod_wsgi-express ": "make matrix starts it",
    "tools/cgroup2-vm.sh ": "starts a virtual machine; make test-v2 does",
    "lowmem-wsgi compare ": "takes minutes; tests/live/test_compare_command.py runs it",
    "lowmem-wsgi trace ": "asks a site that is up",
    "export TESTS_SLOWER": "belongs to the virtual machine",
}
APP = """\
from flask import Flask

app = Flask(__name__)


@app.get("/")
def home():
    return "hello"
"""
BIN = Path(sys.executable).parent
VARIABLE = re.compile(r"[A-Z_]+=")


def reason(line: str) -> str | None:
    """Why a line is not run, if it is not."""
    return next((why for start, why in NOT_RUN.items() if line.startswith(start)), None)


def serves(line: str) -> bool:
    return re.search(r"lowmem-wsgi run (?!.*--dry-run)|gunicorn -c", line) is not None


LINES = [
    (page.name, number, line)
    for page in PAGES
    for first, code in blocks(page, "sh")
    for number, line in enumerate(code.splitlines(), first)
]
RUN = [(f"{page}:{number}", line) for page, number, line in LINES if reason(line) is None]
SERVERS = [row for row in RUN if serves(row[1])]
ASKING = [row for row in RUN if "curl " in row[1]]
OTHERS = [row for row in RUN if row not in SERVERS and row not in ASKING]


def named(rows: list[tuple[str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("line", [row[1] for row in rows], ids=[row[0] for row in rows])


def environ(**more: str) -> dict[str, str]:
    return {"PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin", **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an app under both names that the pages use, and an error page."""
    for name in ("app.py", "main.py"):
        (tmp_path / name).write_text(APP)
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "refused.html").write_text("<h1>$status</h1>")
    return tmp_path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """What `make demo` serves."""
    folder = tmp_path_factory.mktemp("demo")
    env = {"CLIENTS_DIR": str(folder), "LOWMEM_ADMIN_TOKEN": "demo"}
    with serve("app:app", "run", tmp_path=folder, cwd=EXAMPLE, env=env) as running:
        yield running


def test_each_reason_for_not_running_is_needed() -> None:
    for start in NOT_RUN:
        ours = start.startswith("lowmem-wsgi ")
        assert ours or any(line.startswith(start) for _, _, line in LINES), start


@named(SERVERS)
def test_a_command_that_serves_serves(line: str, folder: Path) -> None:
    words = shlex.split(line)
    variables = dict(word.split("=", 1) for word in words if VARIABLE.match(word))
    command = words[len(variables) :]
    with serve(
        "app:app",
        "a-page-of-the-docs",
        command=lambda port: [*command, "--bind", f"127.0.0.1:{port}"],
        tmp_path=folder,
        cwd=folder,
        env=environ(XDG_RUNTIME_DIR=str(folder), **variables),
    ) as running:
        assert running.get("/").text == "hello"
        status = running.get("/api/memory-status").status
        assert status == (401 if "LOWMEM_ADMIN_TOKEN" in variables else 200)
    assert "[ERROR]" not in running.log


@named(ASKING)
def test_a_command_that_asks_is_answered(line: str, site: Server, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    address = f"http://127.0.0.1:{site.port}"
    done = subprocess.run(
        [
            "sh",
            "-c",
            re.sub(r"\bcurl ", "curl -sS ", line).replace("http://127.0.0.1:8000", address),
        ],
        cwd=tmp_path,
        env=clean_environ(environ(SITE=address, TOKEN="demo")),
        capture_output=True,
        text=True,
        timeout=60 * SLOWER,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if "healthz" in line:
        assert done.stdout == "ok"
    elif "http_code" in line:
        assert done.stdout.strip() == "413"
    elif "force-cleanup" in line:
        assert '"before_bytes"' in done.stdout
    elif "Bearer" in line or " -u " in line:
        assert done.stdout.startswith('{"status": "ok", "memory": {"used_bytes": ')
    else:  # without the token, as render.md says
        assert "token" in done.stdout


@named(OTHERS)
def test_any_other_command_succeeds(line: str, folder: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", line],
        cwd=folder,
        env=clean_environ(environ(XDG_RUNTIME_DIR=str(folder))),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120 * SLOWER,
        check=False,
    )
    advice = 1 if "doctor" in line else 0  # its exit code where it has advice
    assert done.returncode in (0, advice), done.stdout + done.stderr
    assert done.stdout
