"""Uploads that are too large, on real servers, sent by a client that sends all before it reads."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.servers import HERE, SERVERS, Server, serve, wait_for

FIVE_MB = 5 * 1024 * 1024
CAP = 512 * 1024
APPS = ("plain:app", "flask_upload:app")


@pytest.fixture(scope="module", params=SERVERS)
def server_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=APPS)
def server(
    request: pytest.FixtureRequest, server_name: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with serve(request.param, server_name, tmp_path=tmp_path_factory.mktemp("live")) as running:
        yield running


def seen(server: Server) -> dict[str, int]:
    result: dict[str, int] = json.loads(server.get("/told").body)["seen"]
    return result


def pieces(size: int) -> Iterator[bytes]:
    for _ in range(size // 65536):
        yield b"x" * 65536


def test_a_declared_5_mb_gets_a_readable_413_and_the_view_never_runs(server: Server) -> None:
    before = seen(server)
    reply = server.request("POST", "/read", b"x" * FIVE_MB)
    assert reply.status == 413
    assert "512 KB" in reply.text
    assert seen(server) == before


def test_a_chunked_5_mb_gets_a_readable_413_and_the_view_sees_no_more_than_the_cap(
    server: Server,
) -> None:
    headers = {"Transfer-Encoding": "chunked"}
    reply = server.request("POST", "/read", pieces(FIVE_MB), headers, chunked=True)
    assert reply.status == 413
    assert "512 KB" in reply.text
    assert seen(server)["largest"] <= CAP


def test_a_chunked_5_mb_is_413_though_the_app_says_all_is_well(server: Server) -> None:
    boundary = "frontier"
    form = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n'.encode()
    )
    headers = {
        "Transfer-Encoding": "chunked",
        "Content-Type": f"multipart/form-data; boundary={boundary}",
    }

    def body() -> Iterator[bytes]:
        yield form
        yield from pieces(FIVE_MB)

    reply = server.request("POST", "/swallow", body(), headers, chunked=True)
    assert reply.status == 413


def test_a_body_within_the_cap_is_served_declared_and_chunked(server: Server) -> None:
    assert server.request("POST", "/read", b"x" * CAP).text == str(CAP)
    headers = {"Transfer-Encoding": "chunked"}
    reply = server.request("POST", "/read", pieces(CAP), headers, chunked=True)
    assert (reply.status, reply.text) == (200, str(CAP))


def test_ten_times_in_a_row_and_never_a_reset(server: Server) -> None:
    for _ in range(10):
        assert server.request("POST", "/read", b"x" * FIVE_MB).status == 413


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: -5\r\n\r\n",
        b"Content-Length: 99999999999999999999999999\r\n\r\n",
        b"Content-Length: five\r\n\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"Content-Length: 5, 5\r\n\r\nhello",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"Transfer-Encoding: nonsense\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_hostile_framing_is_refused_and_the_server_lives_on(
    server: Server, server_name: str, lines: bytes
) -> None:
    if server_name == "werkzeug" and b"FFFF" in lines:
        pytest.skip("the bare development server's own chunk reader can die of this (SIGSEGV)")
    start = b"POST /read HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    received = server.send_raw(start + lines)
    if received:
        code = int(received.split(b" ", 2)[1])
        assert code < 500 or code == 501, received[:500]
    else:  # waitress drops a request whose body never came whole, before it calls any app
        assert server_name == "waitress"
    assert server.request("POST", "/read", b"hello").text == "5"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_reads_the_413_declared_and_chunked(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "five"
    file.write_bytes(b"x" * FIVE_MB)
    url = f"http://127.0.0.1:{server.port}/read"
    for extra in ([], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect:"]):
        curl = ["curl", "-sS", "--max-time", "20", "-w", "%{http_code}", "--data-binary"]
        done = subprocess.run(
            [*curl, f"@{file}", *extra, url], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("413")


def test_a_client_that_stops_sending_does_not_hold_the_worker_for_long(
    server: Server, server_name: str
) -> None:
    """It declares 5 MB, sends a little and waits: the answer comes, and others are served."""
    if server_name == "waitress":
        pytest.skip("waitress itself waits for the whole body before it calls any app")
    head = f"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: {FIVE_MB}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head + b"x" * 1000)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")
        wait_for(lambda: server.get("/told").status == 200, "another request", seconds=8)


def test_a_wrapped_file_is_still_sent_by_sendfile(tmp_path: Path) -> None:
    """Gunicorn sends a wsgi.file_wrapper response by sendfile(2); seen by strace-free means: the
    worker's socket.sendfile is replaced by one that says so."""
    config = tmp_path / "config.py"
    config.write_text(
        "def post_fork(server, worker):\n"
        "    import socket\n"
        "    real = socket.socket.sendfile\n"
        "    def sendfile(self, file, offset=0, count=None):\n"
        "        worker.log.info('sendfile of %s bytes', count)\n"
        "        return real(self, file, offset, count)\n"
        "    socket.socket.sendfile = sendfile\n"
        "keepalive = 2\n"
    )
    size = (HERE.parent / "apps" / "plain.py").stat().st_size
    for kind in ("sync", "gthread"):
        with serve(
            "plain:app", tmp_path=tmp_path, config=str(config), options=["-k", kind]
        ) as server:
            reply = server.get("/file")
            assert len(reply.body) == size
            assert f"sendfile of {size} bytes" in server.log
