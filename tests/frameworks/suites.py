"""The frameworks' own tests: where they are, and which of them LowMemory breaks, each with why."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import NamedTuple

PRESETS = ("memory", "balanced")


class Suite(NamedTuple):
    """The tests of one framework. `package`: its name on the index. `folder`: in the sdist, where
    `command` runs. `wrapped`: for the page, how each app is wrapped."""

    title: str
    package: str
    folder: str
    command: tuple[str, ...]
    wrapped: str


_PYTEST = ("pytest", "-q", "-p", "no:cacheprovider")
SUITES = {
    "flask": Suite(
        "Flask",
        "Flask",
        ".",
        (*_PYTEST, "tests"),
        "each app as it is made: `app.wsgi_app = LowMemory(app.wsgi_app)`",
    ),
    "django": Suite(
        "Django",
        "Django",
        "tests",
        (
            *("runtests.py", "--parallel=1", "wsgi", "handlers", "sessions_tests", "file_uploads"),
            *("servers", "requests_tests", "test_client", "csrf_tests", "middleware"),
        ),
        "`WSGIHandler`, which serves the sites, and the handler behind the test client",
    ),
    "bottle": Suite(
        "Bottle",
        "bottle",
        ".",
        (*_PYTEST, "test"),
        "each app as it is made: `app.wsgi = LowMemory(app.wsgi)`",
    ),
    "falcon": Suite(
        "Falcon",
        "falcon",
        ".",
        (*_PYTEST, "tests", "--ignore=tests/asgi"),
        "each app at its first call",
    ),
}


class Expected(NamedTuple):
    """Tests that pass without LowMemory and fail with it. `tests`: patterns of their names."""

    framework: str
    presets: tuple[str, ...]
    tests: tuple[str, ...]
    why: str


_CAP = ("balanced",)  # caps and sessions, which the preset memory has not
EXPECTED = (
    Expected(
        "flask",
        PRESETS,
        ("*::test_app_freed_on_zero_refcount",),
        "The test wants an app to be freed without the garbage collector. `app.wsgi_app = "
        "LowMemory(app.wsgi_app)` is a reference cycle, as with any middleware that is put there.",
    ),
    Expected(
        "flask",
        _CAP,
        ("*::test_session_transactions",),
        "`session_transaction()` signs a session cookie outside of the app. This cookie has no "
        "envelope of LowMemory's, so LowMemory takes it out of the request. In your own tests set "
        "`LOWMEM_SESSION_COOKIES=none`.",
    ),
    Expected(
        "django",
        PRESETS,
        (
            "handlers.test_exception.ExceptionHandlerTests.test_data_upload_max_*",
            "handlers.tests.HandlerRequestTests.test_handle_accepts_httpstatus_enum_value",
            "handlers.tests.HandlerTests.test_bad_path_info",
            "handlers.tests.HandlerTests.test_invalid_multipart_boundary",
        ),
        "The test calls the WSGI app and reads `status_code` of what the app returns: it wants "
        "Django's response object. A WSGI server only iterates (PEP 3333), so LowMemory returns "
        "an iterable.",
    ),
    Expected(
        "django",
        PRESETS,
        ("wsgi.tests.WSGITest.test_get_wsgi_application",),
        "The test reads the status before it asks for the first chunk. LowMemory starts a response "
        "at its first chunk, so that a MemoryError up to there can still be a 503. PEP 3333 "
        "allows an app to wait this long.",
    ),
    Expected(
        "django",
        _CAP,
        (
            "file_uploads.tests.FileUploadTests.test_big_base64_*upload",
            "file_uploads.tests.FileUploadTests.test_broken_custom_upload_handler",
            "file_uploads.tests.FileUploadTests.test_custom_upload_handler",
            "file_uploads.tests.FileUploadTests.test_fileupload_getlist",
            "file_uploads.tests.FileUploadTests.test_large_upload",
        ),
        "The test sends more than 512 KB: LowMemory answers 413 (`LOWMEM_MAX_UPLOAD`).",
    ),
    Expected(
        "django",
        _CAP,
        (
            "test_client.tests.ClientTest.test_*force_login*",
            "test_client.tests.ClientTest.test_view_with_*login*",
            "test_client.tests.ClientTest.test_logout*",
            "test_client.tests.ClientTest.test_session_modifying_view",
            "test_client.tests.ClientTest.test_sessions_app_is_not_installed",
        ),
        "The test client logs in outside of the app, or reads the session's key from the cookie. "
        "Its cookie has no envelope of LowMemory's, and the app's cookie has one. Your own tests "
        "with Django's client do not go through the WSGI app, so nothing changes for them.",
    ),
    Expected(
        "bottle",
        PRESETS,
        ("*::test_memory_error",),
        "The test wants a MemoryError of the app to reach the server. LowMemory answers it with "
        "503.",
    ),
    Expected(
        "falcon",
        _CAP,
        (
            "*::test_data_too_large[[]wsgi*",
            "*::test_invalid_random_form[[]wsgi*",
            "*::test_random_form[[]wsgi*",
        ),
        "The test sends more than 512 KB: LowMemory answers 413 (`LOWMEM_MAX_UPLOAD`).",
    ),
    Expected(
        "falcon",
        _CAP,
        ("*::TestRequestBody::test_read_body", "*::TestRequestBody::test_tiny_body"),
        "The test calls `tell()` or `seek()` of `wsgi.input`, which PEP 3333 does not have. "
        "LowMemory counts what the app reads, and cannot go back.",
    ),
)


def expected(framework: str, preset: str, test: str) -> Expected | None:
    """The row of EXPECTED for a test that fails; None if there is none."""
    return next((row for row in _rows(framework, preset) if _covers(row, test)), None)


def stale(framework: str, preset: str, failed: list[str]) -> Iterator[str]:
    """Yield each pattern of EXPECTED that no failure fits any more."""
    for row in _rows(framework, preset):
        for pattern in row.tests:
            if not fnmatch.filter(failed, pattern):
                yield pattern


def _rows(framework: str, preset: str) -> Iterator[Expected]:
    return (row for row in EXPECTED if row.framework == framework and preset in row.presets)


def _covers(row: Expected, test: str) -> bool:
    return any(fnmatch.fnmatchcase(test, pattern) for pattern in row.tests)
