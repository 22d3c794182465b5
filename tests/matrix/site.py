"""A site of the matrix, as its clients see it: HTTP and the status route."""

from __future__ import annotations

import json
from typing import Any

from helpers.cgroup import Cgroup
from helpers.servers import Reply, Server, wait_for

from .kinds import Kind

MB = 1024 * 1024
LIMIT = 192 * MB
LIFETIME = 3  # seconds of a session, counted in whole ones: it may end up to a second early
TOKEN = "the token of the matrix"
SECRET = "the key of the matrix's sessions"


class Site:
    """A running server with an app."""

    def __init__(self, server: Server, kind: Kind, group: Cgroup) -> None:
        self.server = server
        self.kind = kind
        self.group = group

    @property
    def log(self) -> str:
        return self.server.log

    def get(self, path: str, cookies: dict[str, str] | None = None) -> Any:
        """The JSON of an answer that must be 200."""
        reply = self.ask(path, cookies or {})
        assert reply.status == 200, f"{path}: {reply.status} {reply.text}\n{self.log}"
        return json.loads(reply.body)

    def ask(self, path: str, cookies: dict[str, str]) -> Reply:
        header = "; ".join("=".join(pair) for pair in cookies.items())
        return self.server.request("GET", path, headers={"Cookie": header} if header else {})

    def user(self, path: str, cookies: dict[str, str]) -> str | None:
        """Who is logged in, by the app. Cookies that the answer sets are added to `cookies`."""
        reply = self.ask(path, cookies)
        assert reply.status == 200, f"{path}: {reply.status} {reply.text}\n{self.log}"
        for header in reply.headers.get_all("Set-Cookie") or []:
            name, _, value = header.partition(";")[0].partition("=")
            cookies[name] = value
        name = json.loads(reply.body)["user"]
        assert name is None or isinstance(name, str)
        return name

    def status(self, path: str = "/api/memory-status") -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        reply = self.server.request("GET", path, headers=headers)
        assert reply.status == 200, f"{path}: {reply.status} {reply.text}\n{self.log}"
        found: dict[str, Any] = json.loads(reply.body)
        return found

    def wait(self, condition: Any, what: str, seconds: float = 30) -> None:
        wait_for(condition, lambda: f"{what}: {self.log}", seconds)
