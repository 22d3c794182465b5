"""A site's own page for what LowMemory refuses: who gets it, with what in it, and when not."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from helpers.wsgi import call, make_environ, post
from lowmem_wsgi import LowMemory, SettingsError
from lowmem_wsgi.http.refusals import ERROR_PAGE, Refusal
from lowmem_wsgi.settings import LARGEST_PAGE

PAGE = "<title>Über uns: $status</title><p>$detail</p><p>$status costs $5</p>"
HTML: dict[str, Any] = {"HTTP_ACCEPT": "text/html,*/*;q=0.8"}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "refused.html"
    path.write_text(PAGE, encoding="utf-8")
    return path


def reads(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"read"]


def hungry(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    raise MemoryError


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_over_the_limit_gets_the_sites_page(page: Path, chunked: bool) -> None:
    app = LowMemory(reads, max_upload=10, error_page=page)
    found = call(app, post("/files", b"x" * 11, chunked=chunked, **HTML), strict=not chunked)
    assert found.code == 413
    assert found.header("Content-Type") == "text/html; charset=utf-8"
    assert found.header("Content-Length") == str(len(found.body))
    assert found.body.decode() == (
        "<title>Über uns: 413 Content Too Large</title>"
        "<p>This upload is larger than the 10 bytes allowed here.</p>"
        "<p>413 Content Too Large costs $5</p>"
    )


def test_so_does_a_request_that_ran_out_of_memory(page: Path) -> None:
    found = call(LowMemory(hungry, error_page=str(page)), make_environ(**HTML), strict=True)
    assert (found.code, found.header("Retry-After")) == (503, "2")
    assert found.body.startswith("<title>Über uns: 503 Service Unavailable".encode())


def test_of_two_that_are_nested_the_one_that_refuses_has_its_page(page: Path) -> None:
    inner = LowMemory(reads, max_upload=5, error_page=page)
    outer = LowMemory(inner, max_upload=10)
    ours, theirs = (call(outer, post("/", b"x" * size, **HTML)).body for size in (7, 11))
    assert b"ber uns" in ours
    assert b"ber uns" not in theirs


@pytest.mark.parametrize(
    ("accept", "kind"),
    [("application/json", "application/json"), ("*/*", "text/plain; charset=utf-8")],
)
def test_a_program_gets_what_it_accepts(page: Path, accept: str, kind: str) -> None:
    app = LowMemory(reads, max_upload=1, error_page=page)
    found = call(app, post("/", b"xx", HTTP_ACCEPT=accept), strict=True)
    assert (found.code, found.header("Content-Type")) == (413, kind)


def test_the_variable_is_read_and_a_later_change_of_directory_is_no_matter(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(page.parent)
    monkeypatch.setenv("LOWMEM_ERROR_PAGE", page.name)
    app = LowMemory(reads, max_upload=1)
    assert app.settings.error_page is not None
    assert app.settings.error_page.path == str(page)
    page.unlink()  # it was read once, at the start
    assert b"ber uns" in call(app, post("/", b"xx", **HTML)).body
    assert f"error_page={str(page)!r}" in repr(app.settings)


UNUSABLE = {
    "missing": None,
    "empty": b"",
    "blank": b" \n",
    "not UTF-8": b"\xff\xfe",
    "too large": b"x" * (LARGEST_PAGE + 1),
}


@pytest.mark.parametrize("content", UNUSABLE.values(), ids=UNUSABLE)
def test_a_page_that_cannot_be_used_is_told_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("page.html").write_bytes(content)
    with pytest.raises(SettingsError, match=r"'page\.html': expected the path of an HTML file"):
        LowMemory(reads, error_page="page.html")
    with pytest.raises(SettingsError, match=r"'\.': expected the path of an HTML file"):
        LowMemory(reads, error_page=".")  # a directory


def test_without_memory_for_it_the_built_in_page_is_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Huge(bytes):
        def replace(self, *_: Any) -> bytes:
            raise MemoryError

    refusal = Refusal("413 Content Too Large", "Too large.", why="11 bytes", setting="none")
    with caplog.at_level(logging.ERROR):
        found = call(refusal, make_environ(**(HTML | {ERROR_PAGE: Huge(b"own")})))
    assert b"<h1>413 Content Too Large</h1>" in found.body
    assert not caplog.records
