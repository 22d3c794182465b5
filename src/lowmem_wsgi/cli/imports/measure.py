"""Import an app in this fresh interpreter, and write to a pipe what each import costs.

`process.py` compiles this file and writes it to the interpreter's stdin: to compile it there would
take 0.8 MB. The file imports nothing that Python has not loaded at its own start, and keeps no
event in memory. So the figures are the app's. After the code comes `task`:

    pipe: descriptor to write to         module, name, call: the app (imports/app_path.py)
    late: modules to import late, or None: then nothing of LowMemory is loaded
    without: packages that must seem not to be installed
    moved: packages that are imported only in functions, so to say: see `StandIns`

An event is a tuple, written with `marshal`. Bytes and seconds; the time spent here does not count.

    ("open", thread, seconds, private, resident, module, file, file and line of the import)
    ("close", thread, seconds, private, resident)
    ("start" | "end", thread, seconds, private, resident)    by smaps_rollup, which is exact
    ("late", [(module, file and line of the first use, or ""), ...])    those loaded all the same
    ("failed", kind, message, file and line, lines of the traceback, names to choose from)
"""

import _frozen_importlib
import _thread
import marshal
import os
import sys
from time import perf_counter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

bootstrap: "Any" = _frozen_importlib
PAGE = os.sysconf("SC_PAGE_SIZE")
# Modules whose frames stand between an import statement and the load of a module.
MACHINERY = {
    *("importlib", "importlib._bootstrap", "importlib._bootstrap_external"),
    *("_frozen_importlib", "_frozen_importlib_external"),
    *("lowmem_wsgi.imports.lazy", "lowmem_wsgi.imports.tracker", "contextlib", __name__),
}


def main(task: "dict[str, Any]") -> None:
    if sys.path[0] == "":
        del sys.path[0]
    sys.path.insert(0, os.getcwd())  # as under Gunicorn
    sys.argv[:] = ["lowmem-wsgi"]
    tell = teller(task["pipe"])
    note = noter(tell)
    late = None if task["late"] is None else delay(task["late"])
    if task["without"]:
        sys.meta_path.insert(0, Without(task["without"]))
    if task["moved"]:
        sys.meta_path.insert(0, StandIns(task["moved"]))
    watch_loads(note)
    note("start", exact)
    try:
        app = load(task, note)
        if not callable(app):
            tell(("failed", "kind", f"is not callable: {type(app).__name__}", "", [], []))
    except NameError_ as error:
        tell(("failed", "name", str(error), "", [], error.names))
    except BaseException as error:
        tell(failure(error, task["module"]))
    note("end", exact)
    if late is not None:
        tell(("late", [(row["module"], row["first_use"] or "") for row in late()]))
    leave(task["pipe"])


def delay(names: "list[str]") -> "Callable[[], list[dict[str, Any]]]":
    """Import these late. Return a function that returns those loaded all the same."""
    from lowmem_wsgi.imports import install, tracker

    install(names or ["lowmem_wsgi"])  # which is loaded: then none is late
    return tracker.loaded


class NameError_(Exception):
    """The module has no such name. `names`: what the module has."""

    def __init__(self, message: str, names: list[str]) -> None:
        super().__init__(message)
        self.names = names


def load(task: "dict[str, Any]", note: "Callable[..., None]") -> object:
    """Import the app, and call the function that makes the app. Return the app."""
    __import__(task["module"])
    module = sys.modules[task["module"]]
    try:
        found = getattr(module, task["name"])
    except AttributeError:
        names = [name for name, value in vars(module).items() if callable(value)]
        raise NameError_(f"has no {task['name']!r}", names) from None
    if not task["call"]:
        return found
    # imports/app_path.py has made sure that this is a call with literal arguments.
    note("open", statm, task["call"], "", "")
    try:
        return eval(task["call"], {task["name"]: found})
    finally:
        note("close", statm)


def watch_loads(note: "Callable[..., None]") -> None:
    """Note each load of a module, of whatever kind, by whatever finder.

    All imports go through this function of importlib. A finder in sys.meta_path with a loader of
    its own would be seen by the app, and would not see what is imported by other means.
    """
    load = bootstrap._load_unlocked

    def _load_unlocked(spec: "Any") -> object:
        note("open", statm, spec.name, spec.origin or "", place(sys._getframe(1)))
        try:
            return load(spec)
        finally:
            note("close", statm)

    # A frame of the import system's: warnings skip such frames, and tracebacks leave them out.
    code = _load_unlocked.__code__.replace(co_filename=load.__code__.co_filename)
    function: Any = type(_load_unlocked)
    bootstrap._load_unlocked = function(
        code, globals(), code.co_name, None, _load_unlocked.__closure__
    )


def place(frame: "FrameType | None") -> str:
    """Return file and line of the code that imports."""
    while frame is not None and frame.f_globals.get("__name__") in MACHINERY:
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


class Without:
    """A finder for sys.meta_path: these packages are not installed."""

    def __init__(self, names: "list[str]") -> None:
        self._names = names

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in self._names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class StandIns:
    """A finder for sys.meta_path: of these packages there are names, but nothing to use.

    Import statements work, also `from package import name`. The first use raises. So an app that
    loads would load as well with these imports inside the functions that need them.
    """

    def __init__(self, names: "list[str]") -> None:
        import opcode

        self._names = names
        self._from = opcode.opmap["IMPORT_FROM"]

    def find_spec(self, name: str, path: object = None, target: object = None) -> "Any":
        if name.partition(".")[0] not in self._names:
            return None
        return bootstrap.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: object) -> None:
        return None

    def exec_module(self, module: "Any") -> None:
        def attribute(name: str) -> object:
            if name[:2] == "__":
                raise AttributeError(name)
            user = sys._getframe(1)
            statement = user.f_code.co_code[user.f_lasti] == self._from
            whole = f"{module.__name__}.{name}"
            if not statement and user.f_globals.get("__name__") not in MACHINERY:
                raise Used(f"{whole} is used while the app loads")
            return _Later(whole)

        module.__getattr__ = attribute


class Used(BaseException):
    """A package is used whose import cannot be moved. No `except Exception` hides this."""


class _Later:
    """What `from package import name` gives where the package has no content. Any use raises."""

    def __init__(self, name: str) -> None:
        self.__dict__["_name"] = name

    def _use(self, *_: object, **__: object) -> "Any":
        raise Used(f"{self.__dict__['_name']} is used while the app loads")

    __call__ = __getattr__ = __setattr__ = __getitem__ = __mro_entries__ = __iter__ = _use
    __or__ = __ror__ = __and__ = __rand__ = __add__ = __radd__ = __sub__ = __rsub__ = _use
    __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __mod__ = __lt__ = __gt__ = __le__ = _use
    __enter__ = __exit__ = __len__ = __bool__ = __contains__ = __int__ = __float__ = _use


# --- What is read


def statm() -> tuple[int, int]:
    """Return the private and the resident memory in bytes. Takes some microseconds.

    Measured on five apps: the same as `exact` to the page.
    """
    fields = read("/proc/self/statm").split(None, 3)
    resident = int(fields[1])
    return (resident - int(fields[2])) * PAGE, resident * PAGE


def exact() -> tuple[int, int]:
    """Return the same from smaps_rollup: exact on every kernel. Takes some milliseconds.

    (Since Linux 6.2, statm may lag by some pages for each processor.)
    """
    try:
        lines = read("/proc/self/smaps_rollup").splitlines()[1:]
    except OSError:
        return statm()
    found = {line.split()[0]: int(line.split()[1]) * 1024 for line in lines}
    return found[b"Anonymous:"], found[b"Rss:"]


def read(path: str) -> bytes:
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, 8192)
    finally:
        os.close(file)


# --- What is written


def noter(tell: "Callable[[tuple[Any, ...]], None]") -> "Callable[..., None]":
    """Return a function that reads time and memory, and tells them. Its own time does not count."""
    spent = 0.0

    def note(kind: str, memory: "Callable[[], tuple[int, int]]", *more: object) -> None:
        nonlocal spent
        began = perf_counter()
        tell((kind, _thread.get_ident(), began - spent, *memory(), *more))
        spent += perf_counter() - began

    return note


def teller(pipe: int) -> "Callable[[tuple[Any, ...]], None]":
    """Return a function that writes to the pipe, in this process only, while the pipe is ours."""
    os.set_inheritable(pipe, False)
    pid, identity = os.getpid(), os.fstat(pipe)[:3]

    def tell(event: "tuple[Any, ...]") -> None:
        try:
            # The app may have forked, or closed all files and opened others.
            if os.getpid() != pid or os.fstat(pipe)[:3] != identity:
                return
            data = marshal.dumps(event)
            while data:
                data = data[os.write(pipe, data) :]
        except BrokenPipeError:  # nobody listens any more
            os._exit(1)
        except OSError:
            return

    return tell


def failure(error: BaseException, module: str) -> "tuple[Any, ...]":
    """Return the event that says why the app cannot be loaded."""
    import traceback

    missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    if missing and (module == missing or module.startswith(f"{missing}.")):
        return ("failed", "module", f"no module named {missing!r}", "", [], [])
    begin, at = error.__traceback__, ""
    while begin is not None and begin.tb_frame.f_globals.get("__name__") in MACHINERY:
        begin = begin.tb_next  # the frames of this file
    below = begin
    while below is not None:
        if below.tb_frame.f_globals.get("__name__") not in MACHINERY:
            at = f"{below.tb_frame.f_code.co_filename}:{below.tb_lineno}"
        below = below.tb_next
    if isinstance(error, SyntaxError) and error.filename:
        at = f"{error.filename}:{error.lineno}"
    text = "".join(traceback.format_exception_only(type(error), error)).strip()
    lines = "".join(traceback.format_exception(type(error), error, begin))
    # Before "SyntaxError: …" come file, line and the text of the line.
    line = text.splitlines()[-1 if isinstance(error, SyntaxError) else 0]
    return ("failed", "raised", line, at, lines.splitlines(), [])


def leave(pipe: int) -> None:
    """End, without waiting for the threads that the app has started."""
    import atexit

    try:
        os.close(pipe)
    except OSError:  # the app has closed all files
        pass
    atexit._run_exitfuncs()
    os._exit(0)


if __name__ == "__main__":
    main(marshal.load(sys.stdin.buffer))
