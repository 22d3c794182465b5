"""What LowMemory promises of sessions, tried from outside: by what a browser sends and is sent.

These tests know the documented names only (LowMemory, its settings, the key's file), so that they
hold whatever the inside looks like. First in this process, where time is a number that the tests
move, then on a real server with threads.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from helpers.servers import Server, serve, wait_for
from helpers.wsgi import call, make_environ
from lowmem_wsgi import LowMemory, SettingsError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

LIFETIME = 600
SECRET = "the secret of these promises"
DAY = 86400


@dataclass
class Clock:
    now: float

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of day, for the app and for LowMemory."""
    clock = Clock(float(int(time.time())))
    monkeypatch.setattr(time, "time", clock)
    return clock


@dataclass
class Browser:
    """Keeps the cookies that it is sent, until their end, and sends them back."""

    ask: Callable[[str, str], tuple[Any, list[str]]]  # path, Cookie -> answer, Set-Cookie headers
    jar: dict[str, tuple[str, float]] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)  # the Set-Cookie headers of the last answer

    @property
    def cookie(self) -> str:
        now = time.time()
        return "; ".join(f"{name}={value}" for name, (value, end) in self.jar.items() if now < end)

    def get(self, path: str) -> Any:
        answer, self.sent = self.ask(path, self.cookie)
        for header in self.sent:
            self._keep(header)
        return answer

    def user(self) -> str | None:
        name = self.get("/who")["user"]
        assert name is None or isinstance(name, str)
        return name

    def names_sent(self) -> set[str]:
        return {header.partition("=")[0] for header in self.sent}

    def _keep(self, header: str) -> None:
        pair, *attributes = (part.strip() for part in header.split(";"))
        name, _, value = pair.partition("=")
        given = {key.lower(): text for key, _, text in (a.partition("=") for a in attributes)}
        end = float("inf")
        if "max-age" in given:
            end = time.time() + int(given["max-age"])
        elif "expires" in given:
            end = parsedate_to_datetime(given["expires"]).timestamp()
        self.jar[name] = (value, end)


def asking(app: WSGIApplication) -> Callable[[str, str], tuple[Any, list[str]]]:
    def ask(path: str, cookie: str) -> tuple[Any, list[str]]:
        path, _, query = path.partition("?")
        environ = make_environ(path, QUERY_STRING=query)
        if cookie:
            environ["HTTP_COOKIE"] = cookie
        response = call(app, environ)
        assert response.code == 200, response.body
        sent = [value for name, value in response.headers if name.lower() == "set-cookie"]
        body = response.body.decode()
        return (json.loads(body) if body.startswith("{") else body), sent

    return ask


@contextlib.contextmanager
def site(app: WSGIApplication, **settings: Any) -> Iterator[Callable[[], Browser]]:
    """Visitors of an app behind the one line."""
    wrapped = LowMemory(app, **{"session_lifetime": LIFETIME, "secret_key": SECRET, **settings})
    try:
        yield lambda: Browser(asking(wrapped))
    finally:
        wrapped.close()


@pytest.fixture(scope="module")
def django(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SESSION_DIR", str(tmp_path_factory.mktemp("sessions")))
        return importlib.import_module("apps.django_session")


@pytest.fixture(scope="module")
def flask() -> ModuleType:
    return importlib.import_module("apps.flask_session")


@pytest.fixture(params=["flask", "django"])
def framework(request: pytest.FixtureRequest) -> ModuleType:
    module = request.getfixturevalue(request.param)
    assert isinstance(module, ModuleType)
    return module


def bare(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """An app that shows its cookies, and sets the one that the query asks for."""
    query = environ["QUERY_STRING"]
    start_response("200 OK", [("Set-Cookie", query.replace("%20", " "))] if query else [])
    return [environ.get("HTTP_COOKIE", "").encode("latin-1")]


# --- A slow request beside others


@dataclass
class Story:
    """Two tabs of one browser: an answer that begins before something and ends after it."""

    before: list[str]  # paths; LATER and USED are no paths
    meanwhile: list[str]
    after: str
    last: dict[str, Any]  # the answer to that
    slow: str = "/slow"
    apps: tuple[str, ...] = ("flask", "django")


LATER = "half a lifetime later"
USED = ["/who", LATER] * 5
ANA: dict[str, Any] = {"user": "ana"}
NOBODY: dict[str, Any] = {"user": None}
FULL = {"cart": ["tea", "milk"]}

STORIES = {
    "nothing beside": Story(["/login?ana", LATER], [], "/who", ANA),
    "reading beside": Story(["/login?ana", LATER], ["/who", "/who"], "/who", ANA),
    "a logout beside": Story(["/login?ana", LATER], ["/logout"], "/who", NOBODY),
    "a logout beside, after long use": Story(["/login?ana", *USED], ["/logout"], "/who", NOBODY),
    "a logout beside a stream": Story(
        ["/login?ana", LATER], ["/logout"], "/who", NOBODY, slow="/stream", apps=("flask",)
    ),
    "a change beside": Story(["/cart?tea", LATER], ["/cart?milk"], "/cart", FULL),
    "a change beside, after long use": Story(["/cart?tea", *USED], ["/cart?milk"], "/cart", FULL),
    "a login beside": Story(["/cart?tea", LATER], ["/login?ana"], "/who", ANA),
    "a login under a new key beside": Story(
        ["/cart?tea", LATER], ["/authenticate?ana"], "/who", ANA, apps=("django",)
    ),
    "another user beside": Story(["/login?ben", LATER], ["/logout", "/login?ana"], "/who", ANA),
}


def told(story: Story, module: ModuleType, browser: Browser, clock: Clock) -> list[Any]:
    """All that the app answers in the course of a story."""
    answers: list[Any] = []

    def visit(paths: list[str]) -> None:
        for path in paths:
            if path == LATER:
                clock.now += LIFETIME / 2
                continue
            answer = browser.get(path)
            if isinstance(answer, dict):
                answer.pop("pid", None)
            answers.append(answer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "gate", lambda: visit(story.meanwhile))
        visit([*story.before, story.slow, story.after])
    return answers


@pytest.mark.parametrize(
    ("name", "story"),
    [
        pytest.param(app, story, id=f"{app}: {title}")
        for title, story in STORIES.items()
        for app in story.apps
    ],
)
def test_a_slow_answer_does_to_a_session_what_it_does_without_lowmemory(
    name: str, story: Story, clock: Clock, request: pytest.FixtureRequest
) -> None:
    module = request.getfixturevalue(name)
    with site(module.bare) as visitor:
        answers = told(story, module, visitor(), clock)
    assert answers[-1] == story.last
    assert answers == told(story, module, Browser(asking(module.bare)), clock)


def test_an_answer_of_before_the_login_does_not_shorten_the_session_of_after(
    framework: ModuleType, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it ends when the newer session is in use already."""
    with site(framework.bare) as visitor:
        browser = visitor()
        browser.get("/cart?tea")
        clock.now += LIFETIME / 2

        def meanwhile() -> None:
            browser.get("/login?ana")
            clock.now += LIFETIME / 2
            assert browser.user() == "ana"
            clock.now += 1

        monkeypatch.setattr(framework, "gate", meanwhile)
        browser.get("/slow")
        clock.now += LIFETIME - 10
        assert browser.user() == "ana"


def test_reading_never_sends_a_session_however_long_it_is_used(
    framework: ModuleType, clock: Clock
) -> None:
    with site(framework.bare) as visitor:
        browser = visitor()
        browser.get("/login?ana")
        (name,) = browser.names_sent()
        value = browser.jar[name]
        for _ in range(30):  # ten lifetimes
            clock.now += LIFETIME / 3
            assert browser.user() == "ana"
            assert name not in browser.names_sent()
        assert browser.jar[name] == value
        clock.now += LIFETIME
        assert browser.user() is None


def test_whatever_slides_a_session_slides_that_one_alone(clock: Clock) -> None:
    """What came with one session does not keep another alive, an older one of its own least."""
    with site(bare) as visitor:
        jars, browser = [], visitor()
        for user in ("ana", "ana2", "ben"):
            browser = visitor()
            browser.get(f"/?session={user}")
            browser.jar["session"] = (browser.jar["session"][0], float("inf"))
            jars.append(browser.jar["session"])
        clock.now += LIFETIME / 2
        assert browser.get("/") == "session=ben"
        clock.now += LIFETIME / 2
        assert browser.get("/") == "session=ben"
        for jar in jars[:2]:
            browser.jar["session"] = jar
            assert browser.get("/") == ""
        browser.jar["session"] = jars[2]
        assert browser.get("/") == "session=ben"  # and trying did no harm


def test_the_app_sees_no_cookie_that_it_did_not_set(clock: Clock) -> None:
    with site(bare) as visitor:
        browser = visitor()
        browser.get("/?session=ana; Path=/")
        browser.get("/?theme=dark")
        clock.now += LIFETIME / 2
        assert browser.get("/") == "session=ana; theme=dark"
        assert len(browser.names_sent()) == 1
        added = browser.names_sent() - {"session", "theme"}
        assert len(added) == 1  # there is one, else this shows nothing
        assert browser.get("/") == "session=ana; theme=dark"
        # Not when its session is gone, and not in disguise.
        name = added.pop()
        ask = asking(LowMemory(bare, session_lifetime=LIFETIME, secret_key=SECRET))
        value = browser.jar[name][0]
        for cookie in (
            f"{name}={value}",
            f"{name} = {value}",
            f"{name}={value}; {name}={value}",
            f"x=1 {name}={value}",
            f"x=1,{name}={value}",
            f"\xa0{name}={value}",
        ):
            assert ask("/", f"{cookie}; theme=dark")[0] == "theme=dark", cookie


def test_what_logs_out_leaves_nothing_of_the_session_behind(
    framework: ModuleType, clock: Clock
) -> None:
    with site(framework.bare) as visitor:
        browser = visitor()
        browser.get("/login?ana")
        clock.now += LIFETIME / 2
        assert browser.user() == "ana"
        assert len(browser.cookie.split("; ")) == 2
        browser.get("/logout")
        assert browser.cookie == ""


# --- An end that the app set


@pytest.mark.parametrize("end", ["Max-Age=120", "Expires={}", "Max-Age=120; Expires={}"])
def test_an_end_that_the_app_set_comes_in_spite_of_use(end: str, clock: Clock) -> None:
    with site(bare) as visitor:
        browser = visitor()
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(clock.now + 120))
        header = f"Path=/; {end.format(date)}"
        browser.get(f"/?session=ana; {header}")
        (sent,) = browser.sent
        assert sent.partition("; ")[2] == header  # the browser is told what the app said
        kept = browser.jar["session"][0]
        for _ in range(7):
            clock.now += 16
            assert browser.get("/") == "session=ana"
            assert "session" not in browser.names_sent()
        clock.now += 7
        assert browser.get("/") == "session=ana"
        clock.now += 1
        assert browser.get("/") == ""
        # A browser that keeps the cookie all the same keeps no session.
        browser.jar["session"] = (kept, float("inf"))
        assert browser.get("/") == ""


def test_an_end_that_django_was_given_comes_in_spite_of_use(
    django: ModuleType, clock: Clock
) -> None:
    with site(django.bare) as visitor:
        browser = visitor()
        browser.get("/login?ana")
        browser.get("/until?120")
        for _ in range(11):
            clock.now += 10
            assert browser.user() == "ana"
        # Whatever a browser makes of the end:
        browser.jar = {name: (value, float("inf")) for name, (value, _) in browser.jar.items()}
        clock.now += 10
        assert browser.user() is None


def test_a_session_until_the_browser_is_closed_slides(django: ModuleType, clock: Clock) -> None:
    with site(django.bare) as visitor:
        browser = visitor()
        browser.get("/login?ana")
        browser.get("/until?0")
        (sent,) = browser.sent
        assert "max-age" not in sent.lower()
        assert "expires" not in sent.lower()
        for _ in range(9):
            clock.now += LIFETIME / 3
            assert browser.user() == "ana"
            assert all("max-age" not in header.lower() for header in browser.sent)
        clock.now += LIFETIME
        assert browser.user() is None


def test_a_later_end_than_the_lifetime_is_the_last_of_a_session_in_use(clock: Clock) -> None:
    with site(bare) as visitor:
        browser = visitor()
        browser.get(f"/?session=ana; Max-Age={3 * LIFETIME}")
        kept = browser.jar["session"][0]
        for _ in range(8):
            clock.now += LIFETIME / 3
            assert browser.get("/") == "session=ana"
            assert "session" not in browser.names_sent()
        browser.jar = {name: (value, float("inf")) for name, (value, _) in browser.jar.items()}
        clock.now += LIFETIME / 3
        assert browser.get("/") == ""
        browser.jar["session"] = (kept, float("inf"))
        assert browser.get("/") == ""


def test_a_permanent_session_of_flask_ends_after_the_lifetime_and_lives_on_in_use(
    flask: ModuleType, clock: Clock
) -> None:
    """Flask sets it anew with each answer, for 31 days."""
    with site(flask.bare) as visitor:
        browser = visitor()
        browser.get("/login?ana")
        browser.get("/remember")
        for _ in range(9):
            clock.now += LIFETIME / 3
            assert browser.user() == "ana"
        clock.now += LIFETIME
        assert browser.user() is None


# --- Clocks


def test_a_clock_set_back_by_a_minute_ends_no_session_and_by_more_it_does(clock: Clock) -> None:
    """(Flask's own cookie does not stand a clock that goes back.)"""
    with site(bare) as visitor:
        browser = visitor()
        browser.get("/?session=ana; Path=/")
        begin = clock.now
        for back, seen in ((10, "session=ana"), (60, "session=ana"), (61, "")):
            clock.now = begin - back
            assert browser.get("/") == seen, back


# --- The key's file


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the key is kept of an app without a secret."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "lowmem-wsgi" / "session-key"


def test_a_site_in_use_keeps_its_key_from_the_sweepers_of_old_files(
    key: Path, clock: Clock
) -> None:
    with site(bare, secret_key=None) as visitor:
        browser = visitor()
        browser.get("/?session=ana; Path=/")
        os.utime(key, (0, 0))
        clock.now += 300
        assert browser.get("/") == "session=ana"
        assert key.stat().st_mtime > 0


def test_a_key_that_was_swept_away_comes_back_and_whoever_starts_later_has_the_same(
    key: Path, clock: Clock
) -> None:
    with site(bare, secret_key=None) as visitor:
        browser = visitor()
        browser.get("/?session=ana; Path=/")
        secret = key.read_bytes()
        key.unlink()
        key.parent.rmdir()
        clock.now += 300
        assert browser.get("/") == "session=ana"
        assert key.read_bytes() == secret
        with site(bare, secret_key=None) as later:
            newcomer = later()
            newcomer.jar = browser.jar
            assert newcomer.get("/") == "session=ana"


def test_a_process_that_finds_another_key_opens_by_both(key: Path, clock: Clock) -> None:
    with site(bare, secret_key=None) as early:
        ana = early()
        ana.get("/?session=ana; Path=/")
        key.unlink()
        with site(bare, secret_key=None) as late:
            ben = late()
            ben.get("/?session=ben; Path=/")
            other = key.read_bytes()
            clock.now += 300
            ana.get("/")
            for browser, session in ((ana, "session=ana"), (ben, "session=ben")):
                visitor = early()
                visitor.jar = browser.jar
                assert visitor.get("/") == session
            # What it signs now, the later one knows.
            cat = early()
            cat.get("/?session=cat; Path=/")
            visitor = late()
            visitor.jar = cat.jar
            assert visitor.get("/") == "session=cat"
            assert key.read_bytes() == other


# --- Secrets that are none


LONG = "0123456789abcdef"
SHORT = {
    "a comma inside": (f"{LONG},q", "part 2 of 2", "1 character,"),
    "in the middle": (f"{LONG},{'x' * 15},{LONG}", "part 2 of 3", "15 characters,"),
    "one alone": ("dev", "", "3 characters,"),
    "an old one": (f"old,{LONG}", "part 1 of 2", "3 characters,"),
}


@pytest.mark.parametrize(("secret", "which", "length"), SHORT.values(), ids=SHORT)
def test_a_short_secret_is_refused_and_not_shown(
    secret: str, which: str, length: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOWMEM_SECRET_KEY", secret)
    with pytest.raises(SettingsError) as caught:
        LowMemory(bare)
    (problem,) = caught.value.problems
    assert problem.startswith("LOWMEM_SECRET_KEY=(a secret): ")
    for words in (which, length, "at least 16", "secrets.token_hex()"):
        assert words in problem
    for part in secret.split(","):
        if len(part) > 1:
            assert part not in problem.replace("(a secret)", "")
    # As a keyword, and beside other mistakes.
    monkeypatch.delenv("LOWMEM_SECRET_KEY")
    with pytest.raises(SettingsError) as caught:
        LowMemory(bare, secret_key=secret.split(","), trim="yess")
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("secret", [LONG, f"{LONG},{LONG[::-1]}", f"{LONG},", f" {LONG} "])
def test_secrets_that_are_long_enough_are_taken(secret: str, clock: Clock) -> None:
    with site(bare, secret_key=secret) as visitor:
        browser = visitor()
        browser.get("/?session=ana; Path=/")
        assert browser.get("/") == "session=ana"


def test_a_secret_of_another_program_may_be_short_and_have_commas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET_KEY", "a,b")
    assert LowMemory(bare).settings.secret_key == ("a,b",)


# --- On a real server


LIVE_LIFETIME = 20


def at(server: Server) -> Callable[[str, str], tuple[Any, list[str]]]:
    def ask(path: str, cookie: str) -> tuple[Any, list[str]]:
        reply = server.get(path, **({"Cookie": cookie} if cookie else {}))
        assert reply.status == 200, server.log
        body = json.loads(reply.text) if reply.text.startswith("{") else reply.text
        return body, reply.headers.get_all("Set-Cookie") or []

    return ask


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    with contextlib.ExitStack() as stack:
        found = {}
        for name in ("flask", "django"):
            tmp_path = tmp_path_factory.mktemp(name)
            found[name] = stack.enter_context(
                serve(
                    f"{name}_session:app",
                    tmp_path=tmp_path,
                    threads=4,
                    SESSION_DIR=str(tmp_path),
                    LOWMEM_SESSION_LIFETIME=f"{LIVE_LIFETIME}s",
                    LOWMEM_SECRET_KEY=SECRET,
                )
            )
        yield found


LIVE = {
    "a logout beside": Story(["/login?ana"], ["/logout"], "/who", NOBODY),
    "a change beside": Story(["/cart?tea"], ["/cart?milk"], "/cart", FULL),
    "a logout beside a stream": Story(
        ["/login?ana"], ["/logout"], "/who", NOBODY, slow="/stream", apps=("flask",)
    ),
    "a login under a new key beside": Story(
        ["/cart?tea"], ["/authenticate?ana"], "/who", ANA, apps=("django",)
    ),
    "another user beside": Story(["/login?ben"], ["/logout", "/login?ana"], "/who", ANA),
}


def one_waits(server: Server) -> None:
    wait_for(lambda: server.get("/waiting").text, "an answer")
    wait_for(lambda: json.loads(server.get("/waiting").text)["waiting"], "it to begin")


def test_a_slow_answer_of_a_server_with_threads_brings_no_session_back(
    servers: dict[str, Server],
) -> None:
    """All stories at once, so that they wait together for their sessions to be old enough."""
    tellers = []
    browsers = {}
    for title, story in LIVE.items():
        for app in story.apps:
            browsers[title, app] = browser = Browser(at(servers[app]))
            for path in story.before:
                browser.get(path)
    begin = time.monotonic()
    # A session in use is renewed after a tenth of its lifetime.
    wait_for(lambda: time.monotonic() > begin + LIVE_LIFETIME / 10 + 1, "the time to come")
    for (title, app), browser in browsers.items():
        story = LIVE[title]
        server = servers[app]
        slow = threading.Thread(target=browser.get, args=(story.slow,), name=f"{title} {app}")
        slow.start()
        tellers.append(slow)
        one_waits(server)
        beside = Browser(browser.ask, browser.jar)  # another tab
        for path in story.meanwhile:
            beside.get(path)
        server.get("/open")
        slow.join(30)
        assert not slow.is_alive()
        answer = beside.get(story.after)
        answer.pop("pid", None)
        assert answer == story.last, (title, app)


def test_a_session_in_use_on_a_real_server_outlives_its_lifetime(tmp_path: Path) -> None:
    with serve(
        "flask_session:app",
        tmp_path=tmp_path,
        LOWMEM_SESSION_LIFETIME="4s",
        LOWMEM_SECRET_KEY=SECRET,
    ) as server:
        browser = Browser(at(server))
        begin = time.monotonic()
        browser.get("/login?ana")
        value = browser.jar["session"]

        def used_for(seconds: float) -> bool:
            assert browser.user() == "ana"
            assert "session" not in browser.names_sent()
            return time.monotonic() > begin + seconds

        wait_for(lambda: used_for(9), "two lifetimes to pass")
        assert browser.jar["session"] == value
        last = browser.cookie
        wait_for(lambda: browser.ask("/who", last)[0]["user"] is None, "the session to end")


def test_under_our_gunicorn_config_the_key_is_that_of_the_master(tmp_path: Path) -> None:
    """So a worker that comes after the file was swept away knows the sessions of before."""
    key = tmp_path / "lowmem-wsgi" / "session-key"
    with serve(
        "no_secret:app",
        config="python:lowmem_wsgi.gunicorn",
        tmp_path=tmp_path,
        WEB_CONCURRENCY="1",
        XDG_RUNTIME_DIR=str(tmp_path),
    ) as server:
        browser = Browser(at(server))
        first = browser.get("/login?ana")["pid"]
        secret = key.read_bytes()
        key.unlink()
        os.kill(first, signal.SIGTERM)
        wait_for(lambda: first not in server.workers(), "the worker to end")
        answer = browser.get("/who")
        assert answer["pid"] != first
        assert answer["user"] == "ana"
        assert key.read_bytes() == secret
        assert not re.search("Traceback", server.log)
