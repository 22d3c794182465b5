"""Where the signing keys come from: the setting, the app's own secret, the private directory."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bottle import Bottle
from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from lowmem_wsgi.guards.keys import Keys, shared_secret
from lowmem_wsgi.guards.signed_cookie import BadEnvelope, derive, seal, unseal
from lowmem_wsgi.settings import Settings
from lowmem_wsgi.system.private_dir import runtime_directory

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

OLD, NEW = "an old secret 0123", "a new secret 01234"
SOMEBODY = 12345  # a user id that is not ours

posix = pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX's")
root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away"
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runtime directory of this test, not made yet."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "lowmem-wsgi"


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def plain(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """An app without a secret."""
    start_response("200 OK", [])
    return []


def flask(**config: Any) -> Flask:
    app = Flask(__name__)
    app.config.update(config)
    return app


def find_keys(setting: tuple[str, ...] | None, app: object) -> tuple[bytes, ...]:
    """What a process that starts now signs with."""
    return Keys(setting, app)()


def derived(*secrets: str) -> tuple[bytes, ...]:
    return tuple(derive(secret.encode()) for secret in secrets)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# --- The setting


@pytest.mark.parametrize(
    ("environ", "secrets"),
    [
        ({"LOWMEM_SECRET_KEY": f"{OLD},{NEW}"}, (OLD, NEW)),
        ({"LOWMEM_SECRET_KEY": f" {OLD} , {NEW} "}, (OLD, NEW)),
        ({"SECRET_KEY": "one, of many,words"}, ("one, of many,words",)),
        ({"LOWMEM_SECRET_KEY": OLD, "SECRET_KEY": "theirs"}, (OLD,)),
        ({"LOWMEM_SECRET_KEY": "", "SECRET_KEY": "theirs"}, ("theirs",)),
        ({}, None),
    ],
)
def test_ours_is_a_list_of_secrets_and_another_programs_variable_one_secret(
    environ: dict[str, str], secrets: tuple[str, ...] | None
) -> None:
    assert Settings.load(environ=environ).secret_key == secrets


def test_the_setting_beats_the_apps_own_secret() -> None:
    assert find_keys(("old", "new"), flask(SECRET_KEY="own")) == derived("old", "new")


def test_the_apps_own_secret_beats_the_runtime_directory(home: Path) -> None:
    assert find_keys(None, flask(SECRET_KEY="own")) == derived("own")
    assert not home.exists()


def test_a_secret_is_never_the_key_itself() -> None:
    secret = "a secret that signs other things, too"
    (key,) = find_keys((secret,), plain)
    assert len(key) == 32
    assert key != secret.encode()
    with pytest.raises(BadEnvelope, match="forged"):
        unseal("session", seal("session", "ana", "", secret.encode(), 0), [key], 0, 600)


# --- The app's own secret


def decorated(app: Flask) -> WSGIApplication:
    @functools.wraps(app.wsgi_app)
    def call(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        return app(environ, start_response)

    return call


@pytest.mark.parametrize(
    "wrap",
    [
        lambda app: app,
        lambda app: app.wsgi_app,
        ProxyFix,
        lambda app: ProxyFix(ProxyFix(app.wsgi_app)),
        decorated,
    ],
    ids=["app", "app.wsgi_app", "ProxyFix", "ProxyFix twice", "functools.wraps"],
)
def test_flasks_secret_is_found_through_what_wraps_it(wrap: Callable[[Flask], Any]) -> None:
    assert find_keys(None, wrap(flask(SECRET_KEY="own"))) == derived("own")


@pytest.mark.parametrize("fallbacks", [["old", "older"], ("old", "older")])
def test_flasks_fallbacks_open_and_its_secret_seals(fallbacks: Any) -> None:
    app = flask(SECRET_KEY="new", SECRET_KEY_FALLBACKS=fallbacks)
    assert find_keys(None, app) == derived("older", "old", "new")


@pytest.mark.parametrize("secret", [b"own", "own"])
def test_flasks_secret_may_be_text_or_bytes(secret: str | bytes) -> None:
    assert find_keys(None, flask(SECRET_KEY=secret)) == derived("own")


def test_flasks_secret_may_be_bytes_of_any_kind() -> None:
    assert find_keys(None, flask(SECRET_KEY=b"\xff\x00\xfe")) == (derive(b"\xff\x00\xfe"),)


@pytest.fixture(scope="module")
def django_app(tmp_path_factory: pytest.TempPathFactory) -> WSGIApplication:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SESSION_DIR", str(tmp_path_factory.mktemp("sessions")))
        bare: WSGIApplication = importlib.import_module("apps.django_session").bare
        return bare


def test_djangos_fallbacks_open_and_its_secret_seals(django_app: WSGIApplication) -> None:
    from django.test import override_settings

    with override_settings(SECRET_KEY="new", SECRET_KEY_FALLBACKS=["old", "older"]):
        assert find_keys(None, django_app) == derived("older", "old", "new")
        assert find_keys(None, ProxyFix(django_app)) == derived("older", "old", "new")


def test_another_framework_beside_django_does_not_get_djangos_secret(
    django_app: WSGIApplication, home: Path
) -> None:
    assert find_keys(None, plain) == (derive(shared_secret(str(home))),)


@pytest.mark.parametrize("make", [lambda: plain, flask, Bottle], ids=["plain", "Flask", "Bottle"])
def test_an_app_without_a_secret_gets_the_one_of_the_runtime_directory(
    make: Callable[[], Any], home: Path
) -> None:
    assert find_keys(None, make()) == (derive(shared_secret(str(home))),)


def test_a_django_site_without_a_secret_gets_the_one_of_the_runtime_directory(
    django_app: WSGIApplication, home: Path
) -> None:
    """Django raises when an empty SECRET_KEY is read."""
    from django.test import override_settings

    with override_settings(SECRET_KEY=""):
        assert find_keys(None, django_app) == (derive(shared_secret(str(home))),)


# --- The runtime directory


def test_the_runtime_directory_is_in_xdgs_where_there_is_one(tmp_path: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert runtime_directory(environ) == str(tmp_path / "lowmem-wsgi")


@pytest.mark.parametrize("xdg", [None, "", ".", "/no/such/directory"])
def test_the_runtime_directory_is_else_this_users_in_the_temporary_one(
    xdg: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environ = {} if xdg is None else {"XDG_RUNTIME_DIR": xdg}
    user = os.geteuid() if hasattr(os, "geteuid") else "user"
    assert runtime_directory(environ) == str(tmp_path / f"lowmem-wsgi-{user}")


@posix
@pytest.mark.usefixtures("open_umask")
def test_the_directory_and_its_key_are_made_for_their_owner_alone(home: Path) -> None:
    secret = shared_secret(str(home))
    assert len(secret) == 32
    assert mode(home) == 0o700
    assert [(path.name, mode(path)) for path in home.iterdir()] == [("session-key", 0o600)]


def test_whoever_comes_later_gets_the_same_secret_and_another_directory_another(
    tmp_path: Path,
) -> None:
    first, again, other = (shared_secret(str(tmp_path / name)) for name in ("a", "a", "b"))
    assert first == again != other


def test_using_it_is_one_warning_that_says_where_and_what_to_set(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert find_keys(None, plain) == find_keys(None, plain)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(home) in record.getMessage()
    assert "Set LOWMEM_SECRET_KEY" in record.getMessage()


def test_each_call_renews_the_files_times_and_a_file_that_is_gone_comes_back(home: Path) -> None:
    keys = Keys(None, plain)
    before = keys()
    key = home / "session-key"
    secret = key.read_bytes()
    os.utime(key, (0, 0))
    assert keys() == before
    assert key.stat().st_mtime > 0
    key.unlink()
    home.rmdir()
    assert keys() == before
    assert key.read_bytes() == secret
    assert [path.name for path in home.iterdir()] == ["session-key"]


def test_a_key_that_another_process_made_meanwhile_signs_and_the_own_one_still_opens(
    home: Path,
) -> None:
    keys = Keys(None, plain)
    (own,) = keys()
    (home / "session-key").unlink()
    (theirs,) = find_keys(None, plain)
    assert own != theirs
    for _ in range(2):
        assert keys() == (own, theirs)
    assert find_keys(None, plain) == (theirs,)  # the file is theirs


def test_a_key_held_before_a_fork_is_there_after_it_whatever_became_of_the_file(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Keys(None, plain)
    keys.hold()
    secret = (home / "session-key").read_bytes()
    assert caplog.records == []  # the app may use no sessions
    (home / "session-key").unlink()
    assert keys() == (derive(secret),)
    assert (home / "session-key").read_bytes() == secret


def test_no_key_is_held_where_there_is_another(home: Path) -> None:
    for setting, app in (((OLD,), plain), (None, flask(SECRET_KEY="own"))):
        Keys(setting, app).hold()
        assert not home.exists()


def test_a_secret_that_the_app_gets_before_its_first_session_counts_and_later_no_more(
    home: Path,
) -> None:
    early, late = flask(), flask()
    keys_early, keys_late = Keys(None, early), Keys(None, late)
    keys_early.hold()
    of_the_file = keys_late()
    for app in (early, late):
        app.config["SECRET_KEY"] = "own"
    assert keys_early() == derived("own")
    assert keys_late() == of_the_file == (derive(shared_secret(str(home))),)


def test_a_key_that_cannot_be_kept_any_more_still_signs_and_one_error_says_so(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Keys(None, plain)
    before = keys()
    (home / "session-key").unlink()
    home.rmdir()
    home.write_text("in the way")
    caplog.clear()
    for _ in range(2):
        assert keys() == before
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert f"{home} is not a directory" in record.getMessage()
    assert "Set LOWMEM_SECRET_KEY" in record.getMessage()


MAKE_KEYS = """
import sys
from lowmem_wsgi.guards.keys import shared_secret
print("ready", flush=True)
sys.stdin.readline()
for directory in sys.argv[1:]:
    print(shared_secret(directory).hex())
"""


def test_eight_processes_that_make_the_key_at_once_all_get_the_same(tmp_path: Path) -> None:
    rounds = [str(tmp_path / str(number)) for number in range(25)]
    command = [sys.executable, "-c", MAKE_KEYS, *rounds]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(8)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()  # go
        found = [process.stdout.read().split() for process in processes if process.stdout]
    assert found == [[shared_secret(directory).hex() for directory in rounds]] * 8
    assert {path.name for path in tmp_path.rglob("*key*")} == {"session-key"}  # no draft is left


# --- A directory, or a key in it, that cannot be trusted


def owned_by_somebody(home: Path) -> None:
    home.mkdir(0o700)
    os.chown(home, SOMEBODY, SOMEBODY)


def a_link(home: Path) -> None:
    elsewhere = home.with_name("elsewhere")
    elsewhere.mkdir(0o700)
    home.symlink_to(elsewhere)


def a_link_to_nothing(home: Path) -> None:
    home.symlink_to(home.with_name("nothing"))


def a_file(home: Path) -> None:
    home.write_bytes(b"x" * 32)


def with_mode(bits: int, home: Path) -> None:
    home.mkdir()
    home.chmod(bits)


def key_of(size: int, home: Path) -> None:
    home.mkdir(0o700)
    (home / "session-key").write_bytes(b"x" * size)


def key_link(home: Path) -> None:
    home.mkdir(0o700)
    elsewhere = home.with_name("elsewhere")
    elsewhere.write_bytes(b"x" * 32)
    (home / "session-key").symlink_to(elsewhere)


def key_link_to_nothing(home: Path) -> None:
    home.mkdir(0o700)
    (home / "session-key").symlink_to(home.with_name("nothing"))


def key_directory(home: Path) -> None:
    (home / "session-key").mkdir(parents=True)
    home.chmod(0o700)


def key_owned_by_somebody(home: Path) -> None:
    key_of(32, home)
    os.chown(home / "session-key", SOMEBODY, SOMEBODY)


UNTRUSTED = [
    pytest.param(owned_by_somebody, "belongs to user 12345", marks=root),
    pytest.param(a_link, "is not a directory"),
    pytest.param(a_link_to_nothing, "is not a directory"),
    pytest.param(a_file, "is not a directory"),
    *(
        pytest.param(functools.partial(with_mode, bits), "open to other users", id=f"mode {bits:o}")
        for bits in (0o777, 0o750, 0o740, 0o720, 0o710, 0o705, 0o704, 0o702, 0o701)
    ),
    *(
        pytest.param(functools.partial(key_of, size), "no key of 32 bytes", id=f"key of {size}")
        for size in (0, 31, 33)
    ),
    pytest.param(key_link, "session-key"),
    pytest.param(key_link_to_nothing, "session-key"),
    pytest.param(key_directory, "session-key"),
    pytest.param(key_owned_by_somebody, "session-key belongs to user 12345", marks=root),
]


@posix
@pytest.mark.parametrize(("make", "why"), UNTRUSTED)
def test_what_cannot_be_trusted_is_refused_with_one_error_that_says_why(
    make: Callable[[Path], None], why: str, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(home)
    assert find_keys(None, plain) == ()
    assert find_keys(None, plain) == ()
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert str(home) in record.getMessage()
    assert why in record.getMessage()
    assert "Set LOWMEM_SECRET_KEY" in record.getMessage()


@posix
def test_a_link_in_the_keys_place_is_not_written_through(home: Path) -> None:
    key_link_to_nothing(home)
    assert find_keys(None, plain) == ()
    assert not home.with_name("nothing").exists()


def test_no_temporary_directory_at_all_is_the_same_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a container whose file system is read-only."""

    def none_usable() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", none_usable)
    assert find_keys(None, plain) == ()
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "No usable temporary directory" in record.getMessage()
    assert "Set LOWMEM_SECRET_KEY" in record.getMessage()


def test_a_key_that_cannot_be_put_in_its_place_leaves_no_draft_behind(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*names: str) -> None:
        raise PermissionError("this file system has no links")

    monkeypatch.setattr(os, "link", refuse)
    assert find_keys(None, plain) == ()
    assert list(home.iterdir()) == []
    assert "this file system has no links" in caplog.text
