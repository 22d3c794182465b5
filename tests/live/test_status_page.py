"""The status page: what is in the file, and what it does in a browser."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin

import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

from helpers import statuses
from helpers.admin import CLEANUP, STATUS, basic, ok
from helpers.browser import Visit, chromium
from helpers.example import CONFIG, EXAMPLE
from helpers.servers import HERE, serve, wait_for
from helpers.wsgi import call, make_environ
from lowmem_wsgi import LowMemory
from lowmem_wsgi.admin.status_page import headers, render

HOSTILE = [
    "</script><script>alert(1)</script>",
    "/<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<!-- <script>",
    "]]>\u2028\u2029&lt;",
    "{{nonce}} {{data}} {{summary}}",
    "\udc80\ud800 \x00",
]


# --- The file


class Tags(HTMLParser):
    """The tags of a page, each with its attributes, and the text in each script."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script":
            self.scripts[-1] += data


def made(document: dict[str, Any], status: str = STATUS, cleanup: str = CLEANUP) -> bytes:
    return render(document, nonce="n-0", status_path=status, cleanup_path=cleanup)


def embedded(page: bytes) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(Tags(page).scripts[0])
    return result


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_text_stays_text(text: str) -> None:
    document = statuses.at_rest(routes=[statuses.route(text, 1, 1, 1, 0)], diagnosis=text)
    page = made(document)
    plain = Tags(made(statuses.at_rest()))
    assert [tag for tag, _ in Tags(page).tags] == [tag for tag, _ in plain.tags]
    assert embedded(page)["status"]["routes"][0]["route"] == text
    assert "<!--" not in Tags(page).scripts[0]
    assert not re.search("[\u2028\u2029]", Tags(page).scripts[0])


def test_each_script_and_style_carries_the_nonce() -> None:
    tags = [(tag, attrs) for tag, attrs in Tags(made(statuses.at_rest())).tags]
    guarded = [attrs for tag, attrs in tags if tag in ("script", "style")]
    assert len(guarded) == 3
    assert all(attrs["nonce"] == "n-0" for attrs in guarded)
    assert not any("src" in attrs for _, attrs in tags)


def test_nothing_in_the_file_needs_what_the_policy_forbids() -> None:
    for tag, attrs in Tags(made(statuses.at_rest())).tags:
        assert not [name for name in attrs if name == "style" or name.startswith("on")], tag
    page = made(statuses.at_rest()).decode()
    assert set(re.findall(r"https?://[^'\"` ]+", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", page)


def test_the_policy_allows_the_pages_own_script_style_and_polls_alone() -> None:
    sent = dict(headers("n-0"))
    rules = dict(rule.split(" ", 1) for rule in sent["Content-Security-Policy"].split("; "))
    assert rules == {
        "default-src": "'none'",
        "script-src": "'nonce-n-0'",
        "style-src": "'nonce-n-0'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert sent["X-Content-Type-Options"] == "nosniff"
    assert sent["Referrer-Policy"] == "no-referrer"
    assert sent["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("status", "cleanup"),
    [(STATUS, CLEANUP), ("/über", "/sauber"), ("/a/b/status", "/c:d"), ("/s", "/a?b#c/ü")],
)
def test_the_cleanup_is_found_from_the_page_under_any_prefix(status: str, cleanup: str) -> None:
    given = embedded(made(statuses.at_rest(), status, cleanup))["cleanup"]
    for prefix in ("http://a.example", "http://a.example/pre/fix"):
        assert urljoin(prefix + quote(status), given) == prefix + quote(cleanup)


def test_without_scripts_the_level_the_figures_and_the_diagnosis_are_there() -> None:
    page = made(statuses.at_the_end()).decode()
    assert "critical: 481 MB used of 512 MB (93.9 %). 8 workers × 58 MB do not fit" in page
    assert "GET /export/&lt;format&gt; grew" in page


def test_what_the_system_does_not_tell_is_left_out() -> None:
    memory = {"used_bytes": 61 * 1024**2, "limit_bytes": None, "percent": None}
    page = made({"status": "ok", "memory": memory}).decode()
    assert '<p id="summary">ok: 61 MB used.</p>' in page


def test_the_page_is_small() -> None:
    assert len(made(statuses.brief())) < 40 * 1024


# --- Who gets it

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ({"HTTP_ACCEPT": BROWSER}, "text/html"),
        ({"QUERY_STRING": "format=html"}, "text/html"),
        ({"HTTP_ACCEPT": BROWSER, "QUERY_STRING": "format=json"}, "application/json"),
        ({"HTTP_ACCEPT": "*/*"}, "application/json"),
        ({}, "application/json"),
    ],
)
def test_a_browser_gets_the_page_and_everybody_else_the_json(
    asked: dict[str, str], kind: str
) -> None:
    wrapped = LowMemory(ok, admin_token="t")
    answer = call(wrapped, make_environ(STATUS, **basic("", "t"), **asked), strict=True)
    assert answer.code == 200
    assert (answer.header("Content-Type") or "").startswith(kind)


def test_each_page_has_a_nonce_of_its_own() -> None:
    wrapped = LowMemory(ok)
    pages = [call(wrapped, make_environ(STATUS, QUERY_STRING="format=html")) for _ in range(2)]
    nonces = [re.findall(r"nonce-([\w-]{20,})'", str(page.headers)) for page in pages]
    assert len({nonce for found in nonces for nonce in found}) == 2
    for page, (nonce, _) in zip(pages, nonces, strict=True):
        assert page.body.decode().count(f'nonce="{nonce}"') == 3


def test_without_a_token_the_page_holds_level_and_memory_alone() -> None:
    answer = call(LowMemory(ok), make_environ(STATUS, QUERY_STRING="format=html"))
    told = embedded(answer.body)["status"]
    assert set(told) == {"status", "memory"}
    assert set(told["memory"]) == {"used_bytes", "limit_bytes", "percent"}


def test_with_a_token_set_nobody_else_sees_the_page() -> None:
    wrapped = LowMemory(ok, admin_token="t")
    assert call(wrapped, make_environ(STATUS, HTTP_ACCEPT=BROWSER)).code == 401


# --- In a browser


class Site:
    """Serves the page and its JSON from a status that a test sets."""

    def __init__(self) -> None:
        self.status = statuses.at_rest()
        self.fails: tuple[str, dict[str, Any]] | None = None
        self.refuses: tuple[str, dict[str, Any]] | None = None
        self.polls = self.cleanups = self.replaced = 0
        self.trace: dict[str, Any] = {"state": "none"}
        self.comes: dict[str, Any] | None = None  # the trace, once one is started
        self.started: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == CLEANUP and environ["REQUEST_METHOD"] == "POST":
            self.cleanups += 1
            return self._json(start_response, *(self.refuses or ("200 OK", statuses.asked_for())))
        if environ["PATH_INFO"] == f"{STATUS}/replace":
            self.replaced += 1
            return self._json(start_response, "200 OK", {"pid": 12})
        if environ["PATH_INFO"] == f"{STATUS}/trace":
            if environ["REQUEST_METHOD"] == "POST":
                self.started.append(environ["QUERY_STRING"])
                self.trace = self.comes or self.trace
            return self._json(start_response, "200 OK", self.trace)
        assert environ["PATH_INFO"] == STATUS, environ["PATH_INFO"]
        if "format=json" in environ["QUERY_STRING"]:
            self.polls += 1
            return self._json(start_response, *(self.fails or ("200 OK", self.status)))
        start_response("200 OK", headers("n-0"))
        return [made(self.status)]

    def _json(self, start_response: Any, status: str, body: dict[str, Any]) -> list[bytes]:
        start_response(status, [("Content-Type", "application/json")])
        return [json.dumps(body).encode()]


class Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    running = make_server("127.0.0.1", 0, lambda *_: [], threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def site(server: Any) -> Site:
    server.app = result = Site()
    return result


@pytest.fixture
def visit(browser: Any, server: Any, site: Site, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """A page that must neither complain nor ask anybody else. Parametrized with its context."""
    result = Visit(browser, f"http://127.0.0.1:{server.port}", **getattr(request, "param", {}))
    try:
        yield result
        assert result.complaints == []
        assert result.left_the_origin() == []
    finally:
        result.close()


STATES = ("at_rest", "short_of_memory", "at_the_end", "brief", "just_started")
TOO_FAINT = (HERE / "contrast.js").read_text()
# The text of each head, beside that of the next.
HEADS_THAT_COLLIDE = """() => [...document.querySelectorAll('thead tr')].flatMap((row) => {
  const boxes = [...row.children].flatMap((head) => {
    const range = document.createRange();
    range.selectNodeContents(head);
    return [...range.getClientRects()].map((box) => [head.textContent, box]);
  });
  return boxes.flatMap(([a, one], n) => boxes.slice(n + 1).filter(([b, two]) => a !== b
    && one.left < two.right + 5 && two.left < one.right + 5 && one.top < two.bottom - 1
    && two.top < one.bottom - 1).map(([b]) => `${a} / ${b}`));
})"""
DRAWN = "#chart .curve[d*=L]"  # a line, and not one point


def show(visit: Visit, site: Site, state: str, **how: Any) -> Any:
    site.status = getattr(statuses, state)()
    return visit.open(**how)


@pytest.mark.parametrize("state", STATES)
def test_each_state_is_read_in_both_colour_schemes_and_on_a_phone(
    visit: Visit, site: Site, state: str, tmp_path: Path
) -> None:
    page = show(visit, site, state)
    if state == "short_of_memory":
        page.get_by_role("button", name="Free memory now").click()
        page.get_by_text("Freed 39 MB").wait_for()
        page.get_by_text("What was done, and when").click()
    if state == "at_the_end":
        site.trace = statuses.traced()
        page.get_by_label("Route", exact=True).fill(statuses.LEAK)
        page.get_by_role("button", name="Trace 20 requests").click()
        page.get_by_text("reports.py:41").first.wait_for()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = page.evaluate(TOO_FAINT)
        assert found["faint"] == []
        assert found["count"] > (20 if state == "brief" else 60)
        visit.screenshot(f"{state}-{scheme}", tmp_path)
    page.set_viewport_size({"width": 390, "height": 800})
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.locator("#chart svg[viewBox^='0 0 3']").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.evaluate(HEADS_THAT_COLLIDE) == []
        visit.screenshot(f"{state}-{scheme}-390", tmp_path)
    page.set_viewport_size({"width": 320, "height": 640})
    page.locator("#chart svg[viewBox^='0 0 2']").wait_for()  # drawn anew, 200 and some wide
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    scrolled = "all => all.filter((box) => box.scrollWidth > box.clientWidth).length"
    assert page.locator(".scroll").evaluate_all(scrolled) == 0
    visit.screenshot(f"{state}-phone", tmp_path)


def test_a_contrast_that_is_too_low_is_found(visit: Visit) -> None:
    page = visit.open()
    page.evaluate("document.getElementById('diagnosis').style.color = '#999'")
    (found,) = page.evaluate(TOO_FAINT)["faint"]
    assert "Nothing stands out" in found[0]


def test_the_level_the_figures_and_the_diagnosis_come_first(visit: Visit, site: Site) -> None:
    page = show(visit, site, "at_the_end")
    first = page.locator("main section").first
    for words in ("Critical", "481 MB", "of 512 MB · 94 %", "8 workers × 58 MB do not fit"):
        assert words in first.inner_text()
    death = page.locator("#death").inner_text()
    assert "OOM kill: worker 10003, 20 min ago" in death
    assert f"In flight: {statuses.LEAK} (for 0.4 s, the worker grew by 266 MB meanwhile)" in death
    assert page.get_by_role("meter").get_attribute("aria-valuenow") == "94"
    assert page.title().startswith("94 % · Critical · 127.0.0.1")
    assert "b3141d" in page.locator("#icon").get_attribute("href")


def test_the_chart_shows_the_hour_its_limits_and_what_was_done(visit: Visit, site: Site) -> None:
    page = show(visit, site, "at_the_end")
    chart = page.locator("#chart svg")
    curves = chart.locator(".curve").evaluate_all("all => all.map((p) => p.getAttribute('d'))")
    assert len(curves) == 2  # the gap parts it
    assert "".join(curves).count("L") > 300
    heights = [
        float(chart.locator(line).get_attribute("y1"))
        for line in (".at-limit", ".at-critical", ".at-warn")
    ]
    assert heights == sorted(heights)
    words = " ".join(chart.locator("text").all_text_contents())
    for label in ("Limit 512 MB", "Critical 450 MB", "Warn 400 MB", "256 MB"):
        assert label in words
    assert len(re.findall(r"\d\d:\d\d", words)) >= 4
    marks = [chart.locator(f"{tag} > title").count() for tag in (".cleanup", ".recycle", ".death")]
    assert marks == [4, 2, 1]
    told = page.get_by_role("img", name="Used memory since").get_attribute("aria-label")
    assert "481 MB now; at most 486 MB" in told
    assert "4 cleanups, 2 workers recycled, 1 death of a worker" in told
    page.get_by_text("What was done, and when").click()
    events = page.get_by_role("table", name="Newest first").locator("tbody tr").all_inner_texts()
    assert len(events) == 7
    assert "Cleanup (critical)" in events[0]


def test_the_curve_is_read_with_a_pointer(visit: Visit, site: Site) -> None:
    page = show(visit, site, "short_of_memory")
    page.locator("#chart svg").hover(position={"x": 100, "y": 100})
    assert re.match(r"\d+\.\d MB at \d\d:\d\d:\d\d", page.locator("#reading").inner_text())
    page.mouse.move(0, 0)
    assert "412 MB now" in page.locator("#reading").inner_text()


def test_processes_stand_beside_the_containers_figure(visit: Visit, site: Site) -> None:
    page = show(visit, site, "at_the_end")
    rows = page.locator("#workers tbody tr").all_inner_texts()
    assert len(rows) == 9
    assert "7 master" in rows[0]
    assert "answered this" in rows[3]
    assert "retiring" in rows[5]
    sums = page.locator("#workers tfoot tr").all_inner_texts()
    assert "476 MB" in sums[0]
    assert "The container" in sums[1]
    assert "481 MB" in sums[1]
    flight = page.locator("#flight tbody tr").all_inner_texts()
    assert [row.split("\t")[0].strip() for row in flight] == [statuses.LEAK, "POST /import"]


def test_routes_are_shown_ten_at_first_and_all_when_asked(visit: Visit, site: Site) -> None:
    page = show(visit, site, "at_the_end")
    rows = page.locator("#routes tbody tr")
    assert rows.count() == 10
    assert "+180 MB" in rows.first.inner_text()
    page.get_by_role("button", name="Show all 40 routes").click()
    assert rows.count() == 40
    page.get_by_role("button", name="Show the first 10 routes").click()
    assert rows.count() == 10


def test_heavy_modules_are_shown_where_they_are_told(visit: Visit, site: Site) -> None:
    page = show(visit, site, "at_the_end")
    rows = page.get_by_role("table", name="What importing").locator("tbody tr").all_inner_texts()
    assert "pandas" in rows[0]
    assert "38 MB" in rows[0]
    assert "the start" in rows[1]


def test_without_a_token_there_is_no_button_and_the_variable_is_named(
    visit: Visit, site: Site
) -> None:
    page = show(visit, site, "brief", clock=True)
    assert page.get_by_role("button").count() == 0
    assert page.get_by_role("table").count() == 0
    assert "LOWMEM_ADMIN_TOKEN" in page.locator("#diagnosis").inner_text()
    visit.pass_time(5)  # it draws what it has seen itself
    page.locator(DRAWN).wait_for(state="attached")


def test_it_keeps_itself_up_to_date(visit: Visit, site: Site) -> None:
    page = visit.open(clock=True)
    assert site.polls == 0  # the first figures came with the page
    assert page.locator("#used").inner_text() == "61 MB"
    site.status = statuses.short_of_memory()
    visit.pass_time(5)
    page.locator("#used", has_text="412 MB").wait_for()
    assert site.polls == 1
    # Only the change of level is told to a screen reader.
    assert page.locator("#said").inner_text() == "The level is now Warn: 412 MB of 512 MB."
    site.status["memory"]["used_bytes"] += 2**20
    visit.pass_time(5)
    page.locator("#used", has_text="413 MB").wait_for()
    assert "412 MB" in page.locator("#said").inner_text()


def test_it_asks_from_an_address_with_a_password_in_it_too(visit: Visit, site: Site) -> None:
    page = visit.page
    page.clock.install()
    page.goto(visit.origin.replace("//", "//me:secret@") + STATUS)
    assert "me:secret" in page.url
    visit.pass_time(5)
    wait_for(lambda: site.polls == 1, "a poll")
    assert page.locator("#lost").is_hidden()
    visit.asked.pop(0)


def test_a_hidden_tab_asks_nothing(visit: Visit, site: Site) -> None:
    page = visit.open(clock=True)
    hide = """(hidden) => {
      Object.defineProperty(document, 'hidden', { get: () => hidden, configurable: true });
      document.dispatchEvent(new Event('visibilitychange'));
    }"""
    page.evaluate(hide, True)
    visit.pass_time(60)
    assert site.polls == 0
    with page.expect_response(re.compile("format=json")):
        page.evaluate(hide, False)  # and at once, when it is seen again
    assert site.polls == 1


def test_lost_contact_is_shown_with_its_time_and_the_figures_stay(
    visit: Visit, site: Site, tmp_path: Path
) -> None:
    page = visit.open(clock=True)
    since = page.locator("#live").inner_text().removeprefix("Up to date at ")
    page.context.set_offline(True)
    visit.pass_time(5)
    lost = page.locator("#lost")
    lost.get_by_text("The server cannot be reached.").wait_for()
    assert f"No contact since {since}" in lost.inner_text()
    assert page.locator("#used").inner_text() == "61 MB"
    assert page.locator("#sign").inner_text().split() == ["OK", "at", since]
    colour = "sign => getComputedStyle(sign).backgroundColor"
    assert page.locator("#sign").evaluate(colour) == "rgb(84, 93, 103)"  # and no more green
    assert page.title().startswith("No contact")
    assert page.evaluate(TOO_FAINT)["faint"] == []
    visit.screenshot("lost", tmp_path)

    page.context.set_offline(False)
    site.fails = ("503 Service Unavailable", {"detail": "Come back later."})
    visit.pass_time(5)
    lost.get_by_text("The server answered 503: Come back later.").wait_for()
    assert f"No contact since {since}" in lost.inner_text()
    site.fails = ("401 Unauthorized", {})
    visit.pass_time(5)
    lost.get_by_text("reload this page").wait_for()

    site.fails = None
    visit.pass_time(5)
    lost.wait_for(state="hidden")
    assert "below both thresholds" in page.locator("#sign").inner_text()
    # The browser itself notes each failed request; the page adds nothing.
    assert all("Failed to load resource" in line for line in visit.complaints)
    visit.complaints.clear()


def test_the_button_cleans_up_and_shows_what_each_step_freed(visit: Visit, site: Site) -> None:
    page = show(visit, site, "at_the_end")
    button = page.get_by_role("button", name="Free memory now")
    site.status = statuses.short_of_memory()
    while not button.evaluate("button => button === document.activeElement"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    said = page.locator("#freed")
    said.get_by_text("Freed 39 MB: the worker held 481 MB before, and 442 MB after.").wait_for()
    assert said.get_attribute("role") == "status"
    rows = page.locator("#freed-steps tbody tr").all_inner_texts()
    assert len(rows) == 4
    assert "31 MB" in rows[0]
    assert "callback memory.drop_cache" in rows[2]
    assert "1,204 objects" in rows[3]
    assert "−40 KB" in rows[3]
    assert button.evaluate("button => button === document.activeElement")
    assert site.cleanups == 1
    page.locator("#used", has_text="412 MB").wait_for()  # it asks for the new figures at once


def test_a_refused_cleanup_says_why(visit: Visit, site: Site) -> None:
    page = visit.open()
    for status, why in [("403 Forbidden", "No token is set."), ("503 Unavailable", "Later.")]:
        site.refuses = (status, {"detail": why})
        page.get_by_role("button", name="Free memory now").click()
        page.get_by_text(f"Not done. The server answered {status[:3]}: {why}").wait_for()
        assert page.locator("#freed-steps").is_hidden()
        assert page.evaluate(TOO_FAINT)["faint"] == []
    visit.complaints.clear()  # the browser's own lines


def test_hostile_text_is_shown_as_it_is_and_runs_nothing(visit: Visit, site: Site) -> None:
    site.status = status = statuses.at_the_end()
    texts = HOSTILE[:3]
    flight = [{"route": text, "seconds": 1, "grown_bytes": 1} for text in texts]
    status["routes"] = [statuses.route(text, 1, 1, 1, 0) for text in texts]
    status["workers"][1]["in_flight"] = status["last_death"]["in_flight"] = flight
    status["diagnosis"] = status["last_death"]["cause"] = " ".join(texts)
    status["findings"] = [{"says": text, "remedy": text} for text in texts]
    status["irreplaceable"] = " ".join(texts)
    line = statuses.traced()["lines"][0] | {"code": texts[0], "file": texts[1]}
    site.trace = statuses.traced(route=texts[2], lines=[line])
    status["history"]["events"][0]["what"] = status["heavy"][0]["module"] = " ".join(texts)
    status["cleanups"]["steps"] = [
        {"step": text, "freed_bytes": 1, "seconds": 1, "note": text} for text in texts
    ]
    page = visit.open(clock=True)
    visit.pass_time(5)
    wait_for(lambda: site.polls == 1, "a poll")
    for text in texts:
        assert text in page.locator("#has-trace").text_content()
    for part in (
        "#diagnosis",
        "#why-not",
        "#routes",
        "#death",
        "#flight",
        "#events",
        "#heavy",
        "#steps",
    ):
        shown = page.locator(part).text_content()
        assert all(text in shown for text in texts), part
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2


@pytest.mark.parametrize("state", ["at_the_end", "brief"])
def test_the_page_can_be_found_ones_way_in(visit: Visit, site: Site, state: str) -> None:
    """What a screen reader goes by: landmarks, headings, captions, names."""
    page = show(visit, site, state)
    assert page.evaluate("document.documentElement.lang") == "en"
    for landmark in ("banner", "main", "contentinfo"):
        assert page.get_by_role(landmark).count() == 1
    heads = page.locator("h1, h2, h3").filter(visible=True)
    levels = [int(level) for level in heads.evaluate_all("all => all.map((h) => h.tagName[1])")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))
    bare = {
        "sections": "section:not([aria-labelledby])",
        "buttons": "button:empty:not([hidden])",
        "tables": "table:not(:has(> caption:not(:empty)))",
        "heads": "th:not([scope])",
        "drawings": "svg:not([aria-label]):not([aria-hidden])",
    }
    for what, selector in bare.items():
        assert page.locator(selector).count() == 0, what
    for section in page.locator("section").filter(visible=True).all():
        named = section.get_attribute("aria-labelledby")
        assert page.locator(f"#{named}").inner_text().strip()


@pytest.mark.parametrize("visit", [{"java_script_enabled": False}], indirect=True, ids=["none"])
def test_with_scripts_off_it_still_says_how_it_is(visit: Visit, site: Site) -> None:
    page = show(visit, site, "at_the_end")
    assert "critical: 481 MB used of 512 MB" in page.locator("body").inner_text()
    assert "8 workers × 58 MB" in page.locator("body").inner_text()


def test_it_can_be_printed(visit: Visit, site: Site, tmp_path: Path) -> None:
    page = show(visit, site, "at_the_end")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.get_by_role("button").count() == 0
    assert page.evaluate("getComputedStyle(document.querySelector('section')).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    assert page.evaluate(TOO_FAINT)["faint"] == []


def test_the_examples_page_under_gunicorn(browser: Any, tmp_path: Path) -> None:
    with serve(
        "app:app",
        tmp_path=tmp_path,
        config=CONFIG,
        cwd=EXAMPLE,
        CLIENTS_DIR=str(tmp_path / "data"),
        LOWMEM_ADMIN_TOKEN="secret",
    ) as running:
        origin = f"http://127.0.0.1:{running.port}"
        assert running.get("/").status == 200
        assert running.get(quote("/<script>alert(1)</script>")).status == 404
        assert running.get(STATUS, Accept="text/html").status == 401
        visit = Visit(browser, origin, http_credentials={"username": "me", "password": "secret"})
        try:
            page = visit.open(clock=True)
            assert page.locator("#level").inner_text() == "OK"
            visit.pass_time(5)
            page.locator(DRAWN).wait_for(state="attached")
            assert page.locator("#workers tbody tr").count() >= 1
            page.get_by_role("button", name="Free memory now").click()
            page.locator("#freed-steps").get_by_text("collect").wait_for()
            assert "the worker held" in page.locator("#freed").inner_text()
            visit.screenshot("example", tmp_path)
            assert visit.complaints == []
            assert visit.left_the_origin() == []
        finally:
            visit.close()


# --- What it may do besides


def test_the_button_replaces_the_worker(visit: Visit, site: Site) -> None:
    page = show(visit, site, "at_rest")
    page.get_by_role("button", name="Replace this worker").click()
    page.get_by_text("Worker 12 is being replaced").wait_for()
    assert site.replaced == 1


def test_where_a_worker_cannot_be_replaced_the_button_says_why(visit: Visit, site: Site) -> None:
    page = show(visit, site, "just_started")
    button = page.get_by_role("button", name="Replace this worker")
    assert button.get_attribute("aria-disabled") == "true"
    button.click(force=True)
    assert "This server cannot replace a worker" in page.locator("#why-not").inner_text()
    assert site.replaced == 0


def test_each_finding_has_its_remedy_beside_it(visit: Visit, site: Site) -> None:
    page = show(visit, site, "at_the_end")
    rows = page.locator("#diagnosis p").all_inner_texts()
    assert len(rows) == 2
    for row, finding in zip(rows, site.status["findings"], strict=True):
        assert finding["says"] in row
        assert "What to do" in row


def test_a_trace_is_started_followed_stopped_and_shown(visit: Visit, site: Site) -> None:
    page = show(visit, site, "at_the_end")
    site.comes = statuses.traced(state="running", traced=3, lines=[], cost=None)
    page.get_by_label("Route", exact=True).fill(statuses.LEAK)
    page.get_by_role("button", name="Trace 20 requests").click()
    page.get_by_text("3 of 20 requests").wait_for()
    assert site.started == ["route=GET+%2Fexport%2F%3Cformat%3E"]
    page.get_by_role("button", name="Stop").click()
    wait_for(lambda: site.started[1:] == ["stop=1"], "the stop")
    site.trace = site.comes = statuses.traced()
    page.get_by_text("what 10 requests left behind").wait_for()
    row = page.locator("#lines tbody tr").first.inner_text()
    for words in (
        "/srv/shop/reports.py:41",
        "CACHE[number]",
        "2 str",
        "flask/app.py:902",
        "+512 KB",
    ):
        assert words in row
    assert "A request took 12 ms with it" in page.locator("#trace-cost").inner_text()
