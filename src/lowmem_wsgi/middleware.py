"""LowMemory: where a request meets the memory engine."""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from . import log, runtime
from ._version import __version__
from .admin.routes import Admin
from .guards import out_of_memory
from .guards.admission import Admission, busy
from .guards.keys import Keys
from .guards.sessions import Sessions
from .guards.static_cache import StaticFiles
from .guards.uploads import UploadCap
from .http.body import DRAIN, Body, drain
from .http.exchange import Exchange, Stream
from .http.paths import PATH
from .http.refusals import Refusal
from .http.route_names import Names, told
from .imports import tracker
from .memory.monitor import freed_by_step
from .settings import Settings, format_size

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    Headers = list[tuple[str, str]]

# In the environ, for apps: the level as the request begins, and the limits. Where limits are there
# already, another LowMemory serves the request.
LEVEL = "lowmem.level"
LIMITS = "lowmem.limits"
# In the environ of a request whose MemoryError is counted.
COUNTED = "lowmem.counted"
FOR_APPS = ["session_lifetime", "home_rows", "max_rows", "batch_size", "cache_timeout", "pool_size"]


# What becomes of a request when a rule that protects (admission, uploads, sessions) fails.
REFUSED = "the request is answered 503"
UNGUARDED = busy("a rule of lowmem-wsgi has failed, see its traceback", "none, a fault of its own")


class GuardError(Exception):
    """A rule that protects has failed while the app's answer was made ready."""


class LowMemory:
    """Wraps a WSGI app so that it lives in little memory.

        app = LowMemory(app)
        app = LowMemory(app, max_upload="4MB", session_lifetime="30m")

    Every keyword is a row of `Settings`; what is not given comes from LOWMEM_* variables, then
    from the preset. Raises SettingsError for all that is wrong with them. Starts no thread and
    changes nothing in the process before the first request.
    """

    def __init__(self, app: WSGIApplication, **settings: object) -> None:
        self.app = app
        self.settings = rules = Settings.load(settings)
        # Another app's monitor may be at work: from here on it sees this one.
        self.runtime = runtime.join(rules, self, _INSIDE, _THROUGH, tracker.own)
        self._in_flight = self.runtime.in_flight
        self._count = count = self.runtime.counters.add
        self._admission = Admission(
            rules.max_in_flight, rules.exempt_paths, self.runtime.admission, self._in_flight, count
        )
        self.uploads = UploadCap(rules.max_upload, rules.upload_limits, count)
        self.keys = Keys(rules.secret_key, app)
        self.sessions = Sessions(
            rules.session_cookies,
            rules.session_lifetime,
            self.keys,
            count=count,
            sliding=rules.session_sliding,
            static_prefix=rules.static_prefix,
        )
        self._static = StaticFiles(rules.static_prefix, rules.static_max_age)
        self._names = Names(rules.static_prefix)
        self._interrupt = self.runtime.interrupt
        self._watchdog = self.runtime.watchdog
        self.worker = self.runtime.worker
        self._limits = {
            limit: MappingProxyType(self._told_to_apps(limit)) for limit in self.uploads.limits
        }
        self._monitor = self.runtime.monitor
        self._after_request = self.runtime.gc_runner.after_request
        self._growth = self.runtime.gc_runner.attribution
        self._steps = self._amend, self._rescue, self._finish, self._begun, self._interrupt
        self._admin_steps = (
            *(_unamended, self._rescue, self._finish_admin, _nothing),
            self._interrupt,
        )
        self._admin = {
            path: functools.partial(self._answer, route)
            for path, route in Admin(self).routes().items()
        }
        self._started = self._told = self._closed = False
        # An app that is thrown away without close() leaves all the same.
        self._leave = weakref.finalize(self, self.runtime.leave)
        self._leave.atexit = False
        self._lock = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if LIMITS in environ:
            return self._nested(environ, start_response)
        exchange = None
        try:
            if not (self._started and self._monitor.running) and not self._closed:
                self._start()
            environ[PATH] = path = environ.get("PATH_INFO", "")
            answer = self._admin.get(path)
            if answer is not None:
                exchange = Exchange(environ, start_response, *self._admin_steps)
                return exchange.run(answer)
            exchange = Exchange(environ, start_response, *self._steps)
            return exchange.run(self._guard)
        except MemoryError:
            self.runtime.ceiling.open_reserve()
            if exchange is not None and exchange.sent:
                raise
            return self._last_resort(environ, start_response)
        finally:
            if self._interrupt.striking:
                self._interrupt.settle()

    def _nested(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve a request that another LowMemory has let in: hold it to the stricter upload cap."""
        limit = self.uploads.limit_for(environ.get("PATH_INFO", ""))
        if limit < environ[LIMITS]["max_upload"]:
            refusal = self.uploads.tighten(environ, limit)
            if refusal is not None:
                return refusal(environ, start_response)
            environ[LIMITS] = self._limits[limit]
        return self.app(environ, start_response)

    def _answer(self, route: WSGIApplication, exchange: Exchange) -> WSGIApplication:
        """Serve an admin route without attributing its memory to the app."""
        self._attempt(self.runtime.gc_runner.settle)
        return route

    def _finish_admin(self, exchange: Exchange, closed: bool) -> None:
        self._attempt(self.runtime.gc_runner.rebase)
        if closed and DRAIN in exchange.environ:
            drain(exchange.environ)

    def _attempt(self, weighing: Callable[[], None]) -> None:
        try:
            weighing()
        except Exception:
            log.failure("Weighing")

    def status(self) -> dict[str, Any]:
        """What GET /api/memory-status answers to who has the token. Bytes and seconds."""
        from .admin.status import status

        return status(self)

    def cleanup(self) -> dict[str, Any]:
        """Free what can be freed, now. Bytes before, after and freed by each step."""
        result = self.runtime.cleanups.run(why="asked")
        log.logger.info(
            "🧹 asked for: %s → %s (%s)",
            format_size(result["before_bytes"]),
            format_size(result["after_bytes"]),
            freed_by_step(result),
        )
        return result

    def heavy(self) -> list[dict[str, Any]]:
        """The heavy modules that are loaded (see imports/tracker.py). Bytes and seconds."""
        return tracker.loaded()

    def start(self) -> None:
        """Start now what the first request would start: the monitor, the ceiling."""
        if not (self._started and self._monitor.running) and not self._closed:
            self._start(fresh=True)

    def close(self) -> None:
        """Serve no more: the last app of a process to close leaves the interpreter as it was."""
        if not self._closed:
            self._closed = True
            self._leave()

    def after_fork(self) -> None:
        """In a new child: no request is in flight, and no lock held."""
        self._lock = threading.Lock()
        self._started = False
        self.sessions.after_fork()

    # --- A request, from its start to after its last byte

    def _guard(self, exchange: Exchange) -> WSGIApplication:
        """Refuse the request, or make it ready for the app; who answers it. A rule that fails here
        protects, so the request is refused."""
        environ = exchange.environ
        try:
            path, method = environ[PATH], environ.get("REQUEST_METHOD", "")
            exchange.request = number = self._in_flight.enter(method, path, id(self))
            # 413 and 400 first: where the request can never succeed, whatever else there is to say.
            refusal = self.uploads.refusal(environ) or self._admission.refusal(environ, number)
            if refusal is not None:
                self._in_flight.leave(number)
                return refusal
            if self._watchdog.asleep:
                self._watchdog.wake()
            self.sessions.open(environ)
            environ[LIMITS] = self._limits[self.uploads.limit_for(path)]
            environ[LEVEL] = self._monitor.level
        except MemoryError:
            raise
        except Exception:
            log.failure("A guard", REFUSED)
            return UNGUARDED
        try:
            exchange.order = number if self._in_flight.count() < 2 else -1
            exchange.place = self.worker.began(method, path)
        except MemoryError:
            raise
        except Exception:
            log.failure("Noting a request")
        return self.app

    def _rescue(
        self, environ: WSGIEnvironment, error: BaseException | None, sent: bool
    ) -> WSGIApplication | None:
        """Another answer, where the app's is none that we can let out."""
        refusal = None
        if isinstance(error, MemoryError):
            self.runtime.ceiling.open_reserve()  # first of all: there may be none to go on with
        if out_of_memory.ran_out(environ, error):
            refusal = out_of_memory.elsewhere(environ) or self._ran_out_of_memory(environ)
        elif isinstance(error, GuardError):
            refusal = UNGUARDED
        elif error is None or isinstance(error, Exception):
            refusal = self.uploads.fault(environ)
        if refusal is not None and sent:  # too late to say it to the client
            refusal.report(environ)
        return refusal

    def _begun(self, exchange: Exchange) -> None:
        """Read what the framework tells while it answers, and not afterwards."""
        try:
            exchange.route = told(exchange.environ)
            if "werkzeug.request" in exchange.environ:
                self._static.begun(exchange.environ)
        except MemoryError:
            raise
        except Exception:
            log.failure("Reading a route's name")

    def _amend(self, environ: WSGIEnvironment, status: str, headers: Headers) -> Headers:
        try:
            headers = self.sessions.amend(environ, headers)
        except MemoryError:
            raise
        except Exception as error:
            log.failure("Sealing a session", REFUSED)
            raise GuardError from error
        try:
            return self._static.amend(environ, status, headers)
        except MemoryError:
            raise
        except Exception:
            log.failure("The rule for static files")
            return headers

    def _finish(self, exchange: Exchange, closed: bool) -> None:
        """End the request. A MemoryError meant for it may come at any line; then this is called
        again, so each step is harmless when repeated."""
        try:
            self._in_flight.leave(exchange.request)
            if self._interrupt.striking:
                self._interrupt.settle()
            if exchange.place >= 0:
                self.worker.ended(exchange.place)
                exchange.place = -1
        except MemoryError:
            raise
        except Exception:
            log.failure("Ending a request")
        if not closed:
            return
        try:
            order, exchange.order = exchange.order, 0
            if not self._closed:
                if order:
                    self._book(exchange, order)
                self._after_request(self._in_flight.count)
            if DRAIN in exchange.environ:
                drain(exchange.environ)
        except Exception:
            log.failure("Cleaning up after a request")

    def _book(self, exchange: Exchange, order: int) -> None:
        try:
            others = order != self._in_flight.latest  # there were some, before it or since
            route = exchange.route or told(exchange.environ)  # where the answer is not the app's
            name = self._names(exchange.environ, exchange.status, route)
            self._growth.ended(name, others)
        except Exception:
            log.failure("Naming a route")

    def _ran_out_of_memory(self, environ: WSGIEnvironment) -> Refusal:
        again = COUNTED in environ  # asked for repeatedly
        if not again:
            environ[COUNTED] = True
            self._count("out_of_memory")
        usage = self.runtime.ceiling.usage
        if usage is None:
            return out_of_memory.refusal(
                "of more than could be had", "none, the app asked for more than it could get"
            )
        if not again:
            self.runtime.ceiling.hit()
        figures = f"at {format_size(usage.used)} of {format_size(usage.limit)}"
        return out_of_memory.refusal(figures, "LOWMEM_CEILING")

    def _last_resort(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        try:
            self._ran_out_of_memory(environ).report(environ)
        except MemoryError:  # no memory even for the line in the log
            pass
        return out_of_memory.last_resort(start_response)

    def _start(self, *, fresh: bool = False) -> None:
        """At this app's first request in a process: what must not happen at import."""
        try:
            self.runtime.notice_fork()
            self.worker.start(fresh=fresh)  # first: it has the server start its threads
            self.runtime.start()
            self._track_loads()
            try:
                out_of_memory.watch()
            except Exception:
                log.failure("Listening to the framework's errors")
            with self._lock:
                told, self._told = self._told, True
            if not told:
                log.logger.info("lowmem-wsgi %s: %s", __version__, self._in_force())
        except Exception:
            log.failure("Starting up")
        self._started = True

    def _track_loads(self) -> None:
        before = tracker.installed()
        found = tracker.install(self.settings.heavy_modules)
        found.attach(self.runtime)
        self.runtime.on_leave(functools.partial(found.detach, self.runtime))
        if before is None:
            self.runtime.on_leave(found.stop)

    def _told_to_apps(self, max_upload: int) -> dict[str, object]:
        limits = {name: getattr(self.settings, name) for name in FOR_APPS}
        return {"max_upload": max_upload, **limits}

    def _in_force(self) -> str:
        """The limits that are on, each with the variable that governs it."""
        rules = self.settings
        limits = [
            f"preset {rules.preset}",
            f"uploads to {format_size(rules.max_upload)} (LOWMEM_MAX_UPLOAD)",
        ]
        limits += [
            f"{path} to {format_size(size)} (LOWMEM_UPLOAD_LIMITS)"
            for path, size in (rules.upload_limits or {}).items()
        ]
        limits += [
            f"sessions for {rules.session_lifetime:g} s (LOWMEM_SESSION_LIFETIME)",
            f"static files cached for {rules.static_max_age:g} s (LOWMEM_STATIC_MAX_AGE)",
            f"{rules.gc_passes} passes after each request (LOWMEM_GC_PASSES)",
        ]
        if rules.max_in_flight is not None:
            limits.append(f"{rules.max_in_flight} requests at once (LOWMEM_MAX_IN_FLIGHT)")
        if rules.gc_threshold is not None:
            limits.append(f"collector's threshold {rules.gc_threshold} (LOWMEM_GC_THRESHOLD)")
        if rules.recursion_limit is not None:
            limits.append(f"recursion to {rules.recursion_limit} (LOWMEM_RECURSION_LIMIT)")
        lazy = sys.modules.get(f"{__package__}.imports.lazy")  # loaded where it is in use
        late = lazy.installed() if lazy is not None else ()
        if late:
            limits.append(f"{', '.join(late)} imported late (LOWMEM_LAZY_HEAVY)")
        elif rules.lazy_heavy:
            limits.append(
                "nothing imported late: that takes our Gunicorn config, or imports.install() "
                "before the app's imports (LOWMEM_LAZY_HEAVY)"
            )
        limits += [
            f"no {name} (LOWMEM_{name.upper()})"
            for name in ("gc_freeze", "trim")
            if not getattr(rules, name)
        ]
        return ", ".join(limits)


# While a thread is in one of these, it is at an app's request.
_INSIDE = LowMemory.__call__.__code__, Stream.__next__.__code__
# What of ours may run between those and the app.
_THROUGH = tuple(
    function.__code__
    for function in (
        *(Exchange.run, Exchange.first, Stream._begin, LowMemory._nested),
        *(Body.read, Body.read1, Body.readline, Body._take, Body._ask),
    )
)


def _unamended(environ: WSGIEnvironment, status: str, headers: Headers) -> Headers:
    return headers


def _nothing(exchange: Exchange) -> None:
    pass
