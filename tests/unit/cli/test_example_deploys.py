"""The example's files for the platforms: by the keys that each documents, and as the doctor writes
them but for what the example needs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.deploy import DOCKER, FLY, RENDER, blocks
from helpers.example import EXAMPLE
from lowmem_wsgi.cli.doctor import files
from lowmem_wsgi.cli.doctor.deployment import GRACE, find, server_of
from lowmem_wsgi.cli.doctor.figures import Figures, Worker
from lowmem_wsgi.settings import MB

FIGURES = Figures(
    app="app:app", loaded=36 * MB, worker=Worker(own=13 * MB), pages=("/", "/healthz")
)


def example(platform: str) -> str:
    return (EXAMPLE / files.NAMES[platform]).read_text(encoding="utf-8")


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the doctor writes for a site of the example's name."""
    (tmp_path / "client-book").mkdir()
    monkeypatch.chdir(tmp_path / "client-book")
    return lambda platform: files.write(platform, FIGURES).text


def test_render(written: Any) -> None:
    (ours,), (doctors,) = (
        blocks(text)["services"] for text in (example("render"), written("render"))
    )
    assert ours.keys() <= RENDER["service"]
    assert ours["plan"] in RENDER["plans"]
    disk, pairs = ours.pop("disk"), ours.pop("envVars")
    theirs = doctors.pop("envVars")
    assert ours == doctors
    assert all(pair.keys() <= RENDER["variable"] and len(pair) == 2 for pair in pairs)
    values = {pair["key"]: pair for pair in pairs}
    assert len(values) == len(pairs)
    assert values.keys() - {pair["key"] for pair in theirs} == {
        *("CLIENTS_DIR", "FLASK_SESSION_COOKIE_SECURE", "SECRET_KEY")
    }
    for pair in theirs:
        if pair["key"] != "PYTHON_VERSION":
            assert values[pair["key"]] == pair
    assert re.fullmatch(r"3\.1[0-3]\.\d+", values["PYTHON_VERSION"]["value"])
    assert disk.keys() == RENDER["disk"]
    assert disk["mountPath"] == values["CLIENTS_DIR"]["value"]
    assert int(disk["sizeGB"]) == 1


def test_heroku(written: Any) -> None:
    assert example("heroku") == written("heroku")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no tomllib")
def test_fly(written: Any) -> None:
    import tomllib

    ours, doctors = (tomllib.loads(text) for text in (example("fly"), written("fly")))
    assert ours.keys() <= FLY[""]
    assert ours["env"].pop("FLASK_SESSION_COOKIE_SECURE") == "true"
    assert ours == doctors


def instructions(text: str) -> list[list[str]]:
    joined = re.sub(r"\\\n\s*", "", text)
    return [line.split(" ", 1) for line in joined.splitlines() if line and line[0] != "#"]


def test_docker(written: Any) -> None:
    ours, doctors = instructions(example("docker")), instructions(written("docker"))
    assert {name for name, _ in ours} <= DOCKER
    image, *rest = ours
    assert re.fullmatch(r"python:3\.1[0-3]-slim", image[1])
    assert [row for row in rest if row not in doctors] == [
        ["COPY", "requirements.txt *.whl ./"],  # beside what it needs, a wheel that is on no index
        ["RUN", f"{dict(doctors)['RUN']} && install -d -o site /data"],
        ["ENV", "PORT=8000 CLIENTS_DIR=/data"],
        ["VOLUME", "/data"],
    ]
    assert ours[-1] == doctors[-1]


def test_the_dockerfile_is_one_to_dockers_own_parser() -> None:
    dockerfile = pytest.importorskip("dockerfile", reason="the parser has no wheel here")
    parsed = dockerfile.parse_file(str(EXAMPLE / "Dockerfile"))
    assert [row.cmd for row in parsed] == [name for name, _ in instructions(example("docker"))]
    assert parsed[-1].json  # the exec form: the server gets the signals itself
    timeout = parsed[-1].value[parsed[-1].value.index("--graceful-timeout") + 1]
    assert int(timeout) < GRACE["docker"]


def test_an_image_gets_nothing_that_the_app_has_made_for_itself() -> None:
    ignored = (EXAMPLE / ".dockerignore").read_text(encoding="utf-8").splitlines()
    made = (EXAMPLE / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {line for line in made if line[:1] != "#"} <= set(ignored)


@pytest.mark.parametrize("platform", files.WRITERS)
def test_the_doctor_reads_each(platform: str, tmp_path: Path) -> None:
    if platform == "fly" and sys.version_info < (3, 11):
        pytest.skip("Python 3.10 has no tomllib")
    name = files.NAMES[platform]
    (tmp_path / name).write_text(example(platform), encoding="utf-8")
    found = find(str(tmp_path), platform, {})
    assert found is not None
    assert found.source == name
    server, words = server_of(found.words)
    assert (server, words[-1]) == ("run", "app:app")
