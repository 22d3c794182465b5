"""The files of the platforms: each by the keys that its platform documents."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.deploy import DOCKER, FLY, RENDER, blocks
from lowmem_wsgi.cli.doctor import files
from lowmem_wsgi.cli.doctor.deployment import GRACE, find, server_of
from lowmem_wsgi.cli.doctor.figures import Figures, Worker
from lowmem_wsgi.settings import GB, MB

FIGURES = Figures(
    app="app:create_app()",
    loaded=40 * MB,
    worker=Worker(own=10 * MB),
    heavy=("pandas", "numpy"),
    imports={"pandas": 30 * MB, "torch": 60 * MB},
    pages=("/", "/healthz"),
)


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "My Site").mkdir()
    monkeypatch.chdir(tmp_path / "My Site")
    return tmp_path / "My Site"


def made(platform: str, figures: Figures = FIGURES) -> str:
    found = files.write(platform, figures)
    text = Path(found.name).read_text(encoding="utf-8")
    assert text == found.text
    return text


def test_the_reader_of_yaml_refuses_what_is_none() -> None:
    with pytest.raises(AssertionError):
        blocks("services:\n  - type: web\n    name: [x\n")


def test_render_yaml_has_documented_keys_and_the_measured_values() -> None:
    (service,) = blocks(made("render"))["services"]
    assert service.keys() == RENDER["service"] - {"disk"}
    assert service["plan"] == "starter"
    assert (service["type"], service["runtime"], service["name"]) == ("web", "python", "my-site")
    assert service["startCommand"] == "lowmem-wsgi run 'app:create_app()'"
    assert service["healthCheckPath"] == "/healthz"
    values = {row["key"]: row.get("value", row.get("generateValue")) for row in service["envVars"]}
    assert all(row.keys() <= RENDER["variable"] for row in service["envVars"])
    assert values == {
        "PYTHON_VERSION": ".".join(map(str, sys.version_info[:3])),
        "LOWMEM_LAZY_HEAVY": "on",
        "LOWMEM_HEAVY_MODULES": "pandas,numpy,torch",
        "LOWMEM_SECRET_KEY": True,
        "LOWMEM_ADMIN_TOKEN": True,
    }


@pytest.mark.parametrize(
    ("limit", "plan"), [(512 * MB, "starter"), (GB, "standard"), (9 * GB, "pro plus")]
)
def test_the_plan_of_render_holds_the_limit(limit: int, plan: str) -> None:
    (service,) = blocks(made("render", replace(FIGURES, limit=limit, pages=("/",))))["services"]
    assert service["plan"] == plan
    assert plan in RENDER["plans"]
    assert "healthCheckPath" not in service


def test_a_procfile_and_the_variables_to_set() -> None:
    found = files.write("heroku", FIGURES)
    assert re.fullmatch(r"(?:[A-Za-z0-9_]+: .+\n)+", found.text)
    assert found.text == "web: lowmem-wsgi run 'app:create_app()'\n"
    assert found.then[0].startswith("heroku config:set LOWMEM_LAZY_HEAVY=on LOWMEM_HEAVY_")
    assert any("LOWMEM_ADMIN_TOKEN" in line for line in found.then)
    Path("Procfile").unlink()
    light = files.write("heroku", replace(FIGURES, imports={}))
    assert light.then[0].startswith("heroku config:set LOWMEM_SECRET_KEY=")


@pytest.mark.parametrize("app", ["app:create_app('x')", 'app:create_app("x")', "app:app"])
def test_an_app_with_quotes_reaches_the_command_as_it_is(app: str) -> None:
    figures = replace(FIGURES, app=app)
    (service,) = blocks(made("render", figures))["services"]
    commands = [service["startCommand"], made("heroku", figures).partition(": ")[2]]
    if sys.version_info >= (3, 11):
        import tomllib

        commands.append(tomllib.loads(made("fly", figures))["processes"]["app"])
    assert [shlex.split(command)[-1] for command in commands] == [app] * len(commands)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no tomllib")
def test_fly_toml_has_documented_keys_and_the_measured_values() -> None:
    import tomllib

    found = tomllib.loads(made("fly", replace(FIGURES, limit=GB)))
    assert found.keys() == FLY[""]
    assert found["http_service"].keys() == FLY["http_service"]
    assert found["http_service"]["checks"][0].keys() == FLY["checks"]
    (machine,) = found["vm"]
    assert machine.keys() == FLY["vm"]
    assert machine["memory"] == "1024mb"
    assert found["processes"] == {"app": "lowmem-wsgi run 'app:create_app()'"}
    assert found["env"]["PORT"] == str(found["http_service"]["internal_port"])
    assert all(isinstance(value, str) for value in found["env"].values())


def test_a_dockerfile_has_known_instructions_and_runs_the_app() -> None:
    text = re.sub(r"\\\n", " ", made("docker"))
    rows = [line.split(" ", 1) for line in text.splitlines() if line and line[0] != "#"]
    assert {name for name, _ in rows} == DOCKER - {"VOLUME"}
    assert rows[0][0] == "FROM"
    found = dict(rows)
    command = json.loads(found["CMD"])
    assert command[:2] == ["lowmem-wsgi", "run"]
    assert command[-1] == "app:create_app()"
    assert int(command[command.index("--graceful-timeout") + 1]) < GRACE["docker"]
    assert found["ENV"].split()[:2] == ["PORT=8000", "LOWMEM_LAZY_HEAVY=on"]


@pytest.mark.parametrize("platform", files.WRITERS)
def test_what_is_written_is_what_the_doctor_reads(platform: str, directory: Path) -> None:
    if platform == "fly" and sys.version_info < (3, 11):
        pytest.skip("Python 3.10 has no tomllib")
    made(platform)
    found = find(str(directory), platform, {})
    assert found is not None
    assert found.source == files.NAMES[platform]
    server, words = server_of(found.words)
    assert (server, words[-1]) == ("run", "app:create_app()")


@pytest.mark.parametrize("platform", files.WRITERS)
def test_a_file_that_is_there_is_never_overwritten(platform: str) -> None:
    name = files.NAMES[platform]
    Path(name).write_text("mine")
    for attempt in (
        lambda: files.refuse_existing(platform),
        lambda: files.write(platform, FIGURES),
    ):
        with pytest.raises(files.Exists, match=f"{name} exists already"):
            attempt()
    assert Path(name).read_text() == "mine"
