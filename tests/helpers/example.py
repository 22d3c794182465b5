"""The example app, and a browser for it."""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path

from .servers import Reply, Server

EXAMPLE = Path(__file__).parents[2] / "examples" / "flask_app"
CONFIG = "python:lowmem_wsgi.gunicorn"


class Browser:
    """Keeps cookies, follows redirects and sends a page's form token, as a browser does."""

    def __init__(self, site: Server) -> None:
        self.site = site
        self.cookies: dict[str, str] = {}

    def get(self, path: str) -> Reply:
        return self._sent("GET", path, None, {})

    def post(self, page: str, fields: dict[str, str], to: str | None = None) -> Reply:
        fields = {"csrf_token": self.token(page), **fields}
        body = urllib.parse.urlencode(fields).encode()
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        return self._sent("POST", to or page, body, kind)

    def upload(self, page: str, name: str, content: bytes) -> Reply:
        edge = b"----frontier"
        token = self.token(page).encode()
        body = (
            b"--" + edge + b'\r\nContent-Disposition: form-data; name="csrf_token"\r\n\r\n' + token
            + b"\r\n--" + edge + b'\r\nContent-Disposition: form-data; name="file"; filename="'
            + name.encode() + b'"\r\nContent-Type: application/octet-stream\r\n\r\n' + content
            + b"\r\n--" + edge + b"--\r\n"
        )  # fmt: skip
        kind = {"Content-Type": f"multipart/form-data; boundary={edge.decode()}"}
        return self._sent("POST", page, body, kind)

    def token(self, page: str) -> str:
        found = re.search(r'name="csrf_token" value="([^"]+)"', self.get(page).text)
        assert found, f"no form token on {page}"
        return found[1]

    def log_in(self) -> Reply:
        return self.post("/login", {"name": "demo", "password": "demo"})

    def _sent(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Reply:
        if self.cookies:
            headers["Cookie"] = "; ".join(f"{k}={v}" for k, v in self.cookies.items())
        reply = self.site.request(method, path, body, headers)
        for header in reply.headers.get_all("Set-Cookie") or []:
            name, _, value = header.partition(";")[0].partition("=")
            self.cookies[name] = value
        if reply.status in (302, 303):
            return self._sent("GET", reply.headers["Location"], None, {})
        return reply
