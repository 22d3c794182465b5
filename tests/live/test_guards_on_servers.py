"""Refused uploads on real servers: one final answer, and nobody waits for a client that idles."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.browser import chromium
from helpers.servers import APPS, Server, clean_environ, serve, stop, wait_for

PYWSGI = """
import sys
from gevent import monkey
monkey.patch_all()
from gevent.pywsgi import WSGIServer
from plain import app
server = WSGIServer(("127.0.0.1", 0), app, log=None)
server.start()
print(f"Listening at http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
"""
TOO_LARGE = 5 * 1024 * 1024
HEAD = f"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: {TOO_LARGE}\r\n"


@pytest.fixture
def pywsgi(tmp_path: Path) -> Iterator[Server]:
    pytest.importorskip("gevent", reason="gevent is not installed")
    log_path = tmp_path / "pywsgi.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", PYWSGI],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=APPS,
            env=clean_environ({"LOWMEM_MAX_IN_FLIGHT": "3"}),
        )
    server = Server(process, log_path)
    try:
        listening = re.compile(r"http://127\.0\.0\.1:(\d+)")
        wait_for(lambda: process.poll() is not None or listening.search(server.log), "a port")
        found = listening.search(server.log)
        assert found, server.log
        server.port = int(found[1])
        yield server
    finally:
        stop(process)


def until_answered(connection: socket.socket) -> bytes:
    """What comes up to the body of the final answer."""
    received = b""
    while b"\r\n\r\n" not in received.rpartition(b"HTTP/1.1 413")[2]:
        piece = connection.recv(65536)
        assert piece, received
        received += piece
    return received


def rest_of(connection: socket.socket) -> bytes:
    """What comes after it, the client having ended."""
    connection.shutdown(socket.SHUT_WR)
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def test_clients_that_idle_after_a_413_do_not_block_the_site(pywsgi: Server) -> None:
    clients = []
    try:
        for _ in range(3):
            client = socket.create_connection(("127.0.0.1", pywsgi.port), timeout=20)
            clients.append(client)
            client.sendall(f"{HEAD}\r\n".encode() + b"x" * 1000)
            assert until_answered(client).startswith(b"HTTP/1.1 413 ")
        assert pywsgi.get("/").status == 200
    finally:
        for client in clients:
            client.close()


def test_no_100_comes_after_the_final_413_of_pywsgi(pywsgi: Server) -> None:
    with socket.create_connection(("127.0.0.1", pywsgi.port), timeout=20) as client:
        client.sendall(f"{HEAD}Expect: 100-continue\r\nConnection: close\r\n\r\n".encode())
        received = until_answered(client)
        received += rest_of(client)
    assert received.startswith(b"HTTP/1.1 413 ")
    assert received.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
def test_no_100_comes_after_the_final_413_of_gunicorn(kind: str, tmp_path: Path) -> None:
    if kind == "gevent":
        pytest.importorskip("gevent", reason="gevent is not installed")
    with serve("plain:app", kind, tmp_path=tmp_path) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
            client.sendall(f"{HEAD}Expect: 100-continue\r\n\r\n".encode())
            received = until_answered(client)
            received += rest_of(client)
        # Gunicorn sends its 100 before it calls any app.
        statuses = re.findall(rb"HTTP/1\.1 (\d+)", received)
        assert statuses == [b"100", b"413"]
        assert server.get("/told").status == 200


def test_a_drained_upload_takes_no_place_under_gunicorn(tmp_path: Path) -> None:
    with (
        serve(
            "plain:app", "gthread", tmp_path=tmp_path, threads=3, LOWMEM_MAX_IN_FLIGHT="1"
        ) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as idle,
    ):
        idle.sendall(f"{HEAD}\r\n".encode() + b"x" * 1000)
        assert until_answered(idle).startswith(b"HTTP/1.1 413 ")
        for _ in range(5):
            # The one before keeps its place until the server closes it, just after its answer.
            wait_for(lambda: server.get("/").status == 200, "a place", seconds=2)


FOREIGN = """
<img src="{0}" alt="">
<form method="post" action="{0}"></form>
<script>addEventListener("load", () => document.forms[0].submit())</script>
"""


def test_over_plain_http_the_pages_button_acts_and_another_sites_page_does_not(
    tmp_path: Path,
) -> None:
    """A browser sends no Sec-Fetch-Site to a site on plain HTTP that is not localhost."""
    with (
        serve("plain:app", tmp_path=tmp_path, LOWMEM_ADMIN_TOKEN="t0ken") as server,
        chromium("--host-resolver-rules=MAP *.example 127.0.0.1") as browser,
    ):
        context = browser.new_context(http_credentials={"username": "x", "password": "t0ken"})
        page = context.new_page()
        page.goto(f"http://shop.example:{server.port}/api/memory-status")
        with page.expect_response("**/api/force-cleanup") as own:
            page.click("#free")
        assert own.value.status == 200
        assert "sec-fetch-site" not in own.value.request.all_headers()

        url = f"http://shop.example:{server.port}/api/force-cleanup"
        page = context.new_page()
        page.route(
            "http://evil.example/",
            lambda route: route.fulfill(content_type="text/html", body=FOREIGN.format(url)),
        )
        with page.expect_response(lambda answer: answer.request.method == "POST") as foreign:
            page.goto("http://evil.example/")
        assert foreign.value.status == 403
        context.close()
        reply = server.get("/api/memory-status", Authorization="Bearer t0ken")
        assert reply.status == 200
        assert json.loads(reply.body)["cleanups"]["count"] == 1
