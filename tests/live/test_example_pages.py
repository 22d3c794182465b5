"""The example's pages in a browser: wide and narrow, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import browser
from helpers.browser import Visit, chromium
from helpers.example import CONFIG, EXAMPLE
from helpers.servers import Server, serve

WIDTHS = (1200, 390)
CONTRAST = (Path(browser.__file__).with_name("contrast.js")).read_text(encoding="utf-8")
LONG = "maximiliana-konstantina.von-und-zu-hohenstein@verwaltungsgemeinschaft.example"
PAGES = {  # name: path, its status
    "home": ("/", 200),
    "clients": ("/clients", 200),
    "long": ("/clients?q=hohenstein", 200),
    "nobody": ("/clients?q=nobody-is-called-this", 200),
    "last-page": ("/clients?page=9999", 404),
    "client": ("/clients/1", 200),
    "new": ("/clients/new", 200),
    "edit": ("/clients/1/edit", 200),
    "import": ("/import", 200),
    "excel": ("/import/excel", 200),
    "files": ("/files", 200),
    "missing": ("/nothing", 404),
}
# The parts between two places where an address may break, of which some lie on two lines.
BROKEN = """() => {
  const found = [];
  for (const element of document.querySelectorAll('thead th, .email, a[href^="mailto:"]')) {
    for (const part of element.childNodes) {
      if (part.nodeType !== Node.TEXT_NODE || !part.data.trim()) continue;
      const range = document.createRange();
      range.selectNodeContents(part);
      const boxes = [...range.getClientRects()].filter((box) => box.width > 1);
      const lines = new Set(boxes.map((box) => Math.round(box.top)));
      if (lines.size > 1) found.push(element.textContent);
    }
  }
  return found;
}"""
DARK = "matchMedia('(prefers-color-scheme: dark)').matches"
OVERFLOW = "document.documentElement.scrollWidth - innerWidth"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    tmp = tmp_path_factory.mktemp("pages")
    data = str(tmp / "data")
    with serve("app:app", tmp_path=tmp, config=CONFIG, cwd=EXAMPLE, CLIENTS_DIR=data) as server:
        yield server


@pytest.fixture(scope="module")
def running() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(params=[(w, s) for w in WIDTHS for s in ("light", "dark")], ids=str)
def visit(request: pytest.FixtureRequest, site: Server, running: Any) -> Iterator[Visit]:
    width, scheme = request.param
    size = {"width": width, "height": 844}
    found = Visit(running, f"http://127.0.0.1:{site.port}", viewport=size, color_scheme=scheme)
    yield found
    found.close()


def log_in(visit: Visit) -> Any:
    page = visit.open("/login")
    page.fill("#name", "demo")
    page.fill("#password", "demo")
    page.click("button.main")
    page.wait_for_selector("text=Log out")
    return page


def looked_at(visit: Visit, name: str, folder: Path) -> None:
    """Nothing sticks out, all can be read, and no address or head is broken in a word."""
    page = visit.page
    width, scheme = page.viewport_size["width"], "dark" if page.evaluate(DARK) else "light"
    visit.screenshot(f"{name}-{width}-{scheme}", folder)
    assert page.evaluate(OVERFLOW) <= 0, name
    found = page.evaluate(CONTRAST)
    assert found["count"] > 5, name
    assert found["faint"] == [], name
    assert page.evaluate(BROKEN) == [], name


def test_every_page_is_readable(visit: Visit, tmp_path: Path) -> None:
    visit.open("/login")
    looked_at(visit, "login", tmp_path)
    page = log_in(visit)
    page.goto(visit.origin + "/clients?q=hohenstein")
    if page.locator(".clients tbody tr").count() == 0:
        page.goto(visit.origin + "/clients/new")
        for field, value in (("name", "Maximiliana von und zu Hohenstein"), ("email", LONG)):
            page.fill(f"#{field}", value)
        page.fill("#city", "Frankfurt am Main")
        page.click("button.main")
        page.wait_for_selector("text=is saved")
        looked_at(visit, "saved", tmp_path)
    for name, (path, status) in PAGES.items():
        assert page.goto(visit.origin + path).status == status
        looked_at(visit, name, tmp_path)
    page.goto(visit.origin + "/clients/new")
    page.click("button.main")
    page.wait_for_selector(".note.bad")
    looked_at(visit, "errors", tmp_path)
    assert visit.left_the_origin() == []
    assert [line for line in visit.complaints if "status of 4" not in line] == []


def test_a_stranger_sees_the_first_page(visit: Visit, tmp_path: Path) -> None:
    page = visit.open("/")
    assert page.locator(".clients tbody tr").count() == 5
    assert page.locator(".email").count() == 0
    looked_at(visit, "stranger", tmp_path)


def test_an_upload_over_the_limit_ends_in_the_sites_style_with_a_way_back(
    visit: Visit, tmp_path: Path
) -> None:
    page = log_in(visit)
    page.goto(visit.origin + "/files")
    ground = "getComputedStyle(document.body).backgroundColor"
    ours = page.evaluate(ground)
    large = {"name": "large.bin", "mimeType": "application/octet-stream", "buffer": b"x" * 600_000}
    page.set_input_files("#file", large)
    with page.expect_response(lambda reply: reply.request.method == "POST") as sent:
        page.click("button.main")
    assert sent.value.status == 413
    page.wait_for_selector("text=larger than the 512 KB allowed here")
    assert page.evaluate(ground) == ours
    looked_at(visit, "refused", tmp_path)
    page.click("text=Go back and try again")
    page.wait_for_selector("#file")
    small = {"name": "small.txt", "mimeType": "text/plain", "buffer": b"hello"}
    page.set_input_files("#file", small)
    page.click("button.main")
    page.wait_for_selector("text=is uploaded")
    looked_at(visit, "uploaded", tmp_path)


def test_the_chart_is_drawn_for_the_screen_and_the_scheme(visit: Visit, tmp_path: Path) -> None:
    page = visit.open("/")
    picture = page.locator(".months img")
    picture.scroll_into_view_if_needed()
    picture.evaluate("(picture) => picture.decode()")  # waits until it is here
    looked_at(visit, "chart", tmp_path)
    source = picture.evaluate("(picture) => picture.currentSrc")
    assert ("narrow" in source) == (page.viewport_size["width"] == 390)
    assert ("dark" in source) == page.evaluate(DARK)
    # Its smallest letters have 10 points, of 160 or 192 to 72 pixels each.
    pixels = 10 / 72 * (192 if "narrow" in source else 160)
    scale = picture.evaluate("(picture) => (picture.clientWidth - 24) / picture.naturalWidth")
    assert pixels * scale >= 11
    ratio = picture.evaluate("(p) => p.naturalHeight / p.naturalWidth")
    box = picture.evaluate("(p) => (p.clientHeight - 24) / (p.clientWidth - 24)")
    assert box == pytest.approx(ratio, rel=0.02)  # nothing moves when the picture comes
