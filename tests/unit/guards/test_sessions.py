"""The session guard in this process: its envelope, how it reads cookies, its rule.

Time is a number that the tests move. Real servers: test_sessions_live.py.
"""

from __future__ import annotations

import importlib
import logging
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from http.cookies import CookieError
from typing import TYPE_CHECKING, Any

import bottle
import pytest
from django.core.handlers.wsgi import get_str_from_wsgi
from django.http.cookie import parse_cookie as parse_as_django
from flask import Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.http import parse_cookie as parse_as_werkzeug
from werkzeug.test import Client, TestResponse

from lowmem_wsgi.guards.sessions import FIND_KEYS_EVERY, MOST_BYTES, MOST_STAMPS, Sessions
from lowmem_wsgi.guards.signed_cookie import SKEW, BadEnvelope, derive, seal, stamp, unseal

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    Headers = list[tuple[str, str]]

NOW = 1_700_000_000
LIFETIME = 600
NAMES = ("session", "sessionid")
KEY = derive(b"the key of these tests")
OTHER_KEY = derive(b"somebody else's")
EPOCH = "Thu, 01 Jan 1970 00:00:00 GMT"

# How long an example takes says more about the machine than about us.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass
class Clock:
    now: float = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def rule(
    clock: Callable[[], float] = lambda: NOW, keys: Sequence[bytes] = (KEY,), **options: Any
) -> Sessions:
    return Sessions(NAMES, LIFETIME, lambda: keys, clock=clock, **options)


def sealed(
    value: str,
    name: str = "session",
    *,
    attributes: str = "",
    age: int = 0,
    end: int | None = None,
) -> str:
    return seal(name, value, attributes, KEY, NOW - age, end)


def stamped(envelope: str, *, name: str = "session", age: int = 0, key: bytes = KEY) -> str:
    """The stamp's cookie for an envelope that was used `age` seconds ago."""
    return f"{name}.lowmem={stamp(name, envelope, key, NOW - age)}"


def opened(header: str, sessions: Sessions | None = None) -> str | None:
    """The Cookie header that the app gets, where the client sends `header`."""
    environ = {"HTTP_COOKIE": header}
    (sessions or rule()).enter(environ)
    return environ.get("HTTP_COOKIE")


def answered(sessions: Sessions, headers: Headers, *, cookie: str = "", path: str = "/") -> Headers:
    """The headers that the client gets, where the app answers with `headers`."""
    environ = {"PATH_INFO": path, "HTTP_COOKIE": cookie}
    sessions.enter(environ)
    return sessions.amend(environ, "200 OK", headers)


def set_cookies(headers: Iterable[tuple[str, str]]) -> list[str]:
    return [value for name, value in headers if name.lower() == "set-cookie"]


def amended(header: str, path: str = "/") -> str:
    """A Set-Cookie header of the app, as the client gets it."""
    (result,) = set_cookies(answered(rule(), [("Set-Cookie", header)], path=path))
    return result


def pair(header: str) -> str:
    """The name and value of a Set-Cookie header, as a browser sends them back."""
    return header.partition(";")[0].strip(" \t")


def attributes_of(header: str) -> list[str]:
    return [part.strip() for part in header.split(";")[1:]]


# --- Whole apps behind the guard alone


class Site:
    """An app behind the guard, and behind nothing else of ours."""

    def __init__(self, app: WSGIApplication, clock: Clock, **options: Any) -> None:
        self.app = app
        self.sessions = rule(clock, **options)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: Headers, exc_info: Any = None) -> Any:
            return start_response(status, self.sessions.amend(environ, "200 OK", headers), exc_info)

        self.sessions.enter(environ)
        return self.app(environ, start)


def get(app: WSGIApplication, path: str, cookie: str = "") -> TestResponse:
    headers = {"Cookie": cookie} if cookie else {}
    response = Client(app, use_cookies=False).get(path, headers=headers)
    assert response.status_code == 200
    return response


def user(app: WSGIApplication, cookie: str) -> str | None:
    """Who the app takes the sender of this Cookie header for."""
    name = get(app, "/who", cookie).get_json()["user"]
    assert name is None or isinstance(name, str)
    return name


def with_stamps(cookie: str, headers: Iterable[str]) -> str:
    """The Cookie header of a browser that got these Set-Cookie headers, session cookie first."""
    kept = dict(part.split("=", 1) for part in cookie.split("; "))
    kept |= dict(pair(header).split("=", 1) for header in headers)
    return "; ".join("=".join(part) for part in kept.items())


def login(app: WSGIApplication) -> str:
    """The Set-Cookie header of Ana's login."""
    (header,) = get(app, "/login?ana").headers.getlist("Set-Cookie")
    return header


def inside(cookie: str) -> str:
    """What the app had put in a cookie, as an attacker can read it in the envelope."""
    name, _, envelope = cookie.partition("=")
    return f"{name}={unseal(name, envelope, [KEY], NOW, float('inf')).value}"


@pytest.fixture(params=["flask_session", "django_session", "bottle_session"], scope="module")
def app(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> WSGIApplication:
    """Each framework's app, as its author wrote it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SESSION_DIR", str(tmp_path_factory.mktemp("sessions")))
        bare: WSGIApplication = importlib.import_module(f"apps.{request.param}").bare
        return bare


def test_a_session_dies_when_its_lifetime_has_passed(app: WSGIApplication, clock: Clock) -> None:
    site = Site(app, clock)
    cookie = pair(login(site))
    clock.now += LIFETIME - 1
    assert user(site, cookie) == "ana"
    clock.now += 1
    assert user(site, cookie) is None


def test_without_the_guard_the_bare_value_is_a_session(app: WSGIApplication, clock: Clock) -> None:
    """Else the tests that it is none behind the guard would show nothing."""
    assert user(app, inside(pair(login(Site(app, clock))))) == "ana"


# `bare` is the app's own cookie, name and value; the names of others are the attacker's choice.
DISGUISES = {
    "as it is": "{bare}",
    "among others": "x=1; {bare}; y=2",
    "after white space in a value": "x=1 {bare}",
    "after a tab in a value": "x=1\t{bare}",
    "after a vertical tab": "x=1\x0b{bare}",
    "in another's quotes": 'a="x; {bare}"',
    "after another's quotes": 'a="b; c" {bare}',
    "after a comma": "x=1,{bare}",
    "after a comma and a space": "x=1, {bare}",
    "after a semicolon too many": ";;{bare}",
    "after no name": "={bare}",
    "after a $ word": "$x {bare}",
    "after a flag": "x=1; secure {bare}",
    "after a flag and a tab": "x=1; httponly\t{bare}",
    "after a no-break space": "\xa0{bare}",
    "after a no-break space in UTF-8": "\xc2\xa0{bare}",
    "after an em space in UTF-8": "\xe2\x80\x83{bare}",
    "after a separator control": "\x1c{bare}",
    "after a next-line control in UTF-8": "\xc2\x85{bare}",
    "before its equals sign, a space": "{name} ={value}",
    "before its equals sign, a no-break space in UTF-8": "{name}\xc2\xa0={value}",
    "after its equals sign, a space": "{name}= {value}",
    "after the session's own cookie": "{cookie}; {bare}",
    "before the session's own cookie": "{bare}; {cookie}",
}


@pytest.mark.parametrize("disguise", DISGUISES.values(), ids=DISGUISES)
def test_a_dead_session_is_not_revived_by_its_bare_value(
    app: WSGIApplication, clock: Clock, disguise: str
) -> None:
    site = Site(app, clock)
    cookie = pair(login(site))
    bare = inside(cookie)
    name, _, value = bare.partition("=")
    clock.now += LIFETIME
    header = disguise.format(bare=bare, name=name, value=value, cookie=cookie)
    assert user(site, header) is None
    assert user(site, cookie) is None


def test_a_session_in_use_outlives_its_lifetime(app: WSGIApplication, clock: Clock) -> None:
    site = Site(app, clock)
    first = header = login(site)
    cookie = pair(first)
    name = cookie.partition("=")[0]
    for _ in range(6):  # two lifetimes
        clock.now += LIFETIME / 3
        reply = get(site, "/who", cookie)
        assert reply.get_json()["user"] == "ana"
        (header,) = reply.headers.getlist("Set-Cookie")
        assert pair(header).partition("=")[0] == f"{name}.lowmem"
        cookie = with_stamps(cookie, [header])
    # The stamp goes wherever the session goes; its end is its own.
    ends = ("expires", "max-age")
    kept = [part for part in attributes_of(first) if not part.lower().startswith(ends)]
    again = [part for part in attributes_of(header) if not part.lower().startswith(ends)]
    assert again == (kept if "Path=/" in kept else [*kept, "Path=/"])
    clock.now += LIFETIME
    assert user(site, cookie) is None


def test_a_session_that_does_not_slide_dies_in_use(app: WSGIApplication, clock: Clock) -> None:
    site = Site(app, clock, sliding=False)
    cookie = pair(login(site))
    for _ in range(2):
        clock.now += LIFETIME / 3
        reply = get(site, "/who", cookie)
        assert reply.get_json()["user"] == "ana"
        assert "Set-Cookie" not in reply.headers
    clock.now += LIFETIME / 3
    assert user(site, cookie) is None
    name, _, envelope = cookie.partition("=")
    of_before = f"{name}.lowmem={stamp(name, envelope, KEY, int(clock.now))}"
    assert user(site, f"{cookie}; {of_before}") is None


def test_an_envelope_changed_in_any_one_character_is_no_session(
    app: WSGIApplication, clock: Clock
) -> None:
    site = Site(app, clock)
    name, _, envelope = pair(login(site)).partition("=")
    for at, character in enumerate(envelope):
        other = "A" if character != "A" else "B"
        changed = f"{name}={envelope[:at]}{other}{envelope[at + 1 :]}"
        assert user(site, changed) is None, f"character {at} of {envelope}"


def test_logging_out_passes_untouched(app: WSGIApplication, clock: Clock) -> None:
    site = Site(app, clock)
    cookie = pair(login(site))
    sent = get(site, "/logout", cookie).headers.getlist("Set-Cookie")
    assert sent == get(app, "/logout", inside(cookie)).headers.getlist("Set-Cookie")
    assert len(sent) == 1


def test_logging_out_ends_a_session_that_slid_on_a_page_of_another_folder(clock: Clock) -> None:
    """Without a Path a cookie belongs to the folder of the page that set it, so a renewal from
    another folder must not leave the browser with two of them."""
    browser = Client(Site(importlib.import_module("apps.bottle_session").bare, clock))
    browser.get("/account/login?ana")
    clock.now += LIFETIME / 2
    assert browser.get("/account/orders/who").get_json()["user"] == "ana"
    browser.get("/account/logout")
    assert browser.get("/account/orders/who").get_json()["user"] is None


# --- The envelope

octets = st.text(st.characters(codec="latin-1"))
tokens = st.from_regex(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", fullmatch=True)


@patient
@given(
    name=tokens, value=octets, attributes=octets, now=st.integers(0, 2**40), age=st.integers(0, 9)
)
def test_an_envelope_gives_back_what_was_put_in(
    name: str, value: str, attributes: str, now: int, age: int
) -> None:
    session = unseal(name, seal(name, value, attributes, KEY, now), [KEY], now + age, 10)
    assert (session.value, session.attributes, session.used_at) == (value, attributes, now)


@patient
@given(value=octets, attributes=octets)
def test_an_envelope_is_made_of_characters_that_cookies_may_have(
    value: str, attributes: str
) -> None:
    cookie_octets = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]+")  # RFC 6265 §4.1.1
    assert cookie_octets.fullmatch(seal("session", value, attributes, KEY, NOW))


def test_a_character_that_no_header_has_does_not_stand_for_another() -> None:
    """Characters outside of Latin-1 once counted as a question mark when the MAC was checked."""
    envelope = seal("session", "a?b", "", KEY, NOW)
    with pytest.raises(BadEnvelope, match="forged"):
        unseal("session", envelope.replace("?", "€"), [KEY], NOW, LIFETIME)


def test_an_envelope_holds_while_the_clocks_differ_by_the_skew_allowed() -> None:
    assert unseal("session", sealed("ana", age=-SKEW), [KEY], NOW, LIFETIME).value == "ana"


BAD = {
    "bare": ("ana", "unsigned"),
    "empty": ("", "unsigned"),
    "of another version": (sealed("ana").replace("lm2", "lm1"), "unsigned"),
    "of a version alone": ("lm2", "forged"),
    "of dots alone": ("lm2.....", "forged"),
    "without a signature": ("lm2.." + sealed("ana").split(".", 2)[2], "forged"),
    "of an unknown key": (seal("session", "ana", "", OTHER_KEY, NOW), "forged"),
    "of the raw secret": (seal("session", "ana", "", b"the key of these tests", NOW), "forged"),
    "of another cookie": (sealed("ana", "sessionid"), "forged"),
    "from the future": (sealed("ana", age=-SKEW - 1), "future"),
    "as old as its lifetime": (sealed("ana", age=LIFETIME), "expired"),
    "older than its lifetime": (sealed("ana", age=LIFETIME + 1), "expired"),
    "with a letter that is not ASCII": (sealed("ana") + "\xe9", "forged"),
    "followed by a word": (sealed("ana") + " ana", "forged"),
    "in quotes": (f'"{sealed("ana")}"', "unsigned"),
}


@pytest.mark.parametrize(("envelope", "reason"), BAD.values(), ids=BAD)
def test_a_cookie_that_does_not_open_is_taken_out_counted_and_logged(
    envelope: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    counted: list[str] = []
    sessions = rule(count=counted.append)
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/orders",
        "HTTP_COOKIE": f"a=1; session={envelope}; b=2",
    }
    sessions.enter(environ)
    assert environ["HTTP_COOKIE"] == "a=1; b=2"
    assert counted == ["sessions_expired"]
    (line,) = caplog.messages
    assert "GET /orders: cookie session is " + reason in line
    assert "LOWMEM_SESSION_LIFETIME" in line


def test_an_envelope_cut_off_anywhere_does_not_open() -> None:
    envelope = sealed("ana", attributes="Path=/")
    for length in range(len(envelope)):
        assert opened(f"session={envelope[:length]}") is None, envelope[:length]


@pytest.mark.parametrize("value", ["ana", 'a "quoted" one'], ids=["plain", "encoded"])
def test_an_envelope_with_any_one_character_changed_does_not_open(value: str) -> None:
    envelope = sealed(value, attributes="Path=/; HttpOnly")
    for at, character in enumerate(envelope):
        for other in {"A", "0", "_", ".", "=", "\xff"} - {character}:
            changed = envelope[:at] + other + envelope[at + 1 :]
            with pytest.raises(BadEnvelope):
                unseal("session", changed, [KEY], NOW, LIFETIME)


# --- The request's cookies

OTHERS = [
    "theme=dark",
    'quoted="a, b and \\"c\\""',
    "equals=a=b=",
    "empty=",
    "flag",
    "Session=another case",
    "my-session=another name",
    "next=session=5",
    "link=/search?session=1",
    "city=Orl\xc3\xa9ans",
    "caf\xc3\xa9=voil\xc3\xa0",  # à ends in a byte that is white space in Latin-1 alone
    "\xc3\x85=\xc3\x85",
]


@pytest.mark.parametrize("other", OTHERS)
def test_another_cookie_beside_a_session_keeps_every_byte(other: str) -> None:
    header = f"{other}; session={sealed('ana')}; {other}"
    assert opened(header) == f"{other}; session=ana; {other}"


def test_a_header_without_a_session_is_not_touched_at_all() -> None:
    header = " a=1 ;b = 2;; c\t;session_of_mine=3 "
    environ = {"HTTP_COOKIE": header}
    rule(keys=()).enter(environ)
    assert environ == {"HTTP_COOKIE": header}


def test_several_sessions_in_one_request_and_its_response() -> None:
    a = sealed("a", attributes="Path=/", age=100)
    b = sealed("b", "sessionid", attributes="Path=/", age=100)
    environ = {"PATH_INFO": "/", "HTTP_COOKIE": f"session={a}; x=1; sessionid={b}"}
    sessions = rule()
    sessions.enter(environ)
    assert environ["HTTP_COOKIE"] == "session=a; x=1; sessionid=b"
    headers = sessions.amend(environ, "200 OK", [("Set-Cookie", "sessionid=c; Path=/")])
    # The one that the app has set gets no stamp; the other does.
    assert [pair(header) for header in set_cookies(headers)] == [
        f"sessionid={sealed('c', 'sessionid', attributes='Path=/')}",
        stamped(a),
    ]


def test_two_sessions_of_one_name_reach_the_app_in_their_order() -> None:
    """A browser sends both where their Paths differ; which of them counts is the app's to say."""
    assert opened(f"session={sealed('a')}; session={sealed('b')}") == "session=a; session=b"


def test_one_of_two_sessions_can_end_alone() -> None:
    good, bad = sealed("a"), sealed("b", "sessionid", age=LIFETIME)
    assert opened(f"session={good}; sessionid={bad}") == "session=a"


def test_a_request_whose_only_cookie_does_not_open_has_no_cookie_header() -> None:
    environ: dict[str, Any] = {"HTTP_COOKIE": "session=bare"}
    rule().enter(environ)
    assert environ == {}


def by_flask(environ: WSGIEnvironment) -> list[tuple[str, str]]:
    return list(Request(environ).cookies.items(multi=True))


def by_werkzeug(environ: WSGIEnvironment) -> list[tuple[str, str]]:
    return list(parse_as_werkzeug(environ).items(multi=True))


def by_django(environ: WSGIEnvironment) -> list[tuple[str, str]]:
    return list(parse_as_django(get_str_from_wsgi(environ, "HTTP_COOKIE", "")).items())


def by_bottle(environ: WSGIEnvironment) -> list[tuple[str, str]]:
    return list(bottle.BaseRequest(dict(environ)).cookies.allitems())


READERS = (by_flask, by_werkzeug, by_django, by_bottle)

# Cookie headers that lean towards what could carry a session past the guard: cookies between
# pieces that one parser or another takes for the end of a cookie, or for nothing.
GAPS = ["", " ", "\t", "\n", "\x0b", "\x1c", ",", '"', "\xc2\x85", "\xc2\xa0", "\xe2\x80\x83"]
PIECES = [*GAPS, "a=1", 'a="1"', "$x", "secure", "httponly", "path", "=", ";", "\\", "\x00"]
LATIN_1 = ["\x85", "\xa0", "\xff"]  # pieces that are not UTF-8


def headers_of(pieces: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    some = st.lists(pieces, max_size=3).map("".join)
    bare = st.tuples(
        *(st.sampled_from(words) for words in ([*NAMES, "Session"], GAPS, ["="], GAPS, ["bare"]))
    ).map("".join)
    honest = st.sampled_from([f"{name}={sealed('sealed', name)}" for name in NAMES])
    parts = st.tuples(some, bare | honest | pieces, some).map("".join)
    return st.lists(parts, max_size=4).map(";".join)


utf8 = st.text().map(lambda text: text.encode().decode("latin-1"))
readable_headers = headers_of(st.sampled_from(PIECES) | utf8)
cookie_headers = octets | headers_of(st.sampled_from([*PIECES, *LATIN_1]) | octets)


@settings(patient, max_examples=1000)
@given(header=cookie_headers)
def test_no_framework_sees_a_session_that_was_not_sealed(header: str) -> None:
    environ = {"HTTP_COOKIE": header}
    rule().enter(environ)
    for read in READERS:
        try:
            cookies = read(environ)
        except (CookieError, UnicodeDecodeError):
            continue  # so the app sees none
        assert {value for name, value in cookies if name in NAMES} <= {"sealed"}, read.__name__


@settings(patient, max_examples=500)
@given(header=readable_headers)
def test_no_request_becomes_unreadable(header: str) -> None:
    environ = {"HTTP_COOKIE": header}
    by_werkzeug(environ)
    rule().enter(environ)
    by_werkzeug(environ)  # raises for what is not UTF-8


other_cookies = st.tuples(
    tokens.filter(lambda name: name not in NAMES),
    octets.map(lambda text: text.replace(";", "").strip(" \t")).filter(
        lambda t: "session" not in t
    ),
).map("=".join)


@patient
@given(before=st.lists(other_cookies, max_size=3), after=st.lists(other_cookies, max_size=3))
def test_any_other_cookies_keep_their_bytes_and_order(before: list[str], after: list[str]) -> None:
    header = "; ".join([*before, f"session={sealed('ana')}", *after])
    assert opened(header) == "; ".join([*before, "session=ana", *after])


# --- The response's cookies


DAY = formatdate(NOW + 86400, usegmt=True)


@pytest.mark.parametrize(
    ("given", "stamps"),
    [
        ("Path=/",) * 2,
        ("Path=/shop; HttpOnly; Secure; SameSite=Lax",) * 2,
        ("httponly; PATH=/; samesite=none",) * 2,
        ("Domain=shop.test; Path=/; Priority=High; Partitioned",) * 2,
        ("Path=/caf\xc3\xa0",) * 2,
        ("HttpOnly", "HttpOnly; Path=/folder"),
        ("Path=", "Path; Path=/folder"),
        ("Max-Age=86400; Path=/", "Path=/; Max-Age=600"),
        ("Path=/; max-age=99999999999", "Path=/; Max-Age=600"),
        ("Max-Age=650; Path=/", "Path=/; Max-Age=550"),  # 100 s later
        (f"Expires={DAY}; Path=/", "Path=/; Max-Age=600"),
        # Max-Age has the last word, and the last of several.
        (f"Path=/; expires={DAY}; Max-Age=650", "Path=/; Max-Age=550"),
        ("Max-Age=5; Path=/; Max-Age=86400", "Path=/; Max-Age=600"),
        # What browsers ignore (RFC 6265 §5.2.2) says nothing.
        ("Max-Age=soon; Path=/", "Path=/"),
        ("Expires=once in a blue moon; Path=/", "Path=/"),
    ],
)  # fmt: skip
def test_attributes_are_kept_as_they_are_and_the_stamp_has_the_same(
    given: str, stamps: str
) -> None:
    header = amended(f"session=ana; {given}", path="/folder/page")
    assert header.partition("; ")[2] == given
    assert opened(pair(header)) == "session=ana"
    later = Clock(NOW + 100)
    headers = answered(rule(later), [], cookie=pair(header), path="/other")
    (again,) = set_cookies(headers)
    assert again.partition("; ")[2] == stamps
    assert again.startswith("session.lowmem=lm2.")


@pytest.mark.parametrize(
    ("attributes", "seconds"),
    [
        ("Max-Age=60", 60),
        ("Max-Age=600", 600),
        (f"Expires={formatdate(NOW + 60, usegmt=True)}", 60),
        (f"Max-Age=60; Expires={DAY}", 60),
        ("Max-Age=60; Expires=once in a blue moon", 60),
    ],
)
def test_an_end_that_the_app_set_within_the_lifetime_does_not_move(
    attributes: str, seconds: int, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    counted: list[str] = []
    sessions = rule(clock, count=counted.append)
    (header,) = set_cookies(answered(sessions, [("Set-Cookie", f"session=ana; {attributes}")]))
    clock.now += seconds - 1
    assert answered(sessions, [], cookie=pair(header)) == []  # no stamp: it would change nothing
    assert opened(pair(header), sessions) == "session=ana"
    envelope = pair(header).partition("=")[2]
    stamps = f"session.lowmem={stamp('session', envelope, KEY, int(clock.now))}"
    clock.now += 1
    assert opened(f"{pair(header)}; {stamps}", sessions) is None
    assert counted == ["sessions_expired"]
    (line,) = caplog.messages
    assert "cookie session is past the end that the app gave it" in line


def test_an_end_that_the_app_set_beyond_the_lifetime_comes_in_spite_of_use() -> None:
    clock = Clock()
    sessions = rule(clock)
    (header,) = set_cookies(answered(sessions, [("Set-Cookie", "session=ana; Max-Age=1500")]))
    cookie = pair(header)
    headers = [header]
    for _ in range(14):
        clock.now += 100
        headers = set_cookies(answered(sessions, [], cookie=cookie))
        assert opened(cookie, sessions) == "session=ana"
        cookie = with_stamps(cookie, headers)
    assert headers == []  # the last stamps had made it last until the app's end
    clock.now += 99
    assert opened(cookie, sessions) == "session=ana"
    clock.now += 1
    assert opened(cookie, sessions) is None


@pytest.mark.parametrize(
    "deletion",
    [
        "Max-Age=0",
        "Max-Age=-1; Path=/",
        "Path=/;max-age=-99",
        f"Expires={EPOCH}; Path=/",
        f"expires={EPOCH}; Max-Age=0; Path=/; HttpOnly",
        "Expires=Thu, 01-Jan-1970 00:00:00 GMT",
        "Expires=Thu, 01-Jan-70 00:00:00 GMT",
        f"Expires={formatdate(NOW - 1, usegmt=True)}",
        f"Max-Age=0; Expires={formatdate(NOW + 60, usegmt=True)}",  # Max-Age has the last word
    ],
)
@pytest.mark.parametrize("value", ["", '""', "deleted"])
def test_a_deletion_passes_untouched_and_is_not_followed_by_a_renewal(
    value: str, deletion: str
) -> None:
    headers = [("Set-Cookie", f"session={value};{deletion}")]
    cookie = f"session={sealed('ana', age=LIFETIME - 1)}"
    assert answered(rule(), headers, cookie=cookie) == headers
    # A stamp that the browser has is deleted in the same way.
    both = f"{cookie}; session.lowmem=x"
    stamps = [("Set-Cookie", f"session.lowmem=;{deletion}")]
    assert answered(rule(), headers, cookie=both) == headers + stamps


def test_a_future_max_age_is_no_deletion_whatever_expires_says() -> None:
    assert opened(pair(amended(f"session=ana; Max-Age=60; Expires={EPOCH}"))) == "session=ana"


def test_headers_keep_their_order_and_all_but_sessions_their_bytes() -> None:
    headers = [
        ("Content-Type", "text/plain"),
        ("set-cookie", "a=1;Max-Age=9999999 ;  Path=/"),
        ("SET-COOKIE", "session=ana; Path=/"),
        ("X-Session", "session=ana"),
        ("Set-Cookie", "Session=other case"),
        ("Set-Cookie", "sessionid=ben; Path=/"),
        ("Set-Cookie", "z= spaced ; Expires=never"),
    ]
    sent = answered(rule(), headers)
    assert [name for name, _ in sent] == [name for name, _ in headers]
    changed = [ours for ours, theirs in zip(sent, headers, strict=True) if ours != theirs]
    assert [name for name, _ in changed] == ["SET-COOKIE", "Set-Cookie"]
    assert [opened(pair(value)) for _, value in changed] == ["session=ana", "sessionid=ben"]


@pytest.mark.parametrize("value", ["", "ana", '"a b"', "caf\xc3\xa0", "a=b=", "a,b", "\x80"])
def test_the_app_gets_its_own_value_back(value: str) -> None:
    assert opened(pair(amended(f"session={value}; Path=/"))) == f"session={value}"


@pytest.mark.parametrize(("over", "lines"), [(0, 0), (1, 1)], ids=["just fits", "one too many"])
def test_a_cookie_that_outgrows_its_limit_is_an_error_that_names_it(
    over: int, lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    room = MOST_BYTES - len("sessionid=") - len(sealed("", "sessionid", attributes="Path=/"))
    value = "x" * (room + over)
    header = amended(f"sessionid={value}; Path=/")
    assert opened(pair(header)) == f"sessionid={value}"  # it is sent all the same
    assert len(caplog.records) == lines
    for record in caplog.records:
        assert record.levelno == logging.ERROR
        assert f"Cookie sessionid is {MOST_BYTES + over} bytes" in record.getMessage()


dates = st.integers(-(2**34), 2**34).map(lambda at: formatdate(at, usegmt=True)) | octets
set_cookie_attributes = st.one_of(
    octets,
    st.sampled_from(
        ["Path=/", "HttpOnly", "Secure", "Domain=shop.test", "SameSite=Lax", "=", "=x"]
    ),
    st.integers().map(lambda seconds: f"Max-Age={seconds}"),
    st.tuples(st.sampled_from(["Expires=", "expires = "]), dates).map("".join),
)
set_cookie_headers = octets | st.tuples(
    st.sampled_from([*NAMES, " session ", "Session", ""]),
    octets,
    st.lists(set_cookie_attributes).map("; ".join),
).map(lambda parts: f"{parts[0]}={parts[1]}; {parts[2]}")


@patient
@given(header=set_cookie_headers)
def test_any_set_cookie_header_is_sealed_or_left_alone(header: str) -> None:
    sent = amended(header)
    name, _, value = (text.strip(" \t") for text in pair(header).partition("="))
    assert sent.partition(";")[1:] == header.partition(";")[1:]
    if name not in NAMES:
        assert sent == header
    elif sent != header:
        assert opened(pair(sent)) == f"{name}={value}"


# --- Stamps

ENVELOPE = sealed("ana", attributes="Path=/;HttpOnly", age=100)
USED = f"session={ENVELOPE}"


@pytest.mark.parametrize(
    ("age", "renewed"), [(0, 0), (59, 0), (60, 1), (LIFETIME - 1, 1), (LIFETIME, 0)]
)
def test_a_session_gets_a_stamp_when_a_tenth_of_its_lifetime_has_passed_since_the_last(
    age: int, renewed: int
) -> None:
    cookie = f"session={sealed('ana', attributes='Path=/', age=age)}"
    assert len(set_cookies(answered(rule(), [], cookie=cookie))) == renewed
    old = sealed("ana", attributes="Path=/", age=5000)
    cookie = f"session={old}; {stamped(old, age=age)}"
    assert len(set_cookies(answered(rule(), [], cookie=cookie))) == renewed


@pytest.mark.parametrize(("seconds", "renewed"), [(60, 1), (61, 0)])
def test_a_response_slower_than_a_tenth_of_the_lifetime_carries_no_stamp(
    seconds: int, renewed: int
) -> None:
    """The browser may have a newer session by then, whose stamp the late one would replace."""
    clock = Clock()
    sessions = rule(clock)
    environ = {"PATH_INFO": "/", "HTTP_COOKIE": USED}
    sessions.enter(environ)
    clock.now += seconds
    assert len(set_cookies(sessions.amend(environ, "200 OK", []))) == renewed


OLD = sealed("ana", attributes="Path=/", age=5000)
STAMPS = {
    "none": ("", None),
    "of the last second": (stamped(OLD, age=LIFETIME - 1), "session=ana"),
    "as old as the lifetime": (stamped(OLD, age=LIFETIME), None),
    "of a clock that is ahead": (stamped(OLD, age=-SKEW), "session=ana"),
    "from the future": (stamped(OLD, age=-SKEW - 1), None),
    "of an unknown key": (stamped(OLD, key=OTHER_KEY), None),
    "of another envelope": (stamped(sealed("ben", age=5000)), None),
    "of the same session, set anew": (stamped(sealed("ana", attributes="Path=/")), None),
    "of another cookie": (
        stamped(OLD, name="sessionid").replace("sessionid", "session"),
        None,
    ),
    "of another cookie, by its name": (stamped(OLD, name="sessionid"), None),
    "the envelope itself": (f"session.lowmem={OLD}", None),
    "of dots": ("session.lowmem=lm2...", None),
    "empty": ("session.lowmem=", None),
    "no value": ("session.lowmem", None),
    "not ASCII": ("session.lowmem=lm2.\xe9.\xe9", None),
    "a long time": (f"session.lowmem=lm2.x.{'f' * 500}", None),
    "several, one of them good": (
        f"session.lowmem=lm2.x.0; {stamped(OLD, age=9)}; {stamped(OLD, age=LIFETIME)}",
        "session=ana",
    ),
    "too many": ("session.lowmem=x; " * MOST_STAMPS + stamped(OLD), None),
    "in disguise": (f"a=1 {stamped(OLD)}", None),
}


@pytest.mark.parametrize(("stamps", "seen"), STAMPS.values(), ids=STAMPS)
def test_an_old_envelope_opens_with_a_stamp_of_its_own_and_the_app_sees_no_stamp(
    stamps: str, seen: str | None
) -> None:
    for header in (f"session={OLD}; {stamps}", f"{stamps}; session={OLD}"):
        assert opened(header) == seen, header
    assert opened(f"session=bare; {stamps}; a=2") == "a=2"
    # Whatever stamps come along, a session within its lifetime is one.
    assert opened(f"{stamps}; {USED}") == "session=ana"


def test_a_stamp_changed_in_any_one_character_is_none() -> None:
    name, _, value = stamped(OLD).partition("=")
    for at, character in enumerate(value):
        for other in {"A", "0", "_", ".", "=", "\xff"} - {character}:
            changed = f"{name}={value[:at]}{other}{value[at + 1 :]}"
            assert opened(f"session={OLD}; {changed}") is None, changed


def test_no_stamp_opens_an_envelope_with_any_one_character_changed() -> None:
    for at, character in enumerate(OLD):
        changed = OLD[:at] + ("A" if character != "A" else "B") + OLD[at + 1 :]
        assert opened(f"session={changed}; {stamped(OLD)}") is None, changed


def test_sessions_of_two_paths_each_have_their_stamp() -> None:
    a, b = sealed("a", attributes="Path=/a", age=5000), sealed("b", attributes="Path=/", age=5000)
    stamps = f"{stamped(a, age=100)}; {stamped(b, age=100)}"
    header = f"session={a}; session={b}; {stamps}"
    assert opened(header) == "session=a; session=b"
    (of_a, of_b) = set_cookies(answered(rule(), [], cookie=header))
    assert (of_a, of_b) == (f"{stamped(a)}; Path=/a", f"{stamped(b)}; Path=/")


def test_a_stamp_is_named_like_its_session_so_that_browsers_keep_their_word_on_prefixes() -> None:
    sessions = Sessions(["__Host-id"], LIFETIME, lambda: [KEY], clock=Clock())
    envelope = seal("__Host-id", "ana", "Path=/;Secure", KEY, NOW - 100)
    (header,) = set_cookies(answered(sessions, [], cookie=f"__Host-id={envelope}"))
    assert header == f"{stamped(envelope, name='__Host-id')}; Path=/; Secure"


def test_a_stamp_tells_caches_that_the_response_depends_on_the_cookie() -> None:
    headers = answered(rule(), [("Content-Type", "text/plain")], cookie=USED)
    assert headers == [
        ("Content-Type", "text/plain"),
        ("Set-Cookie", f"{stamped(ENVELOPE)}; Path=/; HttpOnly"),
        ("Vary", "Cookie"),
    ]


@pytest.mark.parametrize(
    "policy",
    ["public", "Public, Max-Age=60", "max-age=60", "s-maxage=60", "public, no-cache"],
)
def test_a_stamp_is_not_sent_where_a_shared_cache_may_keep_it(policy: str) -> None:
    headers = [("Cache-Control", policy)]
    assert answered(rule(), headers, cookie=USED) == headers


@pytest.mark.parametrize("policy", ["private", "private, max-age=60", "no-store", "no-cache"])
def test_a_stamp_is_sent_where_no_shared_cache_may_keep_it(policy: str) -> None:
    headers = [("cache-control", policy)]
    assert len(set_cookies(answered(rule(), headers, cookie=USED))) == 1


@pytest.mark.parametrize(
    ("path", "renewed"),
    [("/assets/a.css", 0), ("/assets/", 0), ("/assets", 1), ("/static/a.css", 1)],
)
def test_a_stamp_is_not_sent_with_a_static_file(path: str, renewed: int) -> None:
    sessions = rule(static_prefix="/assets/")
    assert len(set_cookies(answered(sessions, [], cookie=USED, path=path))) == renewed


def test_a_session_that_the_app_sets_is_not_sent_twice() -> None:
    headers = answered(rule(), [("Set-Cookie", "session=ben; Path=/")], cookie=USED)
    (header,) = set_cookies(headers)
    assert opened(pair(header)) == "session=ben"


# --- Keys


def test_after_a_rotation_the_old_key_opens_and_the_new_one_seals() -> None:
    old, new = derive(b"old"), derive(b"new")
    cookie = f"session={seal('session', 'ana', 'Path=/', old, NOW - 100)}"
    rotated, done = rule(keys=(old, new)), rule(keys=(new,))
    assert opened(cookie, rotated) == "session=ana"
    assert opened(cookie, done) is None
    # Set by the app:
    headers = [("Set-Cookie", "session=ana; Path=/")]
    (header,) = set_cookies(answered(rotated, headers, cookie=cookie))
    assert opened(pair(header), done) == "session=ana"
    assert opened(pair(header), rule(keys=(old,))) is None
    # And in use: a stamp by the new key vouches for an envelope by the old one.
    (header,) = set_cookies(answered(rotated, [], cookie=cookie))
    assert opened(f"{cookie}; {pair(header)}", done) == "session=ana"
    assert opened(f"{cookie.replace('pana', 'pben')}; {pair(header)}", done) is None


def test_keys_are_asked_for_again_now_and_then_where_sessions_come() -> None:
    clock, asked = Clock(), []

    def find_keys() -> list[bytes]:
        asked.append(clock.now)
        return [KEY]

    sessions = Sessions(NAMES, LIFETIME, find_keys, clock=clock)
    cookie = f"session={sealed('ana')}"
    for seconds in (0, 1, FIND_KEYS_EVERY - 2, 1, 1, FIND_KEYS_EVERY - 2):
        clock.now += seconds
        opened(cookie, sessions)
        opened("theme=dark", sessions)
    assert asked == [NOW, NOW + FIND_KEYS_EVERY]


def test_without_a_key_sessions_pass_untouched() -> None:
    sessions = rule(keys=())
    assert opened("session=bare; a=1", sessions) == "session=bare; a=1"
    headers = [("Set-Cookie", "session=ana; Max-Age=99999")]
    assert answered(sessions, headers, cookie="session=bare") == headers


def test_a_site_without_sessions_is_not_asked_for_a_key() -> None:
    """Finding one may make a directory, and warn of it."""
    sessions = Sessions(NAMES, LIFETIME, lambda: pytest.fail("asked for a key"))
    headers = [("Set-Cookie", "theme=dark; Path=/")]
    assert answered(sessions, headers, cookie="theme=light") == headers


def test_threads_that_meet_at_the_first_session_find_the_keys_once() -> None:
    together = threading.Barrier(8)
    calls: list[int] = []
    all_in = threading.Event()

    def find_keys() -> list[bytes]:
        calls.append(1)
        if len(calls) == 8:
            all_in.set()
        all_in.wait(0.2)  # for the seven others, who must not come
        return [KEY]

    sessions = Sessions(NAMES, LIFETIME, find_keys, clock=Clock())
    seen: list[str | None] = []

    def first_request() -> None:
        together.wait()
        seen.append(opened(f"session={sealed('ana')}", sessions))

    threads = [threading.Thread(target=first_request) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["session=ana"] * 8
    assert len(calls) == 1


@pytest.mark.filterwarnings("ignore:'cgi' is deprecated:DeprecationWarning")
def test_no_byte_before_the_name_hides_a_session_from_us_and_not_from_webob() -> None:
    """WebOb (Pyramid) begins a name wherever a letter of one can stand."""
    cookies = pytest.importorskip("webob.cookies", reason="webob does not run on this Python")
    for byte in map(chr, range(1, 256)):
        if byte in ";\r\n":
            continue
        environ = {"HTTP_COOKIE": f"x{byte}session=bare", "PATH_INFO": "/", "REQUEST_METHOD": "GET"}
        rule().enter(environ)
        assert "session" not in cookies.RequestCookies(environ), repr(byte)
