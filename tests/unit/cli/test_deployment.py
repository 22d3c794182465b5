"""How a site is started, as the files of its platform say."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowmem_wsgi.cli.doctor.deployment import (
    GRACE,
    HIDDEN,
    find,
    of_command,
    platform_of,
    server_of,
)

RENDER = """\
services:
  - type: web
    startCommand: "lowmem-wsgi run app:app"  # a comment
    maxShutdownDelaySeconds: 60
    envVars:
      - key: WEB_CONCURRENCY
        value: "2"
      - key: LOWMEM_SECRET_KEY
        generateValue: true
      - key: LOWMEM_ADMIN_TOKEN
        sync: false
"""
DOCKER = """\
FROM python:3.13-slim
ENV PYTHONOPTIMIZE=2 \\
    TITLE="two words"
ENV OLD form
CMD ["gunicorn", "--bind", "0.0.0.0:$PORT", "app:app"]
"""


def test_the_start_command_and_the_variables_of_render(tmp_path: Path) -> None:
    (tmp_path / "render.yaml").write_text(RENDER)
    found = find(str(tmp_path), None, {})
    assert found is not None
    assert (found.source, found.words) == ("render.yaml", ("lowmem-wsgi", "run", "app:app"))
    assert found.grace == 60
    assert found.variables == {
        "WEB_CONCURRENCY": "2",
        "LOWMEM_SECRET_KEY": HIDDEN,
        "LOWMEM_ADMIN_TOKEN": HIDDEN,
    }


def test_the_start_command_and_the_variables_of_a_dockerfile(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKER)
    found = find(str(tmp_path), "docker", {"PORT": "80"})
    assert found is not None
    assert found.words == ("gunicorn", "--bind", "0.0.0.0:80", "app:app")
    assert found.variables == {"PYTHONOPTIMIZE": "2", "TITLE": "two words", "OLD": "form"}


def test_the_web_line_of_a_procfile(tmp_path: Path) -> None:
    (tmp_path / "Procfile").write_text("worker: rq\nweb: A=1 gunicorn -w ${N:-4} app:app\n")
    found = find(str(tmp_path), "heroku", {})
    assert found is not None
    assert (found.words, found.variables) == (("gunicorn", "-w", "4", "app:app"), {"A": "1"})
    assert find(str(tmp_path), "render", {}) is None  # another platform's


def test_a_directory_without_such_a_file(tmp_path: Path) -> None:
    assert find(str(tmp_path), None, {}) is None


@pytest.mark.parametrize(
    ("command", "server", "words"),
    [
        ("gunicorn -w 2 a:b", "gunicorn", ["-w", "2", "a:b"]),
        ("exec /venv/bin/gunicorn a:b", "gunicorn", ["a:b"]),
        ("python -m gunicorn a:b", "gunicorn", ["a:b"]),
        ("migrate && poetry run gunicorn a:b", "gunicorn", ["a:b"]),
        ("lowmem-wsgi run --check --threads 2 a:b", "run", ["--threads", "2", "a:b"]),
        ("python -m lowmem_wsgi run a:b", "run", ["a:b"]),
        ("waitress-serve a:b", None, []),
        ("", None, []),
    ],
)
def test_the_server_of_a_command(command: str, server: str | None, words: list[str]) -> None:
    assert server_of(of_command(command, "--start", {}).words) == (server, words)


def test_an_open_quote_is_refused() -> None:
    with pytest.raises(ValueError, match="quotation"):
        of_command("gunicorn 'a:b", "--start", {})


def test_the_platform_is_known_by_its_variables() -> None:
    assert platform_of({"RENDER": "true"}) == "render"
    assert platform_of({"DYNO": "web.1"}) == "heroku"
    assert platform_of({}) is None
    assert all(seconds >= 5 for seconds in GRACE.values())


WORKER_FIRST = """\
services:
  # the queue
  - type: worker
    startCommand: rq worker
    envVars:
      - key: LOWMEM_TRIM
        value: "off"
  - type: web
    name: shop
    startCommand: {command}
    envVars:
      - key: WEB_CONCURRENCY
        sync: false
      - key: STRIPE_TOKEN
        sync: false
databases:
  - name: shop
"""


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (">\n      gunicorn -w 2\n      shop:app", ("gunicorn", "-w", "2", "shop:app")),
        (">-\n      gunicorn\n\n      shop:app", ("gunicorn", "shop:app")),
        ("|\n      flask migrate\n      gunicorn \\\n        shop:app", ("gunicorn", "shop:app")),
        ("gunicorn\n      shop:app", ("gunicorn", "shop:app")),
        ("'gunicorn shop:app'  # here", ("gunicorn", "shop:app")),
    ],
)
def test_of_several_services_of_render_the_web_service_is_read(
    command: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "render.yaml").write_text(WORKER_FIRST.format(command=command))
    found = find(str(tmp_path), "render", {})
    assert found is not None
    assert found.words == words
    # A number that is set by hand is not known, and no text in place of it would do.
    assert found.variables == {"STRIPE_TOKEN": HIDDEN}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('ENTRYPOINT ["lowmem-wsgi", "run"]\nCMD ["a:b"]', ("lowmem-wsgi", "run", "a:b")),
        ('CMD ["-w", "2", "a:b"]\nENTRYPOINT ["gunicorn"]', ("gunicorn", "-w", "2", "a:b")),
        ('ENTRYPOINT gunicorn a:b\nCMD ["ignored"]', ("gunicorn", "a:b")),
        ('ENTRYPOINT ["/tini", "--"]\nCMD gunicorn a:b', ("gunicorn", "a:b")),
        ('ENTRYPOINT ["gunicorn", "a:b"]', ("gunicorn", "a:b")),
        ('CMD ["sh", "-c", "gunicorn -w ${N:-2} a:b"]', ("gunicorn", "-w", "2", "a:b")),
        ("CMD exec gunicorn a:b", ("gunicorn", "a:b")),
    ],
)
def test_the_entry_point_and_the_command_of_a_dockerfile_are_one(
    lines: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM python:3.13-slim\n{lines}\n")
    found = find(str(tmp_path), "docker", {})
    assert found is not None
    assert found.words == words


def test_the_variables_of_a_dockerfile_are_expanded(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(
        "ENV PORT=${PORT:-8000} HOME=/srv\nENV PYTHONPATH=$HOME/lib:$PYTHONPATH\nCMD gunicorn a:b\n"
    )
    found = find(str(tmp_path), "docker", {})
    assert found is not None
    assert found.variables == {"PORT": "8000", "HOME": "/srv", "PYTHONPATH": "/srv/lib:"}
