"""The middleware LowMemory: hand each request to the pipeline and the memory engine."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from . import log, runtime
from .admin.in_force import announce
from .admin.routes import Admin
from .guards import out_of_memory
from .guards.keys import Keys
from .http.exchange import Exchange, Stream
from .http.paths import PATH
from .http.wrapped_app import no_attribute, warn_of_flask_run
from .imports import tracker
from .memory.monitor import freed_by_step
from .pipeline import LIMITS, THROUGH, AdminRequest, Pipeline, Request
from .settings import Settings, format_size

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from .admin.status import Readings
    from .runtime import Runtime
    from .workers.lifecycle import Worker


class LowMemory:
    """Wrap a WSGI app so that the app runs in little memory.

        app = LowMemory(app)
        app = LowMemory(app, max_upload="4MB", session_lifetime="30m")

    Every keyword is a row of `Settings`. A setting that is not given comes from its LOWMEM_*
    variable, then from the preset. Raises one SettingsError that lists all wrong settings.
    LowMemory starts no thread and changes nothing in the process before the first request.
    """

    def __init__(self, app: WSGIApplication, **settings: object) -> None:
        self.app = app
        warn_of_flask_run(app)
        self.settings: Settings = Settings.load(settings)
        # The monitor of an earlier app may run already: from here on it also serves this app.
        self.runtime: Runtime = runtime.join(self.settings, self, _INSIDE, THROUGH, tracker.own)
        self.worker: Worker = self.runtime.worker
        self.keys: Keys = Keys(self.settings.secret_key, app)
        self.pipeline: Pipeline = Pipeline(app, self.settings, self.runtime, self.keys)
        self._monitor, self._interrupt = self.runtime.monitor, self.runtime.interrupt
        self._admin = Admin(self).routes()
        self._readings: Readings | None = None  # made at the first call of status()
        self._started = self._logged = False
        self.closed: bool = False
        # Leave also when the app is dropped without close().
        self._leave = weakref.finalize(self, self.runtime.leave)
        self._leave.atexit = False
        self._lock = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if LIMITS in environ:
            return self.pipeline.nested(environ, start_response)
        exchange: Exchange | None = None
        try:
            if not (self._started and self._monitor.running) and not self.closed:
                self._start()
            environ[PATH] = path = environ.get("PATH_INFO", "")
            if path in self._admin:
                serve = self._admin[path]
                exchange = AdminRequest(environ, start_response, self.pipeline, serve)
            else:
                exchange = Request(environ, start_response, self.pipeline)
            return exchange.run()
        except MemoryError:
            self.runtime.ceiling.open_reserve()
            if exchange is not None and exchange.sent:
                raise
            return self.pipeline.last_resort(environ, start_response)
        finally:
            if self._interrupt.striking:
                self._interrupt.settle()

    if not TYPE_CHECKING:  # type checkers would take any name for an attribute

        def __getattr__(self, name):
            raise AttributeError(no_attribute(vars(self).get("app"), name), name=name, obj=self)

    def status(self) -> dict[str, Any]:
        """Return what GET /api/memory-status answers to a client with the token.

        Sizes are in bytes, times in seconds.
        """
        from .admin.status import Readings, status

        if self._readings is None:
            self._readings = Readings()
        return status(self, self._readings)

    def cleanup(self) -> dict[str, Any]:
        """Free what can be freed, now. Return the bytes before, after and freed by each step."""
        result = self.runtime.cleanups.run(why="asked")
        before, after = (format_size(result[f"{when}_bytes"]) for when in ("before", "after"))
        log.logger.info("🧹 asked for: %s → %s (%s)", before, after, freed_by_step(result))
        return result

    def heavy(self) -> list[dict[str, Any]]:
        """Return the heavy modules that are loaded, in bytes and seconds (imports/tracker.py)."""
        return tracker.loaded()

    def start(self) -> None:
        """Start the monitor and the ceiling now rather than at the first request."""
        if not (self._started and self._monitor.running) and not self.closed:
            self._start(fresh=True)

    def close(self) -> None:
        """Stop serving this app. Idempotent.

        When the last app of the process closes, LowMemory restores the interpreter's settings.
        """
        if not self.closed:
            self.closed = True
            self._leave()

    def after_fork(self) -> None:
        """Reset in a new child process, where no request is in flight and no lock is held."""
        self._lock = threading.Lock()
        self._started = False
        self.pipeline.after_fork()

    def _start(self, *, fresh: bool = False) -> None:
        """Do at this app's first request in a process what must not happen at import."""
        try:
            self.runtime.notice_fork()
            self.worker.start(fresh=fresh)  # first: makes the server start its threads
            self.runtime.start()
            heavy = self.settings.heavy_modules
            tracker.listen(self.runtime, heavy, until=self.runtime.on_leave)
            out_of_memory.watch(self.app)
            with self._lock:
                logged, self._logged = self._logged, True
            if not logged:
                announce(self.settings, self.runtime.memory)
        except Exception:
            log.failure("Starting up")
        self._started = True


# A thread that runs one of these code objects is serving a request.
_INSIDE = LowMemory.__call__.__code__, Stream.__next__.__code__
