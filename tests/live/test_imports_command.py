"""`lowmem-wsgi imports`: its totals are the kernel's, its savings true, and it leaves nothing."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helpers.browser import Visit, chromium
from helpers.commands import assert_refused
from helpers.servers import HERE, SLOWER, clean_environ, wait_for

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc/self/smaps_rollup"
)

MB = 1024 * 1024
COMMAND = [sys.executable, "-m", "lowmem_wsgi", "imports"]
TOO_FAINT = (HERE / "contrast.js").read_text()

SERVED = "app = lambda environ, start_response: []\n"
FLASK = "from flask import Flask\napp = Flask(__name__)\n"
DJANGO = """\
from django.conf import settings
from django.core.wsgi import get_wsgi_application
settings.configure(SECRET_KEY="x" * 50, ROOT_URLCONF="app", INSTALLED_APPS=[
    "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"])
urlpatterns = []
app = get_wsgi_application()
"""
SQLALCHEMY = "from sqlalchemy import create_engine\nengine = create_engine('sqlite://')\n"
STACKS = {
    "flask": FLASK,
    "django": DJANGO,
    "pandas": FLASK + "import pandas as pd\n",
    "sqlalchemy": FLASK + SQLALCHEMY,
    "pyramid": "from pyramid.config import Configurator\napp = Configurator().make_wsgi_app()\n",
}


def run(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words],
        cwd=folder,
        env=clean_environ(env),
        capture_output=True,
        text=True,
        check=False,
        timeout=300 * SLOWER,
    )


def figures(folder: Path, *words: str, **env: str) -> dict[str, Any]:
    done = run(folder, "--json", *words, **env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def write(folder: Path, **modules: str) -> Path:
    for name, code in modules.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(code))
    return folder


def of_the_kernel(folder: Path, *, imports: str = "app", **env: str) -> dict[str, int]:
    """smaps_rollup, as another process sees it, of one that has imported this and no more."""
    with subprocess.Popen(
        [sys.executable, "-c", f"import {imports}; print(flush=True); input()"],
        cwd=folder,
        env=clean_environ(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.wait(60)
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}


# --- The totals


@pytest.mark.parametrize("stack", STACKS)
def test_the_totals_are_the_kernels(stack: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(stack) is None:
        pytest.skip(f"{stack} is not installed")
    write(tmp_path, app=STACKS[stack])
    found, kernel = figures(tmp_path, "--try", "0", "app:app"), of_the_kernel(tmp_path)
    assert found["bytes"] == pytest.approx(kernel["Anonymous"], rel=0.05)
    assert found["resident_bytes"] == pytest.approx(kernel["Rss"], rel=0.05)
    for tree in ("modules", "packages"):
        assert found[tree]["bytes"] == found["bytes"] == sum(own_bytes(found[tree]))


def own_bytes(tree: dict[str, Any]) -> Iterator[int]:
    yield tree["own_bytes"]
    for child in tree["children"]:
        yield from own_bytes(child)


def node(tree: dict[str, Any], name: str) -> dict[str, Any]:
    found = find(tree, name)
    assert found is not None, name
    return found


def find(tree: dict[str, Any], name: str) -> dict[str, Any] | None:
    if tree["module"] == name:
        return tree
    return next(filter(None, (find(child, name) for child in tree["children"])), None)


# --- Packages of a known size


@pytest.fixture
def packages(tmp_path: Path) -> dict[str, str]:
    """Packages that take 8, 6, 4 and 10 MB, as if installed; the environment that has them."""
    for name, size in (("eight", 8), ("six", 6), ("four", 4)):
        write(tmp_path, **{name: f"keep = bytearray({size} << 20)\ndef use(): return keep"})
    write(tmp_path, ten="import four\nkeep = bytearray(6 << 20)")
    installed = tmp_path / "site-packages"
    installed.mkdir()
    for path in tmp_path.glob("*.py"):
        path.rename(installed / path.name)
    return {"PYTHONPATH": str(installed)}


APP = """\
import eight
from six import keep, use
import ten
try:
    import four
except ImportError:
    four = None

used = eight.use
app = lambda environ, start_response: [use()]
"""


def test_each_import_has_what_it_takes_and_what_it_saves(
    tmp_path: Path, packages: dict[str, str]
) -> None:
    write(tmp_path, app=APP)
    found = figures(tmp_path, "app:app", LOWMEM_HEAVY_MODULES="four", **packages)
    for name, cumulative, own in (("eight", 8, 8), ("six", 6, 6), ("ten", 10, 6), ("four", 4, 4)):
        row = node(found["packages"], name)
        assert row["bytes"] == pytest.approx(cumulative * MB, rel=0.05)
        assert row["own_bytes"] == pytest.approx(own * MB, rel=0.05)
    assert node(found["modules"], "ten")["children"][0]["module"] == "four"
    tried = {each["package"]: each for each in found["tried"]}
    assert list(tried) == ["ten", "eight", "six", "four"]
    says = {name: " | ".join(each["says"]) for name, each in tried.items()}
    # Late: all of ten but what else imports four.
    assert tried["ten"]["late"]["saved_bytes"] == pytest.approx(6 * MB, rel=0.05)
    uses = "late: saves nothing; the app uses {} while it loads: {}"
    assert uses.format("eight", "app.py:9  used = eight") in says["eight"]
    if sys.version_info < (3, 15):  # there, `from` waits too
        assert uses.format("six", "app.py:2  from six import") in says["six"]
        assert tried["six"]["in_functions"]["saved_bytes"] == pytest.approx(6 * MB, rel=0.05)
    assert tried["four"]["late"]["saved_bytes"] == pytest.approx(4 * MB, rel=0.05)
    # Left out: four is needed by ten.
    assert "left out: the app does not load: ten.py:1  import four" in says["four"]
    assert found["together"]["late"][0] == "ten"
    assert found["together"]["saved_bytes"] >= 9.5 * MB
    assert found["command"].startswith("LOWMEM_LAZY_HEAVY=on LOWMEM_HEAVY_MODULES=ten")


def test_what_is_optional_can_be_left_out(tmp_path: Path, packages: dict[str, str]) -> None:
    code = "try:\n    import eight\nexcept ImportError:\n    pass\nimport views\n" + SERVED
    write(tmp_path, app=code, views="import ten")
    found = figures(tmp_path, "--try", "2", "app:app", **packages)
    tried = {each["package"]: each["left_out"] for each in found["tried"]}
    assert tried["eight"]["app_loads"]
    assert tried["eight"]["saved_bytes"] == pytest.approx(8 * MB, rel=0.05)
    assert not tried["ten"]["app_loads"]
    assert tried["ten"]["error_at"].endswith("views.py:1")
    # What is told as saved is what the kernel sees.
    (tmp_path / "site-packages" / "eight.py").unlink()
    less = of_the_kernel(tmp_path, **packages)["Anonymous"]
    saved = tried["eight"]["saved_bytes"]
    assert found["bytes"] - saved == pytest.approx(less, rel=0.05)


def test_a_factory_is_called_and_measured(tmp_path: Path, packages: dict[str, str]) -> None:
    write(tmp_path, app="def create_app(name):\n    import eight\n    return eight.use")
    found = figures(tmp_path, "--try", "0", "app:create_app('x')", **packages)
    (call,) = (each for each in found["modules"]["children"] if "(" in each["module"][1:])
    assert call["module"] == "create_app('x')"
    assert call["children"][0]["bytes"] == pytest.approx(8 * MB, rel=0.05)


def test_a_warning_at_an_import_is_as_without_measuring(tmp_path: Path) -> None:
    """The frame that measures is one of the import system's: a warning names who imports."""
    warning = "import warnings\nwarnings.warn('old', DeprecationWarning, stacklevel=2)"
    code = "import warnings\nwith warnings.catch_warnings(record=True) as all_:\n"
    code += "    warnings.simplefilter('always')\n    import old\n"
    code += "assert all_[0].filename == __file__, all_[0].filename\n" + SERVED
    write(tmp_path, app=code, old=warning)
    assert figures(tmp_path, "--try", "0", "app:app")


def test_the_app_may_fork_and_print_and_start_threads(tmp_path: Path) -> None:
    code = """\
        import os, sys, threading, time
        print("hello")
        pid = os.fork()
        if not pid:
            import wave
            os._exit(0)
        os.waitpid(pid, 0)
        threading.Thread(target=time.sleep, args=(600,)).start()
        app = lambda environ, start_response: []
    """
    write(tmp_path, app=code)
    found = figures(tmp_path, "--try", "0", "app:app")
    assert find(found["modules"], "wave") is None
    assert find(found["modules"], "threading") is not None


# --- What is printed


def test_the_tree_is_text_and_colour_is_for_terminals_alone(
    tmp_path: Path, packages: dict[str, str]
) -> None:
    write(tmp_path, app="import eight\nimport ten\n" + SERVED)
    done = run(tmp_path, "--try", "0", "app:app", **packages)
    assert done.returncode == 0
    names = [line.split("s  ")[-1].strip() for line in done.stdout.splitlines()[3:]]
    assert names == [
        "app:app",
        *("├─ app", "│  ├─ ten  app.py:2", "│  │  └─ four", "│  └─ eight  app.py:1"),
        "└─ (Python itself)",
    ]
    assert "\x1b" not in done.stdout + done.stderr
    words = ("--try", "1", "app:app")
    assert "\x1b[1m" in on_a_terminal(tmp_path, *words, TERM="xterm", **packages)
    plain = on_a_terminal(tmp_path, *words, TERM="xterm", NO_COLOR="1", **packages)
    assert "\x1b[1m" not in plain
    assert "measuring app:app, as it is" in plain
    assert "[2/4] ten late" in plain


def on_a_terminal(folder: Path, *words: str, **env: str) -> str:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *words], cwd=folder, env=clean_environ(env), stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while piece := os.read(ours, 4096):
                text += piece
        assert process.wait(60) == 0
    os.close(ours)
    return text.decode()


# --- What cannot be measured

HANGS = "import subprocess, time\nsubprocess.Popen(['sleep', '7771'])\ntime.sleep(600)\n"
WRONG: dict[str, tuple[tuple[str, ...], int, str]] = {
    "no module": (("ap:app",), 1, "no module named 'ap'; did you mean app?"),
    "no name": (("app:ap",), 1, "app has no 'ap'; did you mean app?"),
    "no app": (("app:text",), 1, "text is not callable: str"),
    "raises": (("boom:app",), 1, "boom.py:2: ValueError: no database"),
    "raises lines": (("lines:app",), 1, "lines.py:1: ValueError: no database"),
    "lacks a package": (("lacks:app",), 1, "lacks.py:1: ModuleNotFoundError: No module named"),
    "exits": (("exits:app",), 1, "exits.py:2: SystemExit: no configuration"),
    "ends": (("ends:app",), 1, "ends the process (exit status 3) while it imports ends"),
    "crashes": (("crashes:app",), 1, "killed by signal 11) while it imports crashes"),
    "closes files": (("closes:app",), 1, "closes all its files"),
    "hangs": (
        ("hangs:app", "--timeout", "1s"),
        1,
        "is not loaded after 1 s while it imports hangs",
    ),
    "syntax": (("syntax:app",), 1, "syntax.py:1: SyntaxError"),
    "no text": (("",), 2, "'': expected MODULE:APP, such as app:app"),
    "a path": (("app.py:app",), 2, "did you mean app:app?"),
    "nothing": ((), 2, "required: MODULE:APP"),
    "no size": (
        ("app:app", "--least", "much"),
        2,
        "--least: expected a size, such as 1MB, not 'much'",
    ),
    "no unit of a size": (
        ("app:app", "--least", "5TB"),
        2,
        "--least: expected a size, such as 1MB, not '5TB'",
    ),
    "no unit of a time": (
        ("app:app", "--timeout", "5x"),
        2,
        "--timeout: expected a time, such as 2m, not '5x'",
    ),
    "no time": (
        ("app:app", "--timeout", "0"),
        2,
        "--timeout: expected a time, such as 2m, not '0'",
    ),
    "no number": (
        ("app:app", "--try", "-1"),
        2,
        "--try: expected a number from 0 to 999, not '-1'",
    ),
    "no option": (("app:app", "--nope"), 2, "unrecognized arguments: --nope"),
    "no folder": (("app:app", "--html", "none/x.html"), 2, "expected a file in a folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line(case: str, tmp_path: Path) -> None:
    words, code, expected = WRONG[case]
    write(
        tmp_path,
        app=SERVED + "text = 'x'\n",
        boom="def connect():\n    raise ValueError('no database')\nconnect()\n",
        lines="raise ValueError('no database\\nsecond line')\n",
        lacks="import no_such_package\n",
        exits="import sys\nsys.exit('no configuration')\n",
        ends="import os\nos._exit(3)\n",
        crashes="import os\nos.kill(os.getpid(), 11)\n",
        closes="import os\nos.closerange(3, 100)\n" + SERVED,
        hangs=HANGS,
        syntax="app = (",
    )
    done = run(tmp_path, *words)
    assert_refused(done, code, expected)
    assert running(tmp_path) == []


def running(folder: Path) -> list[int]:
    """Processes whose folder this is."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if path.readlink() == folder:
                found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_leaves_nothing(sent: signal.Signals, tmp_path: Path) -> None:
    before = set(Path("/tmp").iterdir())
    write(tmp_path, app=HANGS)
    with subprocess.Popen(
        [*COMMAND, "app:app", "--html", "out.html"],
        cwd=tmp_path,
        env=clean_environ({}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background ignores SIGINT.
        preexec_fn=partial(signal.signal, sent, signal.SIG_DFL),  # noqa: PLW1509 - no threads yet
    ) as process:
        wait_for(lambda: len(running(tmp_path)) == 3, "the command, the app, and its child")
        process.send_signal(sent)
        out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (130, "", "lowmem-wsgi: stopped\n")
    assert running(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} <= {"app.py", "__pycache__"}
    mine = set(Path("/tmp").iterdir()) - before
    assert not [path for path in mine if path.name.startswith("tmp") and path.is_file()]


def test_a_killed_command_takes_the_app_with_it(tmp_path: Path) -> None:
    write(tmp_path, app="import time\ntime.sleep(600)\n")
    with subprocess.Popen([*COMMAND, "app:app"], cwd=tmp_path, env=clean_environ({})) as process:
        wait_for(lambda: len(running(tmp_path)) == 2, "the command and the app")
        time.sleep(0.2)
        process.kill()
        process.wait(60)
        wait_for(lambda: running(tmp_path) == [], "the end of the app")


# --- The chart


def test_the_chart_overwrites_a_chart_alone(tmp_path: Path) -> None:
    write(tmp_path, app=SERVED, empty="")
    for name in ("app.py", "empty.py"):
        done = run(tmp_path, "--try", "0", "app:app", "--html", name)
        expected = f"--html {name}: this file is not a chart of imports; give another name"
        assert (done.returncode, done.stderr) == (2, f"lowmem-wsgi: {expected}\n")
    assert (tmp_path / "app.py").read_text() == SERVED
    for _ in range(2):
        assert run(tmp_path, "--try", "0", "app:app", "--html", "out.html").returncode == 0


def drawn(button: Any) -> dict[str, float]:
    """Where a button is. The chart is drawn anew when the window changes."""
    found: list[dict[str, float]] = []

    def is_drawn() -> bool:
        box = button.bounding_box()
        found.extend([] if box is None else [box])
        return box is not None

    wait_for(is_drawn, "the chart")
    return found[-1]


def test_the_chart_is_read_in_both_colour_schemes_and_on_a_phone(
    tmp_path: Path, packages: dict[str, str]
) -> None:
    write(tmp_path, app="import eight\nimport ten\nimport email.mime.text\n" + SERVED)
    assert run(tmp_path, "--try", "1", "app:app", "--html", "out.html", **packages).returncode == 0
    with chromium() as browser:
        visit = Visit(browser, "file://")
        page = visit.open(str(tmp_path / "out.html"))
        for width in (1200, 390):
            page.set_viewport_size({"width": width, "height": 844})
            page.reload()
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                found = page.evaluate(TOO_FAINT)
                assert found["faint"] == []
                assert found["count"] > 20
                visit.screenshot(f"imports-{width}-{scheme}", tmp_path)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            ten = page.get_by_role("button", name="ten, 10.0 MB")
            box = drawn(ten)
            assert box["width"] >= 80
            assert box["height"] >= 100
            ten.click()
            wait_for(lambda: drawn(ten)["height"] > box["height"], "the larger one")  # noqa: B023
            assert "own 6.0 MB" in page.locator("#about").inner_text()
            page.locator("#path").get_by_role("button", name="app:app").click()
            page.get_by_role("button", name="Modules").click()
            assert page.locator("#rows").get_by_text("email.mime.text").count() <= 1
        assert "ten" in page.locator("#tried").inner_text()
        assert visit.complaints == []
        assert visit.left_the_origin() == []
        assert len(visit.asked) == 3
        visit.close()
