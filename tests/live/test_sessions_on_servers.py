"""Sessions on real servers: frameworks unmodified, several workers, workers that are replaced.

Lifetimes are a few seconds here, and counted in whole ones: a session may end up to a second
early. What needs no server is in test_sessions.py.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from helpers.servers import Reply, Server, serve, wait_for
from lowmem_wsgi.guards.signed_cookie import derive, unseal

LIFETIME = 3
SECRET = "the key of these tests"
OLD = "the key before that one"
WARNING = "Sessions are signed with a key kept in"


class Visitor:
    """A browser: it keeps the cookies it is sent, and sends them back."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.cookies: dict[str, str] = {}

    @property
    def header(self) -> str:
        return "; ".join("=".join(pair) for pair in self.cookies.items())

    def get(self, path: str) -> Reply:
        reply = send(self.server, path, self.header)
        for cookie in set_cookies(reply):
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
        return reply


def send(server: Server, path: str, cookie: str) -> Reply:
    reply = server.get(path, **({"Cookie": cookie} if cookie else {}))
    assert reply.status == 200, server.log
    return reply


def set_cookies(reply: Reply) -> list[str]:
    return reply.headers.get_all("Set-Cookie") or []


def user(reply: Reply) -> str | None:
    name = json.loads(reply.text)["user"]
    assert name is None or isinstance(name, str)
    return name


def pid(reply: Reply) -> int:
    return int(json.loads(reply.text)["pid"])


def attributes(reply: Reply) -> dict[str, str]:
    (cookie,) = set_cookies(reply)
    pairs = (part.strip().partition("=") for part in cookie.split(";")[1:])
    return {name.lower(): value for name, _, value in pairs}


@pytest.fixture(params=["flask_session", "django_session", "bottle_session"], scope="module")
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Each framework's app behind the one line, on one worker."""
    tmp_path = tmp_path_factory.mktemp(request.param)
    with serve(
        f"{request.param}:app",
        tmp_path=tmp_path,
        SESSION_DIR=str(tmp_path),
        LOWMEM_SESSION_LIFETIME=f"{LIFETIME}s",
        LOWMEM_SECRET_KEY=SECRET,
    ) as server:
        yield server


def test_a_session_ends_after_its_lifetime_and_no_replay_revives_it(site: Server) -> None:
    visitor = Visitor(site)
    before = time.time()
    assert user(visitor.get("/login?ana")) == "ana"
    header = visitor.header
    assert user(send(site, "/who", header)) == "ana"
    # Replayed again and again, the first cookie still ends.
    wait_for(lambda: user(send(site, "/who", header)) is None, "the session to end")
    assert int(before) + LIFETIME <= time.time() < before + LIFETIME + 5
    ((name, envelope),) = visitor.cookies.items()
    bare = unseal(name, envelope, [derive(SECRET.encode())], int(before), 600).value
    for replay in (
        header,
        f"{name}={bare}",
        f"x=1 {name}={bare}",
        f'a="x; {name}={bare}"',
        f"x=1,{name}={bare}",
        f"x=1; {name} =\t{bare}",
    ):
        assert user(send(site, "/who", replay)) is None, replay


def test_a_session_in_use_lives_on_by_a_stamp_with_its_attributes(site: Server) -> None:
    visitor = Visitor(site)
    login = visitor.get("/login?ana")
    (name,) = visitor.cookies
    envelope = visitor.cookies[name]
    start = time.monotonic()
    stamps: list[Reply] = []

    def used() -> bool:
        reply = visitor.get("/who")
        assert user(reply) == "ana"
        if set_cookies(reply):
            stamps.append(reply)
        return time.monotonic() > start + 2 * LIFETIME

    wait_for(used, "two lifetimes to pass")
    assert visitor.cookies.keys() == {name, f"{name}.lowmem"}
    assert visitor.cookies[name] == envelope
    ends = ("expires", "max-age")
    said = {key: value for key, value in attributes(login).items() if key not in ends}
    for reply in stamps:
        kept = attributes(reply)
        assert kept == {"path": "/", **said, **({"max-age": "3"} if "max-age" in kept else {})}
        assert ("max-age" in kept) == ("max-age" in attributes(login))


def test_a_session_that_does_not_slide_ends_in_use(tmp_path: Path) -> None:
    with serve(
        "flask_session:app",
        tmp_path=tmp_path,
        LOWMEM_SESSION_LIFETIME="2s",
        LOWMEM_SESSION_SLIDING="off",
    ) as server:
        visitor = Visitor(server)
        before = time.time()
        visitor.get("/login?ana")
        assert user(visitor.get("/who")) == "ana"
        wait_for(lambda: user(visitor.get("/who")) is None, "the session to end")
        assert int(before) + 2 <= time.time() < before + 2 + 5


def test_a_site_signs_with_its_new_key_while_its_old_one_still_opens(tmp_path: Path) -> None:
    old = serve("no_secret:app", tmp_path=tmp_path, LOWMEM_SECRET_KEY=OLD)
    both = serve("no_secret:app", tmp_path=tmp_path, LOWMEM_SECRET_KEY=f"{OLD},{SECRET}")
    new = serve("no_secret:app", tmp_path=tmp_path, LOWMEM_SECRET_KEY=SECRET)
    with old as before, both as during, new as after:
        ana, ben = Visitor(before), Visitor(during)
        ana.get("/login?ana")
        ben.get("/login?ben")
        assert user(send(during, "/who", ana.header)) == "ana"
        assert user(send(after, "/who", ana.header)) is None
        assert user(send(after, "/who", ben.header)) == "ben"
        assert user(send(before, "/who", ben.header)) is None


@dataclass
class Keyless:
    """An app for which no key is set, and the file in which its key should come to lie."""

    app: str
    key: str | None = None
    env: dict[str, Any] = field(default_factory=dict)

    def serve(self, tmp_path: Path, workers: int) -> AbstractContextManager[Server]:
        env = {"XDG_RUNTIME_DIR": str(tmp_path), "SESSION_DIR": str(tmp_path)}
        env |= {name: value.format(tmp_path) for name, value in self.env.items()}
        return serve(self.app, "sync", tmp_path=tmp_path, workers=workers, env=env)

    def check_key(self, server: Server, tmp_path: Path, processes: int) -> None:
        """The key is where it should be; each process that needed it has said so once."""
        found = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("session-key")]
        assert found == ([self.key] if self.key else [])
        assert server.log.count(WARNING) == (processes if self.key else 0)


KEYLESS = {
    "Flask's own": Keyless("flask_session:app"),
    "Django's own": Keyless("django_session:app"),
    "none, in XDG_RUNTIME_DIR": Keyless("no_secret:app", "lowmem-wsgi/session-key"),
    "none, in TMPDIR": Keyless(
        "no_secret:app",
        f"lowmem-wsgi-{os.geteuid()}/session-key",
        {"XDG_RUNTIME_DIR": "", "TMPDIR": "{}"},
    ),
}
for_each_secret = pytest.mark.parametrize("keyless", KEYLESS.values(), ids=KEYLESS)


@for_each_secret
def test_two_workers_know_each_others_sessions(keyless: Keyless, tmp_path: Path) -> None:
    with keyless.serve(tmp_path, workers=2) as server:
        wait_for(lambda: len(server.workers()) == 2, "two workers")
        visitor = Visitor(server)
        visitor.get("/login?ana")
        answered = set()

        def both_answered() -> bool:
            reply = send(server, "/who", visitor.header)
            assert user(reply) == "ana", f"worker {pid(reply)} of {server.workers()}"
            answered.add(pid(reply))
            return len(answered) == 2

        wait_for(both_answered, "both workers to answer")
        assert answered == set(server.workers())
        keyless.check_key(server, tmp_path, processes=2)


@for_each_secret
def test_a_recycled_worker_knows_the_sessions_of_the_one_before_it(
    keyless: Keyless, tmp_path: Path
) -> None:
    with keyless.serve(tmp_path, workers=1) as server:
        visitor = Visitor(server)
        first = pid(visitor.get("/login?ana"))
        assert server.workers() == [first]
        os.kill(first, signal.SIGTERM)
        wait_for(lambda: first not in server.workers(), "the worker to end")
        reply = visitor.get("/who")
        assert pid(reply) != first
        assert user(reply) == "ana"
        keyless.check_key(server, tmp_path, processes=2)


def test_where_no_key_can_be_kept_requests_are_served_and_one_error_says_why(
    tmp_path: Path,
) -> None:
    (tmp_path / "lowmem-wsgi").symlink_to(tmp_path)
    with serve("no_secret:app", tmp_path=tmp_path, XDG_RUNTIME_DIR=str(tmp_path)) as server:
        visitor = Visitor(server)
        assert user(visitor.get("/login?ana")) == "ana"
        assert visitor.cookies == {"session": "ana"}  # as the app set it
        assert user(visitor.get("/who")) == "ana"
        assert server.log.count(f"{tmp_path / 'lowmem-wsgi'} is not a directory") == 1
        assert server.log.count("Set LOWMEM_SECRET_KEY") == 1


def test_a_session_too_large_for_a_cookie_is_answered_and_logged(tmp_path: Path) -> None:
    with serve("no_secret:app", tmp_path=tmp_path, LOWMEM_SECRET_KEY=SECRET) as server:
        reply = server.get("/login?" + "x" * 4050)
        assert reply.status == 200
        size = len("session=") + len(reply.cookie("session") or "")
        assert size > 4096
        assert f"Cookie session is {size} bytes" in server.log


def test_cookies_of_any_kind_are_no_error(site: Server) -> None:
    for cookie in (
        *(
            "session=",
            "session",
            "sessionid=lm2",
            "session=lm2....",
            'session="',
            "=;;=",
            "\xff=\xfe",
        ),
        f"session=lm2.{'x' * 22}.ffffffffffffffff.!.b!",
        f"session={'lm2.' * 500}",
        "; ".join(["session=lm2.a.b.c.d"] * 100),
    ):
        assert user(send(site, "/who", cookie)) is None, cookie
