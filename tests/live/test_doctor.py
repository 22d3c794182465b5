"""`lowmem-wsgi doctor`: sites made ill on purpose, healthy ones, and the figures, tried."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helpers.cgroup import memory_cgroup
from helpers.servers import SLOWER, clean_environ, serve, wait_for
from lowmem_wsgi.system.cgroup import own_directories, processors

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "flask_app"
MB = 1024 * 1024
COMMAND = [sys.executable, "-m", "lowmem_wsgi", "doctor"]
KEYS = {"LOWMEM_SECRET_KEY": "of a test of the doctor", "LOWMEM_ADMIN_TOKEN": "t"}
# What would change the figures, or is an illness itself.
UNSET = ("PYTHONDONTWRITEBYTECODE", "PYTHONOPTIMIZE", "PYTHONMALLOC", "MALLOC_", "DYNO", "RENDER")

FLASK = """\
from flask import Flask

app = Flask(__name__)


@app.get("/")
def home():
    return "hello"
"""


def doctor(
    directory: Path, *words: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    environ = clean_environ(dict(KEYS if env is None else env))
    for name in [name for name in environ if name.startswith(UNSET) and name not in (env or {})]:
        del environ[name]
    return subprocess.run(
        [*COMMAND, *words],
        cwd=directory,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120 * SLOWER,
        check=False,
    )


def told(
    directory: Path, *words: str, env: Mapping[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    done = doctor(directory, "--json", *words, env=env)
    assert done.stdout, done.stderr
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)


def names(report: dict[str, Any]) -> list[str]:
    return [finding["name"] for finding in report["findings"]]


def files(directory: Path, **texts: str) -> None:
    for name, text in texts.items():
        (directory / (name if name == "Procfile" else f"{name}.py")).write_text(text)


# --- Ten sites made ill on purpose


@dataclass(frozen=True)
class Ill:
    """A site, its illness, and what the remedy changes."""

    illness: str
    code: int
    mended: dict[str, str] = field(default_factory=dict)  # a file: its text with the remedy
    mended_env: dict[str, str] = field(default_factory=dict)
    sick: dict[str, str] = field(default_factory=dict)
    sick_env: dict[str, str] = field(default_factory=dict)


PAGE = FLASK.replace('    return "hello"', "    {body}")
LEAK = f"""\
{
    PAGE.format(
        body='''kept.append("x" * 20_000 + str(len(kept)))
    return "hello"'''
    )
}
from collections import deque

kept = {{}}
"""
TEMPLATES = """\
import itertools

from flask import Flask, render_template
from jinja2 import FunctionLoader

app = Flask(__name__)
app.jinja_loader = FunctionLoader(lambda name: name + "{{ one }} {{ two }}" * 20)
app.jinja_options = {"cache_size": %s}
numbers = itertools.count()


@app.get("/")
def home():
    return render_template(f"for visitor {next(numbers)}")
"""
LARGE = """\
from flask import Flask, Response

app = Flask(__name__)


@app.get("/")
def home():
    return "hello"


@app.get("/report")
def report():
    return %s
"""
ILL = {
    "pandas at the top": Ill(
        "heavy import",
        1,
        sick={"app": "import pandas\n" + FLASK},
        mended_env={"LOWMEM_LAZY_HEAVY": "on"},
    ),
    "8 workers": Ill(
        "too many workers",
        1,
        sick={"Procfile": "web: gunicorn -w 8 app:app\n"},
        mended={"Procfile": "web: lowmem-wsgi run app:app\n"},
    ),
    "a leak": Ill(
        "leak",
        1,
        sick={"app": LEAK.format("[]")},
        mended={"app": LEAK.format("deque(maxlen=5)")},
    ),
    "arena growth": Ill(
        "arenas",
        1,
        sick={"Procfile": "web: gunicorn --threads 8 app:app\n"},
        mended={"Procfile": "web: lowmem-wsgi run --threads 8 app:app\n"},
    ),
    "a huge template cache": Ill(
        "template cache", 1, sick={"app": TEMPLATES % -1}, mended={"app": TEMPLATES % 100}
    ),
    "Python's flags": Ill(
        "python flags",
        1,
        sick_env={"PYTHONOPTIMIZE": "2", "PYTHONDONTWRITEBYTECODE": "1"},
    ),
    "Heroku's variable": Ill(
        "workers set by the platform",
        1,
        sick={
            "app": "kept = b'x' * 120_000_000\n" + FLASK,
            "Procfile": "web: gunicorn --preload app:app\n",
        },
        sick_env={"DYNO": "web.1", "DYNO_RAM": "512", "WEB_CONCURRENCY": "2"},
        mended={"Procfile": "web: lowmem-wsgi run app:app\n"},
        mended_env={"DYNO": "web.1", "DYNO_RAM": "512", "WEB_CONCURRENCY": "2"},
    ),
    "no key": Ill("secret key", 1, sick_env={"LOWMEM_SECRET_KEY": ""}),
    "born too large": Ill(
        "born too large",
        2,
        sick={"app": "kept = b'x' * 600_000_000\n" + FLASK},
        mended={"app": FLASK},
    ),
    "a request of 300 MB": Ill(
        "large request",
        1,
        sick={"app": LARGE % 'Response(b"x" * 300_000_000)'},
        mended={"app": LARGE % 'Response("x" * 100_000 for _ in range(3000))'},
    ),
}


@pytest.mark.parametrize("name", ILL)
def test_the_illness_is_named_first_and_its_remedy_leaves_nothing(
    name: str, tmp_path: Path
) -> None:
    ill = ILL[name]
    files(tmp_path, **{"app": FLASK, **ill.sick})
    words = ("--limit", "512MB", "app:app")
    code, report = told(tmp_path, *words, env={**KEYS, **ill.sick_env})
    assert names(report)[0] == ill.illness, report["findings"]
    assert code == report["exit"] == ill.code

    files(tmp_path, **{"app": ill.sick.get("app", FLASK), **ill.mended})
    code, report = told(tmp_path, *words, env={**KEYS, **ill.mended_env})
    assert report["findings"] == []
    assert code == report["exit"] == 0


# --- Three healthy ones

DJANGO = """\
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

settings.configure(
    SECRET_KEY="of a test, and long enough to be one",
    ALLOWED_HOSTS=["site.test"],
    ROOT_URLCONF="app",
)


def home(request):
    return HttpResponse("x" * 50_000)


urlpatterns = [path("", home), path("about/", home)]
app = get_wsgi_application()
"""
FACTORY = """\
from flask import Flask, render_template_string, session


def create_app(title="none"):
    app = Flask(__name__)
    app.secret_key = "of a test, and long enough to be one"

    @app.get("/")
    def home():
        session["seen"] = session.get("seen", 0) + 1
        return render_template_string("<h1>{{ title }}</h1>", title=title)

    return app
"""
BOTTLE = """\
import bottle

from lowmem_wsgi import LowMemory

site = bottle.Bottle()


@site.get("/")
def home():
    return {"rows": list(range(1000))}


app = LowMemory(site)
"""


@pytest.mark.parametrize(
    ("app", "text", "env"),
    [
        ("app:app", DJANGO, {}),
        ("app:create_app('shop')", FACTORY, {}),
        ("app:app", BOTTLE, {}),  # how many threads the server has is not known
    ],
    ids=["Django", "a factory of Flask's", "Bottle, wrapped, under waitress"],
)
def test_a_healthy_site_has_no_finding(
    app: str, text: str, env: dict[str, str], tmp_path: Path
) -> None:
    files(tmp_path, app=text)
    start = ("--start", "waitress-serve app:app") if text == BOTTLE else ()
    code, report = told(tmp_path, "--limit", "512MB", *start, app, env={**KEYS, **env})
    assert report["findings"] == []
    assert code == 0
    assert {route["status"] for route in report["requests"]} == {200}


# --- The figures, tried in a cgroup


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The example, with a page that takes as many megabytes as it is asked for."""
    directory = tmp_path / "example"
    shutil.copytree(EXAMPLE, directory, ignore=shutil.ignore_patterns("instance", "__pycache__"))
    with (directory / "app.py").open("a") as file:
        file.write(
            "\n\n@app.get('/take/<int:size>')\ndef take(size: int) -> str:\n"
            "    return str(len(bytearray(b'x') * (size << 20)))\n"
        )
    return directory


def test_the_example_is_examined_in_15_s_and_healthy(tmp_path: Path) -> None:
    env = {**KEYS, "CLIENTS_DIR": str(tmp_path)}
    before = os.times()
    code, report = told(EXAMPLE, "--limit", "512MB", "app:app", env=env)
    # Of processor time, which on an idle machine is the time it takes.
    after = os.times()
    user, system = (after[place] - before[place] for place in (2, 3))
    assert user + system < 15 * SLOWER
    assert (code, names(report)) == (0, [])
    assert len(report["requests"]) > 5


@pytest.mark.parametrize("chosen", [{"WEB_CONCURRENCY": "1"}, {}], ids=["one", "as many as fit"])
def test_what_fits_is_true_within_a_tenth_in_a_cgroup(
    example: Path, chosen: dict[str, str]
) -> None:
    env = {**KEYS, "CLIENTS_DIR": str(example / "instance"), **chosen}
    _, report = told(example, "--limit", "512MB", "app:app", env=env)
    fit = int(chosen.get("WEB_CONCURRENCY", min(report["workers_that_fit"], 2 * processors())))
    # On few cores, fewer start than would fit: then the doctor's other figures are of more workers.
    if fit != report["workers"]:
        pytest.skip(f"{processors():g} cores: {fit} workers start, {report['workers']} fit")
    pages = [page["path"] for page in report["requests"]]
    with (
        memory_cgroup(512 * MB) as group,
        serve("app:app", "run", tmp_path=example, cwd=example, cgroup=group.path, env=env) as site,
    ):
        wait_for(lambda: len(site.workers()) == fit, lambda: f"{fit} workers: {site.log}")
        for page in pages * 6 * fit:
            site.get(page)
        used = report["used_bytes"]
        wait_for(lambda: abs(group.working_set() - used) < used / 10, "the figure of the doctor")
        largest = report["largest_request_that_fits_bytes"] / MB
        for share, status in ((0.9, 200), (1.1, 503)) * 2:
            assert site.get(f"/take/{share * largest:.0f}").status == status
            time.sleep(1.2)  # after a MemoryError, the reserve is open for a second
        assert group.kills() == 0


# --- What cannot be examined


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ap:app"], "no module 'ap'; did you mean app:app?"),
        (["app:ap"], "app has no 'ap'; did you mean app:app?"),
        (["app.py"], "no module 'app.py'; did you mean app:app?"),
        (["../app"], "expected MODULE:APP"),
        (["--limit", "lots", "app:app"], "expected a size from 32MB such as 512MB"),
        (["--limit", "1MB", "app:app"], "expected a size from 32MB such as 512MB"),
        (["--platform", "mars"], "invalid choice: 'mars'"),
        (["--request", "report"], "expected a path that starts with /"),
        (["--seconds", "soon"], "expected a duration such as 30s or 2m"),
        (["--start", "gunicorn 'app:app"], "the start command cannot be read"),
        (["--start", ""], "--start '' names no command"),
        (["app:make"], "app:make makes an app, and is none; did you mean app:make()?"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--write", "docker", "app:app"], "Dockerfile exists already"),
    ],
)
def test_nonsense_is_one_clear_line_and_64(words: list[str], message: str, tmp_path: Path) -> None:
    files(tmp_path, app=FLASK + "\n\ndef make():\n    return app\n")
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    done = doctor(tmp_path, *words)
    assert done.returncode == 64
    assert message in done.stderr
    assert done.stderr.startswith("lowmem-wsgi: ")
    assert done.stderr.count("\n") == 1
    assert not done.stdout


@pytest.mark.parametrize(
    ("text", "figure"),
    [
        ("raise KeyError('DATABASE_URL')\n", "KeyError: 'DATABASE_URL'"),
        ("import sys\nsys.exit('no licence')\n", "sys.exit('no licence')"),
        ("import os\nos._exit(3)\n", "exit 3"),
        ("import os\nos._exit(0)\n", "exit 0"),
        ("import time\ntime.sleep(60)\n", "not loaded within 1 s"),
        ("import no_such_package\n", "No module named 'no_such_package'"),
        ("def app(:\n", "app.py:1)"),
    ],
)
def test_an_app_that_does_not_load_is_survived(text: str, figure: str, tmp_path: Path) -> None:
    files(tmp_path, app=text)
    code, report = told(tmp_path, "--seconds", "2" if "sleep" not in text else "1", "app:app")
    assert (code, names(report)[0]) == (2, "does not load")
    assert figure in report["findings"][0]["figure"]


def test_a_wrong_setting_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    files(tmp_path, app="raise SystemExit('loaded')\n")
    code, report = told(tmp_path, "app:app", env={"LOWMEM_TRIM": "yess"})
    assert (code, names(report)) == (2, ["wrong settings"])
    assert "LOWMEM_TRIM='yess'" in report["findings"][0]["figure"]


def test_a_page_that_ends_the_worker_or_never_ends_is_survived(tmp_path: Path) -> None:
    files(tmp_path, app=FLASK.replace('return "hello"', "__import__('os').kill(0, 9)"))
    code, report = told(tmp_path, "app:app")
    assert (code, names(report)[0]) == (2, "large request")
    endless = 'return app.response_class("x" for _ in iter(int, 1))'
    files(tmp_path, app=FLASK.replace('return "hello"', endless))
    code, report = told(tmp_path, "app:app")
    assert (code, names(report)) == (1, ["no page answers"])


@pytest.mark.parametrize("code", [0, 3])
def test_a_page_that_exits_is_named(code: int, tmp_path: Path) -> None:
    files(tmp_path, app=FLASK.replace('return "hello"', f"__import__('os')._exit({code})"))
    exit_code, report = told(tmp_path, "app:app")
    assert (exit_code, names(report)[0]) == (2, "page ends the worker")
    assert report["findings"][0]["remedy"] == "mend GET /"
    assert f"exit {code}" in report["findings"][0]["figure"]


BESIDE = {
    "a thread": "import threading, time\n"
    "threading.Thread(target=time.sleep, args=(600,)).start()\n",
    "a process": "import multiprocessing, time\nmultiprocessing.get_context('fork')"
    ".Process(target=time.sleep, args=(600,)).start()\n",
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_the_app_starts_and_never_ends_does_not_hold_the_doctor(
    name: str, tmp_path: Path
) -> None:
    files(tmp_path, app=BESIDE[name] + FLASK)
    code, report = told(tmp_path, "--limit", "512MB", "app:app")
    assert report["findings"] == []
    assert code == 0
    assert [page["path"] for page in report["requests"]] == ["/"]


def test_pages_that_wait_for_one_another_are_left_behind(tmp_path: Path) -> None:
    """A page that ends alone, and not beside others: the doctor goes on without it."""
    page = "lock.acquire(); lock.release() if threading.active_count() < 4 else None\n"
    text = FLASK.replace('    return "hello"', f'    {page}    return "hello"')
    files(tmp_path, app="import threading\nlock = threading.Lock()\n" + text)
    code, report = told(tmp_path, "--limit", "512MB", "app:app")
    assert (code, report["findings"]) == (0, [])


def test_an_empty_directory_is_one_clear_line(tmp_path: Path) -> None:
    done = doctor(tmp_path)
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr == (
        "lowmem-wsgi: which app? lowmem-wsgi doctor MODULE:APP, such as app:app\n"
    )


def test_of_a_command_that_gunicorn_refuses_only_that_is_said(tmp_path: Path) -> None:
    files(tmp_path, app=FLASK)
    code, report = told(tmp_path, "--start", "gunicorn --nonsense app:app")
    assert (code, names(report)) == (2, ["does not load"])
    assert "unrecognized arguments: --nonsense" in report["findings"][0]["figure"]


@pytest.mark.parametrize("place", ["option", "config"])
def test_the_app_is_found_by_gunicorns_pythonpath(place: str, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    files(tmp_path / "src", site_app=FLASK)
    files(tmp_path, **{"gunicorn.conf": "pythonpath = 'src'\nwsgi_app = 'site_app:app'\n"})
    option = "-c /dev/null --pythonpath src site_app:app" if place == "option" else ""
    _, report = told(tmp_path, "--start", f"gunicorn {option}")
    assert report["app"] == "site_app:app"
    assert [page["status"] for page in report["requests"]] == [200]


def test_the_files_of_a_platform_make_the_site_clean(tmp_path: Path) -> None:
    """What `--write` writes is what the doctor then reads."""
    files(tmp_path, app="import pandas\n" + FLASK)
    done = doctor(tmp_path, "--limit", "512MB", "--write", "render", "app:app", env={})
    assert done.returncode == 1
    assert "wrote render.yaml" in done.stderr
    code, report = told(tmp_path, "--limit", "512MB", "--platform", "render", env={})
    assert (code, report["findings"]) == (0, [])
    assert report["start"]["from"] == "render.yaml"


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP])
def test_the_end_of_the_doctor_leaves_no_process_and_no_cgroup(
    end: signal.Signals, tmp_path: Path
) -> None:
    files(
        tmp_path, app="import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    )
    process = subprocess.Popen(
        [*COMMAND, "app:app"],
        cwd=tmp_path,
        env=clean_environ({}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # These tests may run under nohup.
        preexec_fn=partial(signal.signal, end, signal.SIG_DFL),  # noqa: PLW1509 - no threads yet
    )
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "the child")
    process.send_signal(end)
    assert process.wait(20) == 128 + end
    assert not Path("/proc", (tmp_path / "pid").read_text()).exists()
    left = f"lowmem-wsgi-{process.pid}-*"
    assert not [path for _, own in own_directories() for path in Path(own).glob(left)]


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's PR_SET_PDEATHSIG")
@pytest.mark.parametrize("where", ["child", "worker"])
def test_what_the_doctor_has_started_ends_with_a_doctor_that_is_killed(
    where: str, tmp_path: Path
) -> None:
    wait = "import os, signal, time; signal.signal(signal.SIGALRM, signal.SIG_IGN)\n"
    wait += "open('pid', 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    page = FLASK.replace('return "hello"', wait.replace("\n", "; ").rstrip("; "))
    files(tmp_path, app=page if where == "worker" else wait)
    process = subprocess.Popen(
        [*COMMAND, "app:app"],
        cwd=tmp_path,
        env=clean_environ({}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "the worker")
    process.kill()
    process.wait(20)
    worker = Path("/proc", (tmp_path / "pid").read_text())
    wait_for(lambda: not worker.exists(), "the end of the worker")
    for _, own in own_directories():
        for left in Path(own).glob(f"lowmem-wsgi-{process.pid}-*"):
            processes = left / "cgroup.procs"
            wait_for(partial(_is_empty, processes), "an empty cgroup")
            left.rmdir()


def _is_empty(file: Path) -> bool:
    return not file.read_text()
