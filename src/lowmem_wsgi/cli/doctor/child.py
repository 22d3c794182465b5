"""In a child process of the doctor: load the app as Gunicorn's master does, fork a worker, ask it.

What is measured goes through a pipe as it comes, a line of JSON each: the process may be killed at
any moment, and the doctor then knows how far it came.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from ...imports.app_path import NoSuchApp, load
from ...settings import MB, Settings, SettingsError
from ...system.procfs import read_statm
from ..children import end_with_parent
from .asking import ask_all
from .ends import DONE, ended
from .loading import load_measured
from .pages import find_pages, worth_asking
from .server_config import gunicorn_config
from .telling import Tell, raised
from .traits import compiled, digest, of_wrapped, templates, wrapped

_CONFIG = "lowmem_wsgi.gunicorn"


def main() -> None:
    """Tell all of it, then end at once: the app's threads may run for ever."""
    plan = json.loads(sys.argv[1])
    with os.fdopen(plan["pipe"], "w", buffering=1, encoding="utf-8") as pipe:

        def tell(line: dict[str, Any]) -> None:
            pipe.write(json.dumps(line) + "\n")

        try:
            examine(plan, tell)
        except NoSuchApp as error:
            tell({"no_app": str(error)})
        except SettingsError as error:
            tell({"problems": error.problems})
        except SystemExit as error:
            tell({"failure": {"kind": "exited", "text": f"sys.exit({error.code!r})"}})
        except MemoryError:
            tell({"failure": {"kind": "memory"}})
        except BaseException as error:
            tell({"failure": raised(error)})
        tell({DONE: True})
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(0)


def examine(plan: Mapping[str, Any], tell: Tell) -> None:
    """Measure what the plan asks for, and tell it."""
    if plan["data_limit"]:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (plan["data_limit"], hard))
    tell({"at": "config", "ceiling_works": _ceiling_works()})
    path, threads = plan["app"] or plan["guess"], 3
    if plan["gunicorn"] is not None:
        config = gunicorn_config(plan["gunicorn"], plan["app"], plan["guess"])
        path, threads = config.pop("app"), config["threads"]
        tell({"config": config})
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if not plan["load"]:
        return
    if path is None:
        raise NoSuchApp("")
    tell({"at": "load", "app": path})
    if plan["only_secret"]:
        tell({"digest": digest(load(path))})
        return
    wrap = _CONFIG in sys.modules  # the config wraps the app
    if wrap:
        settings = Settings.load()
        if settings.lazy_heavy:
            from ...imports import install

            install(settings.heavy_modules)
    app = load_measured(path, tell)
    ours = wrapped(app)
    tell({"wrapped": bool(ours or wrap), "python": compiled(), "digest": digest(app)})
    if wrap and not ours:
        from ...middleware import LowMemory

        app = LowMemory(app)
        ours = [app]
    if ours:
        tell({"settings": of_wrapped(ours[0].settings)})
    with contextlib.suppress(Exception):
        tell({"templates": templates(app)})
    pages = find_pages(app)
    tell({"pages": pages})
    gc.collect()
    if ours:
        gc.freeze()
    wanted = plan["paths"] if plan["paths"] is not None else worth_asking(pages)
    _fork(app, ours, wanted, threads, tell)


def _ceiling_works() -> bool:
    """Return whether this system keeps to RLIMIT_DATA, on which the ceiling rests."""
    try:
        import mmap
        import resource

        statm = read_statm()
        if statm is None:
            return False
        before = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (statm.data + 8 * MB, before[1]))
        try:
            mmap.mmap(-1, 32 * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
        except (OSError, MemoryError):
            return True
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, before)
    except (ImportError, AttributeError, OSError, ValueError):
        pass
    return False


def _fork(app: Any, ours: list[Any], paths: list[str], threads: int, tell: Tell) -> None:
    pid = os.fork()
    if not pid:
        try:
            end_with_parent()
            for layer in ours[:1]:
                layer.start()
            ask_all(app, paths, threads, tell)
        except MemoryError:
            tell({"failure": {"kind": "memory"}})
        except BaseException as error:
            tell({"failure": raised(error)})
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        tell({"failure": ended(code)})


if __name__ == "__main__":
    main()
