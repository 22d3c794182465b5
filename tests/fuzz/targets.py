"""What is fuzzed: input from outside, and a property that holds for all of it.

A property raises AssertionError where it does not hold; any other exception is a fault too.
"""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any, NamedTuple

from gunicorn.http.body import ChunkedReader
from gunicorn.http.unreader import IterUnreader
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import dump_cookie, parse_cookie

from helpers.wsgi import call, make_environ, post
from lowmem_wsgi import LowMemory, SettingsError
from lowmem_wsgi.admin.openmetrics import FAMILIES, render
from lowmem_wsgi.guards import set_cookie
from lowmem_wsgi.guards.sessions import Sessions
from lowmem_wsgi.guards.signed_cookie import BadEnvelope, derive, seal, stamp, unseal
from lowmem_wsgi.guards.static_cache import capped
from lowmem_wsgi.http.body import Body
from lowmem_wsgi.http.upload_errors import UploadBroken, UploadTooLarge
from lowmem_wsgi.settings import Settings, format_size, parse_duration, parse_size, table
from lowmem_wsgi.system import cgroup, procfs


class Target(NamedTuple):
    """A property, and the strategies of its arguments."""

    holds: Callable[..., None]
    given: dict[str, st.SearchStrategy[Any]]


TARGETS: dict[str, Target] = {}


def target(**given: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], None]:
    def register(holds: Callable[..., None]) -> None:
        TARGETS[holds.__name__] = Target(holds, given)

    return register


# --- Cookies

KEY = derive(b"a secret of this test")
NOW = 1_800_000_000
LIFETIME = 600
latin = st.text(st.characters(max_codepoint=255), max_size=60)
tokens = st.text(st.sampled_from("abcXYZ019!#$%&'*+-.^_`|~"), min_size=1, max_size=12)
times = st.integers(0, 2**40)


@st.composite
def changes(draw: st.DrawFn) -> Callable[[str], str]:
    """A change of a text: something put at some place, instead of some characters."""
    at, cut = draw(st.floats(0, 1)), draw(st.integers(0, 5))
    put = draw(st.text(max_size=5) | st.sampled_from([".", "lm2.", "=", "A", "p", "b", "0"]))

    def change(text: str) -> str:
        place = int(at * len(text))
        return text[:place] + put + text[place + cut :]

    return change


@target(
    name=tokens,
    value=latin,
    attributes=latin,
    age=st.integers(-200, 2 * LIFETIME),
    end=st.none() | st.integers(-100, 2 * LIFETIME),
    change=changes(),
    stamps=st.lists(st.integers(-100, 2 * LIFETIME) | st.text(max_size=60), max_size=3),
)
def cookie_envelope(
    name: str,
    value: str,
    attributes: str,
    age: int,
    end: int | None,
    change: Callable[[str], str],
    stamps: list[int | str],
) -> None:
    """An envelope opens to what was sealed, for as long as it may; a changed one never opens."""
    sealed_at, ends_at = NOW - age, None if end is None else NOW + end
    envelope = seal(name, value, attributes, KEY, sealed_at, ends_at)
    own = [stamp(name, envelope, KEY, NOW - x) if isinstance(x, int) else x for x in stamps]
    stamped = [NOW - x for x in stamps if isinstance(x, int) and x >= -60]
    used_at = max([sealed_at, *stamped])
    in_time = sealed_at <= NOW + 60 and NOW - used_at < LIFETIME and (end is None or end > 0)
    try:
        session = unseal(name, envelope, [KEY], NOW, LIFETIME, own)
    except BadEnvelope as error:
        assert error.reason in ("future", "expired", "ended")
        assert not in_time, error.reason
    else:
        assert in_time
        assert (session.value, session.attributes) == (value, attributes)
        assert (session.used_at, session.end) == (used_at, ends_at)
    for forged, keys, whose in (
        (change(envelope), [KEY], name),
        (envelope, [derive(b"another secret")], name),
        (envelope, [KEY], name + "x"),
    ):
        if (forged, keys, whose) == (envelope, [KEY], name):
            continue
        # Neither by itself, nor with the stamps of the envelope that it was made from.
        try:
            unseal(whose, forged, keys, NOW, LIFETIME, own)
        except BadEnvelope as error:
            assert error.reason in ("unsigned", "forged")
        else:
            raise AssertionError(f"opened: {forged!r}")


pieces = st.lists(
    st.one_of(
        st.sampled_from(["session=", "=session=", "session", "session.lowmem=", "x[session=", '"']),
        st.sampled_from(["; ", ";", ",", " ", "\t", "\xa0", "\xc2\xa0", "\\", "=", "\x00", "x=1"]),
        st.just("GENUINE"),
        latin,
    ),
    max_size=12,
)


@target(parts=pieces)
def cookie_header(parts: list[str]) -> None:
    """Whatever the Cookie header, no parser finds a session in it but the genuine one."""
    envelope = seal("session", "genuine", "", KEY, NOW)
    header = "".join(parts).replace("GENUINE", f"session={envelope}")
    environ: dict[str, Any] = {"HTTP_COOKIE": header, "PATH_INFO": "/"}
    Sessions(["session"], LIFETIME, lambda: [KEY], clock=lambda: float(NOW)).enter(environ)
    left = environ.get("HTTP_COOKIE", "")
    for parser, found in _sessions(left):
        assert found == "genuine", (parser, header, left)


def _sessions(header: str) -> Iterator[tuple[str, str]]:
    """What each parser takes for the session of a Cookie header."""
    try:
        yield from (("werkzeug", v) for v in parse_cookie(header).getlist("session"))
    except UnicodeDecodeError:  # werkzeug reads no header that is not UTF-8
        pass
    cookies: SimpleCookie = SimpleCookie()
    try:
        cookies.load(header)
    except CookieError:
        pass
    if "session" in cookies:
        yield "http.cookies", cookies["session"].value
    for part in header.split(";"):  # as Django does
        name, equals, value = part.partition("=")
        if equals and name.strip() == "session":
            yield "Django", value.strip()


@target(
    name=tokens,
    value=latin,
    age=st.none() | st.integers(-(10**9), 10**9),
    path=st.none() | st.sampled_from(["/", "/a b", "/é"]),
    http_only=st.booleans(),
    raw=st.text(max_size=80),
    expires=st.text(max_size=40) | st.sampled_from(["Thu, 01 Jan 1970 00:00:00 GMT", "0"]),
)
def set_cookie_header(
    name: str,
    value: str,
    age: int | None,
    path: str | None,
    http_only: bool,
    raw: str,
    expires: str,
) -> None:
    """A header that werkzeug has written is read as it was meant; any other is read somehow."""
    written = dump_cookie(name, value, max_age=age, path=path, httponly=http_only, max_size=0)
    found, content, attributes = set_cookie.parse(written)
    assert (found, content) == tuple(written.partition(";")[0].split("=", 1))
    assert set_cookie.seconds_left(attributes, NOW) == age
    assert ("HttpOnly", "") in attributes or not http_only
    packed = set_cookie.pack(attributes)
    assert set_cookie.parse(f"x=; {packed}")[2] == attributes
    for header in (raw, f"a=b; Max-Age={raw}", f"a=b; Expires={expires}"):
        left = set_cookie.seconds_left(set_cookie.parse(header)[2], NOW)
        assert left is None or isinstance(left, int)


# --- Settings

UNITS = {"": 1, "B": 1, "K": 2**10, "KB": 2**10, "KiB": 2**10, "mb": 2**20, "GiB": 2**30}
SPANS = {"": 1, "ms": 0.001, "s": 1, "m": 60, "H": 3600, "d": 86400}


@target(
    number=st.integers(0, 10**9),
    unit=st.sampled_from([*UNITS]),
    span=st.sampled_from([*SPANS]),
    space=st.sampled_from(["", " ", "\t"]),
    raw=st.text(max_size=20) | st.from_regex(r"[0-9.eE+-]{1,18} ?[kmgKMGiIBbsSdDhH]{0,3}"),
    value=st.one_of(st.integers(), st.floats(), st.none(), st.booleans(), st.binary(max_size=3)),
)
def sizes_and_durations(
    number: int, unit: str, span: str, space: str, raw: str, value: object
) -> None:
    """A size and a duration are what their text says; any other text is a ValueError."""
    assert parse_size(f"{space}{number}{space}{unit}") == number * UNITS[unit]
    assert math.isclose(parse_duration(f"{number}{space}{span}{space}"), number * SPANS[span])
    shown = parse_size(format_size(number).replace("bytes", "B"))
    assert math.isclose(shown, number, rel_tol=0.06)
    for given in (raw, value):
        for parse in (parse_size, parse_duration):
            try:
                parsed = parse(given)
            except ValueError:
                continue
            assert 0 <= parsed < math.inf


SECRET = "VERY-SECRET-INDEED"
names = st.sampled_from([row.name for row in table()])
words = st.one_of(
    st.sampled_from(["none", "auto", "on", "off", "0", "1", "5%", "512MB", "10m", "/x", "/x=1MB"]),
    st.sampled_from([row.defaults["ultra"] for row in table()]),
    st.text(max_size=20).map(lambda text: text.replace("\x00", "")),
)
single: st.SearchStrategy[Any] = st.one_of(
    words, st.integers(), st.floats(), st.none(), st.booleans()
)
ready = st.one_of(
    single,
    st.lists(single, max_size=3),
    st.dictionaries(st.text(max_size=5), single, max_size=2),
)


@target(
    keywords=st.dictionaries(names | st.text(max_size=12), ready, max_size=4),
    environ=st.dictionaries(names.map(str.upper), words, max_size=4),
    unknown=st.text(st.sampled_from("ABKEYTOKEN_"), max_size=8),
    secret=st.sampled_from(["", "\x00", "x,", ","]),
)
def settings(keywords: dict[str, Any], environ: dict[str, str], unknown: str, secret: str) -> None:
    """Settings are read, or one SettingsError has a line for each that is wrong and no secret."""
    variables = {f"LOWMEM_{name}": text for name, text in environ.items()}
    variables[f"LOWMEM_ADMIN_TOKEN{unknown}"] = SECRET
    variables["LOWMEM_SECRET_KEY"] = secret + SECRET
    try:
        found = Settings.load(keywords, variables)
    except SettingsError as error:
        assert error.problems
        assert all(len(problem.splitlines()) == 1 for problem in error.problems), error.problems
        assert SECRET not in str(error)
    else:
        assert SECRET not in repr(found)
        # Ready values mean themselves. (A share of the limit is text alone: 78%.)
        rows = [row.name for row in table() if row.name not in ("warn_at", "critical_at")]
        again = Settings.load({name: getattr(found, name) for name in rows}, {})
        for name in rows:
            assert getattr(again, name) == getattr(found, name), name


# --- The kernel's files

numbers = st.integers(0, 2**64) | st.sampled_from([2**63 - 4096, 2**63 - 1, 0])
figures = st.one_of(numbers.map(str), st.just("max"), st.text(max_size=12))
lines = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("inactive_file", "total_inactive_file", "hierarchical_memory_limit", "shmem"),
                *("total_swap", "hierarchical_memsw_limit", "oom_kill", "MemTotal:", "SwapTotal:"),
                *("MemAvailable:", "SwapFree:", "Private_Dirty:", "VmRSS:", "slab_unreclaimable"),
            ]
        ),
        figures,
    ),
    max_size=8,
).map(lambda pairs: "\n".join(" ".join(pair) for pair in pairs))
texts = st.one_of(figures, lines, st.text(max_size=60)).map(lambda x: x.encode("utf-8", "replace"))
raws = texts | st.binary(max_size=60)
MOUNTS = (
    "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
    "31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
    r"32 23 0:28 /a /sys/fs/cgroup/o\040ne rw - cgroup2 cgroup2 rw",
)
OWN = ("0::/a/b", "0::/", "5:memory:/a/b", "5:cpu,memory:/../x", "0::/a/../..", "x")
FILES = (
    *("memory.max", "memory.high", "memory.current", "memory.stat", "memory.events"),
    *("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control", "cgroup.procs"),
    *("memory.swap.current", "memory.swap.max"),
)


@target(
    mounts=st.lists(st.sampled_from(MOUNTS) | st.text(max_size=40), max_size=3),
    own=st.lists(st.sampled_from(OWN) | st.text(max_size=20), max_size=3),
    files=st.lists(
        st.tuples(
            st.sampled_from(["", "/a", "/a/b", "/memory", "/memory/a/b"]),
            st.sampled_from(FILES),
            raws,
        ),
        max_size=8,
    ),
    machine=raws | st.just(b"MemTotal: 1000000 kB\nMemAvailable: 5 kB\n"),
    share=raws,
    stat=raws,
    current=st.integers(0, 2**40),
    cache=st.integers(0, 2**40),
    limit=st.integers(1, 2**40),
)
def kernel_files(
    mounts: list[str],
    own: list[str],
    files: list[tuple[str, str, bytes]],
    machine: bytes,
    share: bytes,
    stat: bytes,
    current: int,
    cache: int,
    limit: int,
) -> None:
    """No text in a kernel file makes a reader raise or return nonsense; good texts are read."""
    with tempfile.TemporaryDirectory() as root:
        tree = {
            "/proc/self/mountinfo": "\n".join(mounts).encode("utf-8", "replace"),
            "/proc/self/cgroup": "\n".join(own).encode("utf-8", "replace"),
            "/proc/meminfo": machine,
            "/proc/self/stat": stat,
            "/proc/self/statm": stat,
            "/proc/self/smaps_rollup": stat,
            "/sys/fs/cgroup/cpu.max": share,
            "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": share,
            "/sys/fs/cgroup/cpu/cpu.cfs_period_us": stat,
        }
        tree |= {f"/sys/fs/cgroup{folder}/{name}": raw for folder, name, raw in files}
        _write(root, tree)
        _read_all(root)
        good = {
            "/proc/self/mountinfo": MOUNTS[0].encode(),
            "/proc/self/cgroup": b"0::/a",
            "/proc/meminfo": f"MemTotal: {2**41} kB\nMemAvailable: 1 kB\n".encode(),
            "/sys/fs/cgroup/a/memory.max": f"{limit}\n".encode(),
            "/sys/fs/cgroup/a/memory.high": b"max\n",
            "/sys/fs/cgroup/a/memory.current": f"{current}\n".encode(),
            "/sys/fs/cgroup/a/memory.stat": f"anon 5\ninactive_file {cache}\n".encode(),
            "/sys/fs/cgroup/memory.max": b"max",
            "/sys/fs/cgroup/memory.high": b"max",
        }
        _write(root, good)
        usage = cgroup.Container(root).read()
        assert usage == (max(0, current - cache), limit, "cgroup v2")


def _write(root: str, tree: dict[str, bytes]) -> None:
    for path, raw in tree.items():
        file = Path(root + path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(raw)


def _read_all(root: str) -> None:
    container = cgroup.Container(root)
    machine = procfs.memory_total(root)
    for usage in (container.read(), container.glance(), procfs.read_machine(root)):
        assert usage is None or (usage.used >= 0 and 0 < usage.limit <= max(machine, usage.limit))
    assert all(size >= 0 for size in container.parts().values())
    swap = procfs.read_swap(root)
    for found in (swap, swap and container.swap(swap)):
        assert found is None or (found.used >= 0 and found.limit >= 0)
    assert all(pid >= 0 for pid in container.pids())
    assert (container.out_of_memory_kills() or 0) >= 0
    assert 0 < cgroup.processors(root) <= (os.cpu_count() or 1)
    proc = f"{root}/proc"
    process = procfs.read_stat(proc=proc)
    assert process is None or process.ended in (True, False)
    statm = procfs.read_statm(proc=proc)
    assert statm is None or isinstance(statm.anonymous, int)
    assert procfs.own_uss(proc) >= 0
    assert procfs.shared_bytes(proc) >= 0
    assert procfs.process_seconds(proc) >= 0
    assert procfs.OwnRss(proc)() >= 0


# --- Bodies


class Short(io.RawIOBase):
    """A stream of bytes in pieces of a server's liking. Counts what was taken; may break."""

    def __init__(self, data: bytes, most: int, breaks_at: int | None) -> None:
        self._data, self._most, self._breaks_at = data, most, breaks_at
        self.taken = 0

    def read(self, size: int = -1, /) -> bytes:
        return self._take(len(self._data) if size < 0 else size, self._data[self.taken :])

    def readline(self, size: int | None = -1, /) -> bytes:
        rest = self._data[self.taken :]
        line, newline, _ = rest.partition(b"\n")
        return self._take(len(rest) if size is None or size < 0 else size, line + newline)

    def _take(self, size: int, rest: bytes) -> bytes:
        if self._breaks_at is not None and self.taken >= self._breaks_at:
            raise OSError("the client left")
        piece = rest[: min(size, self._most)]
        self.taken += len(piece)
        return piece


STEPS = st.sampled_from(["read", "read1", "readline", "readinto", "readlines", "next", "tighten"])


@target(
    data=st.binary(max_size=80) | st.integers(0, 80).map(lambda n: (b"line\n" * 20)[:n]),
    most=st.integers(1, 100),
    limit=st.integers(0, 90),
    declared=st.booleans(),
    breaks_at=st.none() | st.integers(0, 80),
    steps=st.lists(st.tuples(STEPS, st.none() | st.integers(-1, 100)), max_size=12),
)
def capped_stream(
    data: bytes,
    most: int,
    limit: int,
    declared: bool,
    breaks_at: int | None,
    steps: list[tuple[str, int | None]],
) -> None:
    """However an app reads: no byte past the cap, no byte lost, changed or out of its place."""
    stream = Short(data, most, breaks_at)
    body = Body(stream, limit, declared=declared)
    got = b""
    try:
        for step, size in steps:
            got += _step(body, step, size)
    except UploadTooLarge:
        assert body.overflowed
        assert not declared
        assert len(data) > body.limit
    except UploadBroken:
        assert body.broken
        assert breaks_at is not None
    else:
        assert data.startswith(got)
        assert len(got) <= stream.taken
    assert stream.taken <= limit + (not declared)  # one more byte shows that the body goes on


def _step(body: Body, step: str, size: int | None) -> bytes:
    count = abs(size) if size is not None else 1
    if step == "next":
        return next(body, b"")
    if step == "readlines":
        return b"".join(body.readlines(-1 if size is None else size))
    if step == "readinto":
        buffer = bytearray(count)
        return bytes(buffer[: body.readinto(buffer)])
    if step == "tighten":
        body.tighten(body.limit - min(count, body.left))
        return b""
    if step == "read1":
        return body.read1(-1 if size is None else size)
    found: bytes = getattr(body, step)(size)
    return found


chunks = st.lists(st.binary(min_size=1, max_size=40), max_size=5)


@target(
    sent=chunks,
    extension=st.sampled_from(["", ";a=b", ';a="b"']),
    change=st.none() | st.tuples(st.floats(0, 1), st.integers(0, 4), st.binary(max_size=6)),
    packets=st.integers(1, 200),
    cap=st.integers(0, 120),
    size=st.integers(1, 60),
    keeps=st.booleans(),
)
def chunk_framing(
    sent: list[bytes],
    extension: str,
    change: tuple[float, int, bytes] | None,
    packets: int,
    cap: int,
    size: int,
    keeps: bool,
) -> None:
    """A chunked body, well framed or not: the app gets the body and 200, or the client 413 or 400;
    never is the app given more than the cap."""
    framed = b"".join(b"%x%b\r\n%b\r\n" % (len(c), extension.encode(), c) for c in sent)
    framed += b"0\r\n\r\n"
    if change is not None:
        place = int(change[0] * len(framed))
        framed = framed[:place] + change[2] + framed[place + change[1] :]
    packed = [framed[at : at + packets] for at in range(0, len(framed), packets)]
    reader = ChunkedReader(None, IterUnreader(iter(packed)))
    given: list[bytes] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            while piece := environ["wsgi.input"].read(size):
                given.append(piece)
        except (RequestEntityTooLarge, OSError):
            if not keeps:
                raise
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]

    wrapped = LowMemory(app, max_upload=cap, system_malloc="off")
    try:
        response = call(wrapped, post("/", b"", chunked=True) | {"wsgi.input": _Reader(reader)})
    finally:
        wrapped.close()
    body = b"".join(sent)
    assert sum(map(len, given)) <= cap
    assert response.code in (200, 400, 413)
    if change is None:
        assert response.code == (413 if len(body) > cap else 200)
        assert body.startswith(b"".join(given))
        assert response.code == 413 or b"".join(given) == body


class _Reader:
    """wsgi.input over Gunicorn's reader of chunks."""

    def __init__(self, reader: Any) -> None:
        self.read = reader.read


# --- Responses


@target(
    parts=st.lists(st.binary(max_size=20), max_size=5),
    kind=st.sampled_from(["list", "tuple", "generator", "iterator", "write", "late"]),
    fails_at=st.none() | st.integers(0, 5),
    out_of_memory=st.booleans(),
)
def response_chunks(
    parts: list[bytes], kind: str, fails_at: int | None, out_of_memory: bool
) -> None:
    """A response arrives as the app made it, and is closed once; a MemoryError before the first
    byte is 503."""
    closed: list[bool] = []
    error = MemoryError() if out_of_memory else KeyError("the app's")
    failing = fails_at is not None and fails_at <= len(parts) and kind not in ("list", "tuple")

    def run(start_response: Any) -> Iterator[bytes]:
        if kind == "late":
            start_response("200 OK", [])
        for at, part in enumerate([*parts, b""]):
            if failing and at == fails_at:
                raise error
            yield part

    class Result:
        def __init__(self, iterator: Iterator[bytes]) -> None:
            self.iterator = iterator

        def __iter__(self) -> Iterator[bytes]:
            return self.iterator

        def close(self) -> None:
            closed.append(True)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        if kind == "late":
            return Result(run(start_response))
        write = start_response("200 OK", [])
        if kind == "write":
            for part in parts:
                write(part)
            return Result(iter(()))
        if kind in ("list", "tuple"):
            return [*parts] if kind == "list" else (*parts,)
        return Result(run(start_response))

    wrapped = LowMemory(app, system_malloc="off", session_cookies="none")
    failing = failing and kind != "write"
    early = failing and not any(parts[: fails_at or 0]) and (fails_at or 0) == 0
    try:
        response = call(wrapped, make_environ())
    except (KeyError, MemoryError) as raised:
        assert raised is error
        assert failing
        assert not (early and out_of_memory)
    else:
        assert response.code == (503 if failing else 200)
        assert failing or response.body == b"".join(parts)
    finally:
        wrapped.close()
    assert closed == ([] if kind in ("list", "tuple") else [True])


@target(policy=st.text(max_size=60) | latin, age=st.integers(0, 10**25), most=st.integers(0, 3600))
def cache_control(policy: str, age: int, most: int) -> None:
    """No Cache-Control allows a cache more than the most; what else it says stays."""
    for text in (policy, f"public, max-age={age}", f'S-MaxAge="{age}", immutable'):
        found = [part.strip().lower() for part in capped(text, most).split(",")]
        ages = [
            part.partition("=")[2] for part in found if part.startswith(("max-age", "s-maxage"))
        ]
        assert ages
        assert all(int(each) <= most for each in ages if each.isascii() and each.isdigit())
    assert "immutable" in capped("immutable", most)


# --- Metrics


ROW = {"requests": 3, "grown_bytes": 5, "held_bytes": 4, "worst_bytes": 7}


@target(routes=st.lists(st.text(max_size=40), max_size=5, unique=True))
def openmetrics(routes: list[str]) -> None:
    """Whatever a route's name, the parser of Prometheus reads the metrics, and the same name."""
    seen = [name.encode("utf-8", "replace").decode() for name in routes]
    document = {"routes": [{"route": name, **ROW} for name in routes], "version": "1"}
    text = render(document).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    labels = (
        [s.labels["route"] for s in families["lowmem_route_requests"].samples] if routes else []
    )
    assert labels == seen
    assert {*families} <= {family.name for family in FAMILIES}
