"""`offload`: calls in child processes, each with its end: a result, or what has become of it."""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import InMemoryUploadedFile, UploadedFile
from werkzeug.datastructures import FileStorage

import apps.heavy_tasks as tasks
from helpers.servers import APPS, wait_for
from helpers.wsgi import call, make_environ
from lowmem_wsgi import (
    LowMemory,
    OffloadBusy,
    OffloadDied,
    OffloadError,
    OffloadMemoryError,
    OffloadTimeout,
    OffloadTooLarge,
    SettingsError,
    offload,
)
from lowmem_wsgi.offload import admission as room
from lowmem_wsgi.offload import child as _child
from lowmem_wsgi.offload import parent as process
from lowmem_wsgi.system import shortage
from lowmem_wsgi.system.usage import Usage

MB = 1024 * 1024
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")


def plain(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"plain"]


@pytest.fixture(autouse=True, scope="module")
def an_app_before() -> None:
    """What LowMemory keeps open until the process ends is open before the first test."""
    app = LowMemory(plain)
    call(app, make_environ())
    app.close()


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No zombie, no descriptor, no temporary file, no thread; a list of children of its own."""
    (tmp_path / "runtime").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    room.gate.cache_clear()
    gc.collect()
    files, threads = open_files(), threading.active_count()
    yield
    gc.collect()
    wait_for(lambda: threading.active_count() <= threads, "threads to end")
    assert not children(), "a child is left, or a zombie"
    assert open_files() == files
    assert not list((tmp_path / "temporary").iterdir())
    room.gate.cache_clear()


def open_files() -> list[str]:
    """What is open, but for the kernel's own files that are read time and again."""
    found = []
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []:
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(path for path in found if not path.startswith(("/proc/", "/sys/")))


def children() -> list[str]:
    found = []
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += path.read_text().split()
    return found


def is_running(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    return room.born(pid) != ""


# --- The result


def test_a_call_returns_what_the_function_returns_from_another_process() -> None:
    found = tasks.whereabouts()
    assert found["pid"] != os.getpid()
    assert found["group"] == found["pid"]
    assert tasks.double(21) == 42
    assert tasks.echo(1, "two", three=[3]) == ((1, "two"), {"three": [3]})


def test_the_child_loads_no_middleware_and_the_parent_nothing_of_the_childs() -> None:
    loaded: Any = tasks.whereabouts()["modules"]
    heavy = {"werkzeug", "psutil", "flask", "lowmem_wsgi.middleware", "subprocess", "socket"}
    assert not heavy & set(loaded)


def test_a_decorated_function_keeps_its_name_and_can_be_pickled() -> None:
    assert tasks.double.__name__ == "double"  # type: ignore[attr-defined]
    assert tasks.double.__module__ == "apps.heavy_tasks"
    assert pickle.loads(pickle.dumps(tasks.double)) is tasks.double
    assert repr(tasks.double) == "<offloaded apps.heavy_tasks.double>"


def test_a_function_is_offloaded_without_a_decorator_too_and_anew_with_other_limits() -> None:
    pid, number = offload(tasks.plain, timeout="1m")(1)
    assert (pid != os.getpid(), number) == (True, 2)
    assert offload(tasks.double, at_once=1)(4) == 8


def test_in_a_child_an_offloaded_function_is_called_as_it_is() -> None:
    pid, doubled, submitted, streamed = tasks.nested(2)
    assert pid != os.getpid()
    assert (doubled, submitted, streamed) == (4, 4, [0, 1, 2])


def test_a_megabyte_goes_both_ways() -> None:
    data = os.urandom(3 * MB)
    assert tasks.echo(data) == ((data,), {})


def test_libraries_are_told_to_use_one_thread_but_the_sites_own_word_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    assert tasks.environ("OPENBLAS_NUM_THREADS") == "1"
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    assert tasks.environ("OPENBLAS_NUM_THREADS") == "3"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM])
@pytest.mark.parametrize("what", ["socket.socketpair", "os.pipe", "subprocess.Popen"])
def test_where_the_system_has_no_more_to_give_it_is_busy_and_nothing_stays_open(
    what: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks.double(1)
    files = open_files()
    with monkeypatch.context() as patch:
        patch.setattr(what, failing(OSError(number, os.strerror(number))))
        with pytest.raises(OffloadBusy, match=r"^no process can be started for .*double: "):
            tasks.double(1)
        patch.setattr(what, failing(OSError(errno.ENOENT, "not of that kind")))
        with pytest.raises(FileNotFoundError):
            tasks.double(1)
    assert open_files() == files
    assert tasks.double(1) == 2


def failing(error: Exception) -> Any:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    return fail


@on_linux
def test_with_too_few_descriptors_left_it_is_busy_and_with_enough_it_is_made() -> None:
    import resource

    tasks.double(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    held: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 12, hard))
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        busy = 0
        while busy < 20:  # one more each time: it fails at each place that opens one
            try:
                assert tasks.double(1) == 2
                break
            except OffloadBusy:
                busy += 1
                os.close(held.pop())
        assert 5 <= busy < 20
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in held:
            os.close(descriptor)
    assert tasks.double(1) == 2


@on_linux
def test_a_child_is_the_first_that_the_kernel_kills() -> None:
    assert tasks.oom_score() == 1000


# --- What goes wrong


def test_the_functions_exception_is_raised_with_its_traceback_in_the_child() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        tasks.divide(0)
    cause = str(caught.value.__cause__)
    assert "in divide\n    return 1 / over" in cause
    assert "child.py" not in cause


def test_an_exception_that_cannot_be_pickled_is_raised_as_what_it_is_a_kind_of() -> None:
    with pytest.raises(ValueError, match=r"^apps.heavy_tasks.Refused: row 7, column email$"):
        tasks.refuse()


def test_an_exception_of_a_package_that_is_not_loaded_here_does_not_load_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "heavyweight.py").write_text("class Trouble(LookupError): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(LookupError, match=r"^heavyweight.Trouble: of its own kind$"):
        tasks.fail_as("heavyweight", "Trouble")
    assert "heavyweight" not in sys.modules


def test_a_result_of_a_package_that_is_not_loaded_here_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "heavyweight.py").write_text("class Frame: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(TypeError, match=r"make returned a heavyweight.Frame, and this process"):
        tasks.make("heavyweight", "Frame")
    assert "heavyweight" not in sys.modules
    assert str(tasks.make("fractions", "Fraction", 1, 3)) == "1/3"  # the standard library is light


def test_stop_iteration_is_an_exception_like_others() -> None:
    with pytest.raises(StopIteration, match="stopped"):
        tasks.stop_iteration()


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda: tasks.exit_with(3), 3),
        (lambda: tasks.exit_with(None), 0),
        (lambda: tasks.exit_with(1), 1),
        (lambda: tasks.leave_with(4), 4),
        (lambda: tasks.leave_in_c(5), 5),
        (tasks.fail_beyond_exception, 1),
    ],
    ids=["sys.exit", "of none", "of one", "os._exit", "exit(3)", "no Exception"],
)
def test_a_child_that_exits_has_died_with_its_exit_code(call: Any, code: int) -> None:
    with pytest.raises(OffloadDied, match=f"ended with exit code {code}, and no result") as caught:
        call()
    assert caught.value.exitcode == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_child_that_is_killed_has_died_of_that_signal(number: signal.Signals) -> None:
    with pytest.raises(OffloadDied, match=f"was killed by {number.name}$") as caught:
        tasks.kill_self(int(number))
    assert caught.value.exitcode == -number


@on_linux
@pytest.mark.parametrize("size", [101 * MB, 2048 * MB])
def test_a_child_that_asks_for_more_than_its_memory_is_out_of_memory(size: int) -> None:
    with pytest.raises(OffloadMemoryError, match="allocate needed more than 100 MB") as caught:
        tasks.allocate(size)
    assert isinstance(caught.value, MemoryError)
    assert "in allocate" in str(caught.value.__cause__)
    assert tasks.allocate(80 * MB) == 80 * MB


@on_linux
def test_an_error_that_came_of_a_memory_error_is_one() -> None:
    with pytest.raises(OffloadMemoryError, match="stumble needed more than 100 MB") as caught:
        tasks.stumble()
    assert "IndexError" in str(caught.value.__cause__)


@on_linux
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (SystemError, "error return without exception set"),
        (SystemError, "<built-in function f> returned NULL without setting an exception"),
        (RuntimeError, "can't start new thread"),
        (OSError, "[Errno 12] Cannot allocate memory"),
        (ImportError, "libblas.so: failed to map segment from shared object"),
    ],
)
def test_a_lack_of_memory_by_another_name_is_one(kind: type[Exception], message: str) -> None:
    with pytest.raises(OffloadMemoryError, match="fail_of needed more than 256 MB"):
        tasks.fail_of(kind, message)


def test_an_import_error_for_other_reasons_is_none() -> None:
    with pytest.raises(ImportError, match="a required dependency is missing"):
        tasks.fail_of(ImportError, "No module named 'blas'")


@on_linux
def test_a_library_that_ends_the_process_with_code_one_is_taken_to_be_out_of_memory() -> None:
    with pytest.raises(OffloadMemoryError, match=r"code 1, .* may need more than 256 MB"):
        tasks.leave_in_c(1)


@on_linux
@pytest.mark.skipif(find_spec("pandas") is None, reason="pandas is not installed")
@pytest.mark.parametrize("memory", ["1MB", "8MB", "20MB", "30MB"])
def test_too_little_to_import_pandas_is_out_of_memory(memory: str) -> None:
    # The OpenBLAS in numpy up to 2.2, the last one for Python 3.10, asks for memory for ever.
    older = tuple(map(int, version("numpy").split(".")[:2])) < (2, 3)
    expected = (OffloadMemoryError, OffloadTimeout) if older else OffloadMemoryError
    with pytest.raises(expected, match=r"import_pandas .*(more|longer) than"):
        offload(tasks.import_pandas, memory=memory, timeout="5s" if older else "30s")()


@on_linux
@pytest.mark.parametrize("kind", ["dicts", "100", "1000000"])
def test_a_child_that_eats_bit_by_bit_is_out_of_memory_and_never_stuck_there(kind: str) -> None:
    with pytest.raises(OffloadMemoryError, match="fill needed more than 50 MB"):
        tasks.fill(kind)


@pytest.mark.parametrize("endless", [tasks.endless, tasks.stuck_in_c])
def test_a_child_over_its_time_is_killed(endless: Any) -> None:
    with pytest.raises(OffloadTimeout, match=r"took longer than 0.5 s$") as caught:
        endless()
    assert isinstance(caught.value, TimeoutError)


def test_a_result_that_cannot_be_pickled_is_named() -> None:
    with pytest.raises(TypeError, match=r"heavy_tasks.unpicklable returned .* lock: cannot pickle"):
        tasks.unpicklable()
    with pytest.raises(TypeError, match=r"generator: .*numbers.stream\(...\)"):
        tasks.numbers(3)


def test_an_argument_that_cannot_be_pickled_is_named() -> None:
    with pytest.raises(TypeError, match=r"^argument 2 \(lock\) of apps.heavy_tasks.echo cannot be"):
        tasks.echo(1, threading.Lock())
    with pytest.raises(TypeError, match=r"^argument at= \(generator\)"):
        tasks.echo(1, at=(i for i in range(0)))


def test_what_a_child_has_started_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tasks.grandchild()
    wait_for(lambda: not is_running(pid), "the grandchild to end")
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    with pytest.raises(OffloadDied):
        tasks.grandchild_that_stays()
    pid = int((tmp_path / "told").read_text())
    wait_for(lambda: not is_running(pid), "the grandchild to end")


def test_a_hundred_megabytes_on_stdout_go_where_the_parents_go() -> None:
    script = "import apps.heavy_tasks as tasks; print(tasks.shout(100 * 1024 * 1024))"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=APPS.parent
    ) as parent:
        assert parent.stdout is not None
        size, last = 0, b""
        while piece := parent.stdout.read(MB):
            size, last = size + len(piece), piece
    assert (parent.returncode, last[-10:]) == (0, b"104857600\n")
    assert size == 100 * MB + 10


# --- Many at once


def test_two_hundred_calls_eight_at_once_each_get_their_own_result() -> None:
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(tasks.double, range(200))) == [2 * n for n in range(200)]


@pytest.mark.parametrize("late", [tasks.double, tasks.divide])
def test_a_result_that_comes_while_the_parent_looks_whether_the_child_runs_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, late: Any
) -> None:
    """On a busy machine the child may answer and end between a look at its channel and one at the
    process: here it always does."""
    monkeypatch.setattr(process, "LOOK", 0.001)
    monkeypatch.setattr(subprocess.Popen, "poll", subprocess.Popen.wait)
    if late is tasks.double:
        assert late(21) == 42
    else:
        with pytest.raises(ZeroDivisionError):
            late(0)


def test_a_future_holds_the_result_or_the_exception() -> None:
    good, bad = tasks.double.submit(4), tasks.divide.submit(0)
    assert isinstance(good, Future)
    assert good.result(30) == 8
    assert isinstance(bad.exception(30), ZeroDivisionError)


def test_one_too_many_waits_and_then_is_busy() -> None:
    with held(tasks.one_at_a_time), pytest.raises(OffloadBusy, match="1 of 1 at once are running"):
        tasks.one_at_a_time(0)
    patient = offload(tasks.one_at_a_time, at_once=1, wait="30s")
    pids = {patient.submit(0.1), patient.submit(0.1), patient.submit(0)}
    assert len({future.result(30) for future in pids}) == 3


def test_a_future_that_waits_for_room_can_be_cancelled_and_one_that_runs_cannot() -> None:
    waiting = offload(tasks.one_at_a_time, at_once=1, wait=1)
    with held(tasks.one_at_a_time) as running:
        future = waiting.submit(0)
        assert future.cancel()
        assert not running.cancel()
        with pytest.raises(CancelledError):
            future.result(30)


@contextlib.contextmanager
def held(function: Any) -> Iterator[Future[int]]:
    """A child runs the function meanwhile, on this machine's list."""
    future = function.submit(60)
    wait_for(_listed, "the child to run")
    yield future
    for child in _listed():
        os.kill(child.pid, signal.SIGKILL)
    assert isinstance(future.exception(30), OffloadDied)


def _listed() -> list[room.Child]:
    with room.gate().children() as (running, _):
        return list(running)


def test_children_of_another_process_count_too(tmp_path: Path) -> None:
    script = "import apps.heavy_tasks as tasks; tasks.one_at_a_time(60)"
    other = subprocess.Popen([sys.executable, "-c", script], cwd=APPS.parent)
    try:
        wait_for(_listed, "the other's child")
        with pytest.raises(OffloadBusy):
            tasks.one_at_a_time(0)
    finally:
        other.kill()
        other.wait()
    wait_for(lambda: not _listed(), "the other's child to end")
    assert tasks.one_at_a_time(0)


@on_linux
def test_a_child_ends_with_its_parent_even_in_the_middle_of_c_code(tmp_path: Path) -> None:
    script = (
        "import apps.heavy_tasks as tasks; from lowmem_wsgi import offload;"
        "offload(tasks.stuck_in_c, timeout=None)()"
    )
    other = subprocess.Popen([sys.executable, "-c", script], cwd=APPS.parent)
    wait_for(_listed, "the child")
    pid = _listed()[0].pid
    wait_for(lambda: processor_time(pid) > 10, "the child to compute")
    other.kill()
    other.wait()
    wait_for(lambda: not is_running(pid), "the child to end")


def processor_time(pid: int) -> int:
    """Clock ticks."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def test_a_forked_process_can_offload_as_well() -> None:
    tasks.double(1)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if tasks.double(21) == 42 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_without_a_private_directory_a_process_knows_its_own_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runtime" / "lowmem-wsgi").write_text("no directory")
    assert tasks.double(1) == 2
    assert [child.name for child in _listed()] == []  # it has ended
    with held(tasks.one_at_a_time):
        assert [child.name for child in _listed()] == ["apps.heavy_tasks.one_at_a_time"]
        with pytest.raises(OffloadBusy, match="1 of 1 at once are running"):
            tasks.one_at_a_time(0)


# --- Streams


def test_a_generator_is_streamed_and_its_return_value_with_it() -> None:
    def delegating() -> Iterator[int]:
        told.append((yield from tasks.numbers.stream(1000)))

    told: list[str] = []
    assert list(delegating()) == list(range(1000))
    assert told == ["all"]


def test_a_stream_that_fails_does_so_after_what_came_before() -> None:
    stream = tasks.numbers_that_fail.stream(2)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(ValueError, match="row 2, column id"):
        next(stream)


def test_a_child_waits_while_nobody_reads_and_ends_when_the_stream_is_closed(
    tmp_path: Path,
) -> None:
    note = tmp_path / "made"
    stream = tasks.blocks.stream(str(note))
    assert len(next(stream)) == MB
    [child] = _listed()
    wait_for(lambda: asleep(child.pid), "it to wait")
    assert int(note.read_text()) <= 2
    stream.close()
    assert not is_running(child.pid)


def asleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_a_fork_that_drops_a_stream_does_not_end_it() -> None:
    stream = tasks.numbers.stream(20_000)
    assert next(stream) == 0
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            stream.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert sum(stream) == sum(range(20_000))


def test_a_stream_that_nobody_begins_costs_nothing() -> None:
    tasks.lines_of.stream([io.BytesIO(b"1\n")])
    assert not _listed()


# --- Files


DATA = b"name,email\n" + b"x" * 2 * MB


def real_file(path: Path) -> Any:
    (path / "data").write_bytes(DATA)
    return (path / "data").open("rb")


def spooled(path: Path, size: int = 0) -> Any:
    file = tempfile.SpooledTemporaryFile(max_size=size)  # noqa: SIM115
    file.write(DATA)
    file.seek(0)
    return file


def temporary(path: Path) -> Any:
    file = tempfile.NamedTemporaryFile()  # noqa: SIM115
    file.write(DATA)
    file.seek(0)
    return file


class Stream:
    """As wsgi.input: it can be read, and no more."""

    def __init__(self) -> None:
        self._file = io.BytesIO(DATA)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def readline(self) -> bytes:
        return self._file.readline()


FILES = {
    "file": real_file,
    "NamedTemporaryFile": temporary,
    "SpooledTemporaryFile in memory": lambda path: spooled(path, 4 * MB),
    "SpooledTemporaryFile on disk": lambda path: spooled(path, 1024),
    "BytesIO": lambda path: io.BytesIO(DATA),
    "FileStorage in memory": lambda path: FileStorage(io.BytesIO(DATA), "clients.xlsx"),
    "FileStorage on disk": lambda path: FileStorage(spooled(path, 1024), "clients.xlsx"),
    "Django upload in memory": lambda path: InMemoryUploadedFile(
        io.BytesIO(DATA), None, "clients.xlsx", "text/plain", len(DATA), None
    ),
    "Django upload on disk": lambda path: UploadedFile(temporary(path), "clients.xlsx"),
    "stream": lambda path: Stream(),
}


@pytest.mark.parametrize("make", FILES.values(), ids=FILES)
def test_a_file_arrives_as_a_file_and_stays_where_it_is(make: Any, tmp_path: Path) -> None:
    file = make(tmp_path)
    try:
        assert file.readline() == b"name,email\n"
        assert tasks.read_file(file) == (b"x" * 20, 2 * MB)
        if not isinstance(file, Stream):
            assert file.read() == DATA[11:]
    finally:
        getattr(file, "close", bool)()


def test_files_inside_of_arguments_are_passed_too(tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b"1\n2\n")
    with (tmp_path / "lines").open("rb") as file:
        assert tasks.lines_of([file, io.BytesIO(b"3\n")]) == [b"1\n", b"2\n", b"3\n"]
        assert list(tasks.lines_of.stream([file])) == [b"1\n", b"2\n"]


def test_what_the_child_writes_to_a_file_is_there(tmp_path: Path) -> None:
    with tempfile.TemporaryFile() as file:
        tasks.write_file(file, 3 * MB)
        assert len(file.read()) == 3 * MB
    with (tmp_path / "written").open("wb") as file:
        tasks.write_file(file, MB)
    assert (tmp_path / "written").stat().st_size == MB


def test_a_compressed_file_arrives_as_what_is_in_it(tmp_path: Path) -> None:
    import gzip

    with gzip.open(tmp_path / "lines.gz", "wb") as file:
        file.write(b"1\n2\n")
    with gzip.open(tmp_path / "lines.gz", "rb") as file:
        assert tasks.lines_of([file]) == [b"1\n", b"2\n"]


def test_a_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("1\n")
    with (tmp_path / "lines").open() as file:
        texts: list[Any] = [file, io.StringIO("1\n")]
        for text in texts:
            with pytest.raises(TypeError, match=r"argument 1 \(.*\).* open in binary mode"):
                tasks.read_file(text)


def test_a_file_may_be_closed_as_soon_as_it_was_submitted(tmp_path: Path) -> None:
    with real_file(tmp_path) as file:
        future = tasks.read_file.submit(file)
    assert future.result(30)[1] == len(DATA)


# --- What can be offloaded, and how


def test_a_function_that_no_child_could_import_is_refused_at_once() -> None:
    def inner() -> None: ...

    for function in (inner, lambda: None, Stream().read, Stream.read):
        with pytest.raises(TypeError, match="at the top level of a module"):
            offload(function)
    for thing in (3, None.__class__):
        if thing == 3:
            with pytest.raises(TypeError, match="takes a function, not 3"):
                offload(thing)  # type: ignore[call-overload]


def test_a_function_of_the_main_program_is_refused_when_it_is_called(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from lowmem_wsgi import offload\n@offload\ndef work(): return 1\nprint(work)\n"
        "try:\n    work()\nexcept TypeError as error:\n    print(error)\n"
    )
    said = subprocess.check_output([sys.executable, script], text=True)
    assert said == (
        "<offloaded __main__.work>\n"
        "work cannot be offloaded from the main program: move it to a module of its own, which a "
        "child can import\n"
    )


def test_a_module_that_is_run_with_dash_m_is_imported_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import os\nfrom lowmem_wsgi import offload\n@offload\ndef work(): return os.getpid()\n"
        "if __name__ == '__main__':\n    print(work() != os.getpid())\n"
    )
    said = subprocess.check_output([sys.executable, "-m", "job"], text=True, cwd=tmp_path)
    assert said == "True\n"


def test_all_that_is_wrong_with_the_limits_is_said_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        offload(tasks.plain, memory="300 MX", timeout="soon", wait=-1, at_once=0)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "offload(memory='300 MX')",
        "offload(timeout='soon')",
        "offload(wait=-1)",
        "offload(at_once=0)",
    ]


def test_uwsgi_is_not_taken_for_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/usr/local/bin/uwsgi")
    assert os.path.dirname(process.python()) == os.path.join(sys.exec_prefix, "bin")
    assert tasks.double(1) == 2
    monkeypatch.setattr(sys, "exec_prefix", "/nowhere")
    with pytest.raises(OffloadError, match=r"sys.executable is '/usr/local/bin/uwsgi'"):
        tasks.double(1)


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = (
        "import sys, lowmem_wsgi\nfrom lowmem_wsgi import offload, OffloadBusy\n"
        "print({'multiprocessing', 'subprocess', 'concurrent', 'pickle', 'werkzeug', 'socket'}"
        " & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "set()\n"


def test_a_name_that_the_package_does_not_have_is_an_attribute_error() -> None:
    import lowmem_wsgi

    assert {"offload", "LowMemory"} <= set(dir(lowmem_wsgi))
    with pytest.raises(AttributeError, match="no attribute 'ofload'"):
        lowmem_wsgi.ofload  # noqa: B018


# --- Somebody else's executor


def test_any_executor_can_make_the_calls() -> None:
    with ThreadPoolExecutor(1) as threads:
        here = offload(tasks.plain, executor=threads)
        assert here(1) == (os.getpid(), 2)
        assert here.submit(1).result(30) == (os.getpid(), 2)
        assert offload(tasks.plain, executor=lambda: threads)(1) == (os.getpid(), 2)
        with pytest.raises(TypeError, match="cannot stream"):
            here.stream(1)
        with pytest.raises(ZeroDivisionError):
            offload(tasks.divide, executor=threads)(0)
        with pytest.raises(TimeoutError, match="of its own kind"):
            offload(tasks.fail_as, executor=threads)("builtins", "TimeoutError")


def test_an_executor_that_takes_too_long_is_not_waited_for() -> None:
    class Never(Executor):
        def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
            return Future()

    with pytest.raises(OffloadTimeout, match=r"plain> took longer than 0.01 s"):
        offload(tasks.plain, timeout=0.01, executor=Never())(1)


# --- Room


def wish(memory: int, at_once: int | None = 9) -> room.Request:
    return room.Request("sheet", memory - room.INTERPRETER, at_once, 0)


def running(*memory: int, name: str = "sheet") -> list[room.Child]:
    return [
        room.Child(pid, "1", size - room.INTERPRETER, name) for pid, size in enumerate(memory, 1)
    ]


USAGE = Usage(100 * MB, 512 * MB, "cgroup v2")


def decide(request: room.Request, *others: Any, top: int | None = 450 * MB, held: Any = 0) -> Any:
    return room.reason_to_wait(request, list(others), USAGE, top, lambda pid: held)


def test_what_fits_below_critical_may_start() -> None:
    assert decide(wish(350 * MB)) is None
    assert "may come to 351 MB, and 350 MB are left below 450 MB" in decide(wish(351 * MB))


def test_what_running_children_may_still_come_to_use_is_kept_for_them() -> None:
    others = running(200 * MB, 100 * MB)
    assert decide(wish(50 * MB), *others) is None
    assert decide(wish(51 * MB), *others) is not None
    assert decide(wish(170 * MB), *others, held=60 * MB) is None
    assert decide(wish(350 * MB), *others, held=300 * MB) is None


def test_where_nobody_enforces_a_limit_only_the_number_counts() -> None:
    assert decide(wish(900 * MB, 1), top=None) is None
    assert "1 of 1 at once" in decide(wish(MB, 1), *running(1), top=None)


def test_without_a_number_as_many_run_at_once_as_fit_into_the_memory() -> None:
    assert decide(wish(256 * MB, None), *running(1), top=None) is None
    assert "2 of 2 at once" in decide(wish(256 * MB, None), *running(1, 1), top=None)
    assert "4 of 4 at once" in decide(wish(10 * MB, None), *running(1, 1, 1, 1), top=None)
    assert decide(wish(10 * MB, None), *running(1, 1, 1, 1, name="other"), top=None) is None
    assert decide(wish(900 * MB, None), top=None) is None


def test_lines_of_the_list_that_are_none_are_passed_over() -> None:
    good = room.Child(1, "77", 5, "sheet")
    assert room._parse(f"rubbish\n{room._line(good)}1 2 x y\n\n") == [good]


def nobody() -> Any:
    raise AssertionError("a child was started")


class Time:
    """Of `room`: it goes on only while somebody sleeps. `child` is what there is of another's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, found: Any) -> None:
        self.now = 100.0
        monkeypatch.setattr(room, "time", self)
        monkeypatch.setattr(room.Gate, "attempt", lambda *_: found(self.now - 100))

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def ask(self) -> tuple[Any, float]:
        """For room, for 10 s at most: what was found, or the error; how long it took."""
        try:
            return room.Gate().start(room.Request("sheet", MB, 9, 10), nobody), self.now - 100
        except OffloadBusy as error:
            return error, self.now - 100


ALONE, BESIDE = room.Full("full", False), room.Full("full", True)


def test_where_no_other_child_holds_room_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    found, seconds = Time(monkeypatch, lambda _: ALONE).ask()
    assert str(found) == "no room for sheet: full"
    assert seconds == 0


def test_while_another_child_holds_room_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    child = object()
    found, seconds = Time(monkeypatch, lambda now: BESIDE if now < 4 else child).ask()
    assert found is child
    assert 4 <= seconds < 4.1
    found, seconds = Time(monkeypatch, lambda _: BESIDE).ask()
    assert isinstance(found, OffloadBusy)
    assert seconds == pytest.approx(10)


def test_after_its_end_what_it_used_has_a_moment_to_be_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, seconds = Time(monkeypatch, lambda now: BESIDE if now < 4 else ALONE).ask()
    assert isinstance(found, OffloadBusy)
    assert 4 < seconds < 4.6
    found, seconds = Time(
        monkeypatch, lambda now: BESIDE if now == 0 else ALONE if now < 0.2 else 1
    ).ask()
    assert found == 1


def test_who_has_ended_since_the_last_look_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks.double(1)  # and is on the list
    monkeypatch.setattr(room.Gate, "look", lambda _: (USAGE, 450 * MB))
    request = room.Request("sheet", 350 * MB, 9, 10)
    words = "it may come to 356 MB, and 350 MB are left below 450 MB, and no other child holds room"
    assert room.gate().attempt(request, nobody) == (words, True)
    assert room.gate().attempt(request, nobody) == (words, False)


def test_what_can_never_fit_is_an_error_of_its_own_that_is_not_to_be_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room.Gate, "look", lambda _: (USAGE, 450 * MB))
    with pytest.raises(
        OffloadTooLarge, match=r"memory= is 2 GB, .* limit of 512 MB leaves a child 444 MB at most"
    ) as caught:
        offload(tasks.plain, memory="2GB", wait="1h")(1)
    assert isinstance(caught.value, OffloadError)
    assert not isinstance(caught.value, MemoryError)


def test_without_a_word_a_child_gets_no_more_than_half_of_a_small_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for limit, expected in ((256 * MB, 128 * MB), (512 * MB, 256 * MB), (8192 * MB, 256 * MB)):
        usage = Usage(60 * MB, limit, "cgroup v2")
        monkeypatch.setattr(room.Gate, "look", lambda _, usage=usage: (usage, usage.limit * 7 // 8))
        assert room.gate().default_memory() == expected
        assert offload(tasks.plain)(1)[1] == 2
        [child] = room._parse(
            next(Path(os.environ["XDG_RUNTIME_DIR"]).glob("*/offloaded")).read_text()
        )
        assert child.memory == expected


def test_of_a_processes_requests_one_may_wait_and_the_apps_own_threads_as_well() -> None:
    patient = offload(tasks.one_at_a_time, at_once=1, wait="30s")

    def sheet(environ: Any, start_response: Any) -> list[bytes]:
        try:
            pid = patient(0)
        except OffloadBusy as error:
            start_response("409 Conflict", [])
            return [str(error).encode()]
        start_response("200 OK", [])
        return [str(pid).encode()]

    app = LowMemory(sheet)
    request = lambda: call(app, make_environ("/sheet"))  # noqa: E731
    try:
        with ThreadPoolExecutor(2) as threads:
            with held(tasks.one_at_a_time):
                requests = [threads.submit(request), threads.submit(request)]
                [refused] = wait(requests, 20, FIRST_COMPLETED).done
                assert refused.result().status == "409 Conflict"
                assert b"running, and another request waits for room" in refused.result().body
                [waits] = set(requests) - {refused}
                submitted = patient.submit(0)
                assert not waits.done()
                assert not submitted.done()
            assert waits.result(30).status == "200 OK"
            assert waits.result().body != str(submitted.result(30)).encode()
            assert threads.submit(request).result(30).status == "200 OK"
    finally:
        app.close()


def test_what_the_dynamic_linker_says_without_memory_is_known() -> None:
    error = ImportError("Unable to import required dependency numpy.")
    error.__cause__ = ImportError("libscipy_openblas64_.so: cannot map zero-fill pages")
    assert shortage.ran_out(error)
    assert not shortage.ran_out(ImportError("No module named 'numpy'"))


@on_linux
def test_a_child_that_has_no_memory_to_tell_of_it_is_out_of_memory() -> None:
    with pytest.raises(OffloadMemoryError, match="needed more than"):
        tasks.leave_with(_child.SPEECHLESS)
