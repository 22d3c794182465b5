"""The one table: what is read from where, and what is said of what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_wsgi import LowMemory, SettingsError
from lowmem_wsgi.settings import (
    GB,
    KB,
    MB,
    Settings,
    format_size,
    parse_duration,
    parse_size,
    table,
    threshold_bytes,
)
from lowmem_wsgi.settings.values import parse_bool

NAMES = [row.name for row in table()]

# DESIGN's table: keyword, balanced, ultra.
DEFAULTS: list[tuple[str, object, object]] = [
    ("preset", "balanced", "ultra"),
    ("max_upload", 512 * KB, 512 * KB),
    ("upload_limits", None, None),
    ("session_lifetime", 600.0, 600.0),
    ("session_cookies", ("session", "sessionid"), ("session", "sessionid")),
    ("session_sliding", True, True),
    ("secret_key", None, None),
    ("gc_passes", 3, 3),
    ("gc_threshold", None, (25, 1, 1)),
    ("gc_freeze", True, True),
    ("trim", True, True),
    ("system_malloc", True, True),
    ("recursion_limit", None, 200),
    ("memory_limit", None, None),
    ("warn_at", 0.78125, 0.78125),
    ("critical_at", 0.87890625, 0.87890625),
    ("cleanup_interval", 10.0, 10.0),
    ("check_interval", 30.0, 30.0),
    ("heavy_modules", ("pandas", "numpy", "matplotlib"), ("pandas", "numpy", "matplotlib")),
    ("lazy_heavy", False, True),
    ("lazy_imports", True, True),
    ("start_anew", True, True),
    ("purge_modules", False, True),
    ("recycle", True, True),
    ("ceiling", None, None),
    ("max_in_flight", None, 3),
    ("exempt_paths", ("/healthz",), ("/healthz",)),
    ("error_page", None, None),
    ("static_prefix", "/static/", "/static/"),
    ("static_max_age", 30.0, 30.0),
    ("admin_token", None, None),
    ("status_path", "/api/memory-status", "/api/memory-status"),
    ("cleanup_path", "/api/force-cleanup", "/api/force-cleanup"),
    ("home_rows", 5, 5),
    ("max_rows", 10, 10),
    ("batch_size", 5, 5),
    ("cache_timeout", 15.0, 15.0),
    ("pool_size", 1, 1),
]


def problems(keywords: dict[str, object] | None = None, **environ: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as error:
        Settings.load(keywords or {}, environ)
    return error.value.problems


def test_the_table_holds_what_the_design_lists_and_no_more() -> None:
    assert [name for name, _, _ in DEFAULTS] == NAMES


@pytest.mark.parametrize(("name", "balanced", "ultra"), DEFAULTS)
def test_presets(name: str, balanced: object, ultra: object) -> None:
    assert getattr(Settings.load({}, {}), name) == balanced
    assert getattr(Settings.load({}, {"LOWMEM_PRESET": "ultra"}), name) == ultra
    assert getattr(Settings.load({"preset": "ultra"}, {}), name) == ultra


def test_the_thresholds_are_400_and_450_of_512_and_scale_with_the_limit() -> None:
    rules = Settings.load({}, {})
    assert threshold_bytes(rules.warn_at, 512 * MB) == 400 * MB
    assert threshold_bytes(rules.critical_at, 512 * MB) == 450 * MB
    assert threshold_bytes(rules.warn_at, 1 * GB) == 800 * MB


def test_a_keyword_beats_the_environment_which_beats_the_preset() -> None:
    environ = {"LOWMEM_PRESET": "ultra", "LOWMEM_MAX_IN_FLIGHT": "7"}
    assert Settings.load({}, {"LOWMEM_PRESET": "ultra"}).max_in_flight == 3
    assert Settings.load({}, environ).max_in_flight == 7
    assert Settings.load({"max_in_flight": 9}, environ).max_in_flight == 9
    assert Settings.load({"max_in_flight": None}, environ).max_in_flight is None
    assert Settings.load({"preset": "balanced"}, environ).lazy_heavy is False


def test_an_empty_variable_counts_as_not_set() -> None:
    assert Settings.load({}, {"LOWMEM_MAX_UPLOAD": "", "LOWMEM_TRIM": " "}).max_upload == 512 * KB


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512KB", 512 * KB),
        ("512kb", 512 * KB),
        ("512 KiB", 512 * KB),
        ("4MB", 4 * MB),
        ("4M", 4 * MB),
        ("1GiB", GB),
        ("1.5MB", 1536 * KB),
        ("524288", 524288),
        ("0", 0),
        (524288, 524288),
    ],
)
def test_sizes_are_counted_in_1024s(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("600", 600),
        ("10m", 600),
        ("30s", 30),
        ("1h", 3600),
        ("2d", 172800),
        ("500ms", 0.5),
        (600, 600),
        (0.5, 0.5),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(("parse", "text"), [(parse_size, "5TB"), (parse_duration, "5x")])
def test_an_unknown_unit_is_a_wrong_value(parse: Callable[[object], object], text: str) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        parse(text)


@pytest.mark.parametrize("word", ["1", "true", "on", "yes", "TRUE", " On ", True])
def test_words_for_on(word: object) -> None:
    assert parse_bool(word) is True


@pytest.mark.parametrize("word", ["0", "false", "off", "no", "No", False])
def test_words_for_off(word: object) -> None:
    assert parse_bool(word) is False


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_upload", "512 bananas"),
        ("max_upload", "-1"),
        ("max_upload", -1),
        ("max_upload", True),
        ("max_upload", "1e9"),
        ("max_upload", "９KB"),
        ("max_upload", "9" * 5000),
        ("max_upload", float("nan")),
        ("session_lifetime", "0"),
        ("session_lifetime", "ten minutes"),
        ("session_lifetime", timedelta(minutes=10)),
        ("session_lifetime", float("inf")),
        ("trim", "ture"),
        ("trim", "2"),
        ("gc_passes", "3.5"),
        ("gc_passes", "-3"),
        ("gc_threshold", "25,1,1,1"),
        ("gc_threshold", "a"),
        ("recursion_limit", "5"),
        ("warn_at", "101%"),
        ("warn_at", "0%"),
        ("warn_at", "0"),
        ("upload_limits", "/import"),
        ("upload_limits", "import=4MB"),
        ("upload_limits", "/import=lots"),
        ("session_cookies", "a b"),
        ("session_cookies", "a;b"),
        ("heavy_modules", "pan das"),
        ("exempt_paths", "healthz"),
        ("error_page", "no/such/file"),
        ("status_path", "status"),
        ("status_path", "/status?x"),
        ("max_in_flight", "0"),
        ("max_in_flight", "many"),
        ("preset", "ultra-light"),
        ("pool_size", None),
        ("secret_key", ","),
        ("memory_limit", "0"),
        ("memory_limit", "1"),
        ("gc_passes", "11"),
        ("session_cookies", ","),
        ("check_interval", "1ms"),
        ("ceiling", "maybe"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(name: str, value: object) -> None:
    row = next(row for row in table() if row.name == name)
    (problem,) = problems({name: value})
    assert problem.startswith(f"{name}=")
    assert row.kind.expected in problem
    assert len(problem) < 300
    if isinstance(value, str):
        (problem,) = problems({}, **{row.variable: value})
        assert problem.startswith(f"{row.variable}=")


def test_everything_wrong_is_reported_at_once() -> None:
    found = problems(
        {"max_uplaod": "1MB"},
        LOWMEM_TRIM="yess",
        LOWMEM_SESSION_LIFETIME="soon",
        LOWMEM_STATIC_MAXAGE="30s",
    )
    assert len(found) == 4
    assert "max_uplaod='1MB': no such setting; did you mean max_upload?" in found
    assert "LOWMEM_STATIC_MAXAGE='30s': no such variable; did you mean LOWMEM_STATIC_MAX_AGE?" in (
        found
    )
    assert any("LOWMEM_TRIM='yess'" in problem and "on/off" in problem for problem in found)


def test_an_error_never_shows_a_secret() -> None:
    found = problems({"admin_tokn": "hush-1"}, LOWMEM_SECRETKEY="hush-2", LOWMEM_XTOKEN="hush-3")
    assert "hush" not in " ".join(found)


def test_a_printed_settings_object_never_shows_a_secret() -> None:
    rules = Settings.load({"admin_token": "hush", "secret_key": "hush hush hush hush"}, {})
    assert "hush" not in repr(rules)


@pytest.mark.parametrize(
    "keywords",
    [
        {"warn_at": "90%", "critical_at": "80%"},
        {"warn_at": "450MB", "critical_at": "400MB"},
        {"warn_at": "90%", "critical_at": "400MB", "memory_limit": "512MB"},
        {"critical_at": "600MB", "memory_limit": "512MB"},
        {"status_path": "/x", "cleanup_path": "/x"},
    ],
)
def test_settings_that_contradict_each_other_are_refused(keywords: dict[str, object]) -> None:
    assert len(problems(keywords)) == 1


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Settings.load({}, {}).max_upload = 1


def test_upload_limits_are_read_as_the_design_writes_them() -> None:
    rules = Settings.load({}, {"LOWMEM_UPLOAD_LIMITS": "/import=4MB,/avatar=1MB"})
    assert rules.upload_limits == {"/import": 4 * MB, "/avatar": MB}
    assert Settings.load({"upload_limits": {"/a": "1KB"}}, {}).upload_limits == {"/a": KB}


OLD, NEW = "an old secret 0123", "a new secret 01234"


def test_secrets_are_a_list_in_our_variable_and_one_whole_in_the_common_one() -> None:
    assert Settings.load({}, {"LOWMEM_SECRET_KEY": f"{OLD}, {NEW}"}).secret_key == (OLD, NEW)
    assert Settings.load({}, {"SECRET_KEY": " a,b, "}).secret_key == ("a,b,",)
    both = {"LOWMEM_SECRET_KEY": OLD, "SECRET_KEY": "theirs"}
    assert Settings.load({}, both).secret_key == (OLD,)


def test_the_middleware_refuses_wrong_settings_when_it_is_made() -> None:
    with pytest.raises(SettingsError, match="max_upload"):
        LowMemory(lambda environ, start_response: [], max_uploads="1MB")


def read_or_refused(keywords: dict[str, object], environ: dict[str, str]) -> None:
    """No other exception than the one that says what is wrong."""
    try:
        Settings.load(keywords, environ)
    except SettingsError:
        pass


@given(st.dictionaries(st.sampled_from([row.variable for row in table()]), st.text(), max_size=8))
def test_any_text_in_the_environment_is_read_or_refused(environ: dict[str, str]) -> None:
    read_or_refused({}, environ)


ANYTHING: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.lists(st.text()),
    st.booleans(),
)


@given(st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=8))
def test_any_keyword_value_is_read_or_refused(keywords: dict[str, object]) -> None:
    read_or_refused(keywords, {})


@given(st.integers(0, 2**49))
def test_sizes_for_people_are_short(size: int) -> None:
    assert len(format_size(size)) < 12


def test_a_name_with_a_line_break_takes_one_line_of_the_error() -> None:
    with pytest.raises(SettingsError) as error:
        Settings.load({"no\nsuch": 1}, {})
    assert str(error.value).splitlines()[1:] == ["  'no\\nsuch'=1: no such setting"]
