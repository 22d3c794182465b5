"""Take one request through the guards, to the app, and back (DESIGN: "What happens to a request").

When a guard that protects (uploads, admission, sessions) fails, LowMemory answers 503. When any
other guard fails, LowMemory logs the failure once and the request goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from . import log
from .guards import out_of_memory
from .guards.admission import Admission, busy
from .guards.guard import Guard, Headers
from .guards.keys import Keys
from .guards.sessions import Sessions
from .guards.static_cache import StaticFiles
from .guards.uploads import UploadCap
from .http.body import BODY, DRAIN, Body, drain
from .http.exchange import Exchange, Stream
from .http.paths import PATH, ROUTE
from .http.refusals import ERROR_PAGE, Refusal
from .http.route_names import Names, route_pattern
from .http.traced_route import TracedRoute
from .settings import Settings, format_size

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from .memory.attribution import Attribution
    from .memory.in_flight import InFlight
    from .memory.interrupt import Interrupt
    from .memory.levels import Levels
    from .memory.line_trace import LineTrace
    from .memory.watchdog import Watchdog
    from .runtime import Runtime
    from .workers.lifecycle import Worker
    from .workers.record import WorkerRecord

    Guards = tuple[Guard, ...]

# Keys of the environ, for apps: the level when the request begins, and the limits. If the limits
# are set already, another LowMemory serves the request.
LEVEL = "lowmem.level"
LIMITS = "lowmem.limits"
# Set in the environ of a request whose MemoryError has been counted.
COUNTED = "lowmem.counted"
FOR_APPS = ("session_lifetime", "home_rows", "max_rows", "batch_size", "cache_timeout", "pool_size")

# For the log and the client, when a guard that protects fails.
REFUSED = "the request is answered 503"
UNGUARDED = busy("a rule of lowmem-wsgi has failed, see its traceback", "none, a fault of its own")


class GuardError(Exception):
    """A guard that protects has failed: LowMemory answers 503."""


class Pipeline:
    """The guards of one app, and the parts of the runtime that its requests need."""

    def __init__(
        self, app: WSGIApplication, settings: Settings, runtime: Runtime, keys: Keys
    ) -> None:
        self.app: WSGIApplication = app
        self._app = app
        self._trace: LineTrace | None = None  # while a route is traced
        self.runtime = runtime
        self.in_flight: InFlight = runtime.in_flight
        self.interrupt: Interrupt = runtime.interrupt
        self.watchdog: Watchdog = runtime.watchdog
        self.worker: Worker = runtime.worker
        self.levels: Levels = runtime.levels
        self.attribution: Attribution = runtime.gc_runner.attribution
        self.before_request: Callable[[], None] = runtime.gc_runner.before_request
        self.after_request: Callable[[Callable[[], int]], None] = runtime.gc_runner.after_request
        count = runtime.counters.add
        self.count: Callable[[str], None] = count
        self.error_page: bytes | None = settings.error_page and settings.error_page.html
        self.uploads: UploadCap | None = None
        self.sessions: Sessions | None = None
        static_cache = None
        if settings.max_upload is not None or settings.upload_limits:
            self.uploads = UploadCap(settings.max_upload, settings.upload_limits, count)
        admission = Admission(
            settings.max_in_flight, settings.exempt_paths, runtime.admission, self.in_flight, count
        )
        if settings.session_cookies:
            self.sessions = Sessions(
                settings.session_cookies,
                settings.session_lifetime,
                keys,
                count=count,
                sliding=settings.session_sliding,
                static_prefix=settings.static_prefix,
            )
        if settings.static_max_age is not None:
            static_cache = StaticFiles(settings.static_prefix, settings.static_max_age)
        # In the order in which a request meets them. First the answers 413 and 400: such a request
        # can never succeed. A guard that the settings leave out costs nothing.
        all_guards = (self.uploads, admission, self.sessions, static_cache)
        guards: tuple[Guard, ...] = tuple(guard for guard in all_guards if guard is not None)
        self.entering: Guards = tuple(g for g in guards if type(g).enter is not Guard.enter)
        self.starting: Guards = tuple(g for g in guards if type(g).started is not Guard.started)
        self.amending: Guards = tuple(g for g in guards if type(g).amend is not Guard.amend)
        self.route_name: Names = Names(settings.static_prefix)
        self.limits: Mapping[int | None, Mapping[str, object]] = {
            size: MappingProxyType(
                {"max_upload": size, **{name: getattr(settings, name) for name in FOR_APPS}}
            )
            for size in (self.uploads.limits if self.uploads else {None})
        }
        self.same_limits: Mapping[str, object] | None = (
            None if settings.upload_limits else self.limits[settings.max_upload]
        )

    def trace(self, route: re.Pattern[str], trace: LineTrace) -> None:
        """Let `trace` see each request of the route, until `untrace`."""
        self._trace = trace
        self.app = TracedRoute(self._app, route, trace.begin)

    def untrace(self, trace: LineTrace) -> None:
        """Let `trace` see no more requests, unless another has come in its place."""
        if self._trace is trace:
            self.app, self._trace = self._app, None

    def ending(self) -> bool:
        """Return whether this worker is about to end, replaced by another."""
        return self.worker.retiring

    def after_fork(self) -> None:
        if self._trace is not None:
            self._trace.after_fork()
            self.untrace(self._trace)
        if self.sessions is not None:
            self.sessions.after_fork()

    def limits_for(self, path: str) -> Mapping[str, object]:
        return self.limits[None if self.uploads is None else self.uploads.limit_for(path)]

    def nested(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve a request that another LowMemory has let in, under the stricter upload cap."""
        uploads, outer = self.uploads, environ[LIMITS]["max_upload"]
        limit = None if uploads is None else uploads.limit_for(environ.get("PATH_INFO", ""))
        if uploads is not None and limit is not None and (outer is None or limit < outer):
            refusal = uploads.enter(environ) if outer is None else uploads.tighten(environ, limit)
            if refusal is not None:
                environ[ERROR_PAGE] = self.error_page
                return refusal(environ, start_response)
            environ[LIMITS] = self.limits[limit]
        return self.app(environ, start_response)

    def last_resort(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Answer 503 when no memory is left for any other answer."""
        try:
            self.out_of_memory(environ).report(environ)
        except MemoryError:  # not even memory for the log line
            pass
        return out_of_memory.last_resort(start_response)

    def rescue(
        self, environ: WSGIEnvironment, error: BaseException | None, sent: bool
    ) -> Refusal | None:
        """Return the refusal to send instead of the app's answer; None to send the app's answer.

        `sent`: a part of the answer has left, so LowMemory only logs the refusal.
        """
        refusal = None
        if isinstance(error, MemoryError):
            self.runtime.ceiling.open_reserve()  # first: no memory may be left to go on with
        if out_of_memory.ran_out(environ, error):
            refusal = out_of_memory.elsewhere(environ) or self.out_of_memory(environ)
        elif isinstance(error, GuardError):
            refusal = UNGUARDED
        elif self.uploads and (error is None or isinstance(error, Exception)):
            refusal = self.uploads.fault(environ)
        if refusal is None:
            return None
        if sent:  # too late to tell the client
            refusal.report(environ)
        else:
            environ[ERROR_PAGE] = self.error_page
        return refusal

    def out_of_memory(self, environ: WSGIEnvironment) -> Refusal:
        """Return the refusal of a request that ran out of memory. Count each request once."""
        again = COUNTED in environ
        if not again:
            environ[COUNTED] = True
            self.count("out_of_memory")
        usage = self.runtime.ceiling.usage
        if usage is None:
            return out_of_memory.refusal(
                "of more than could be had", "none, the app asked for more than it could get"
            )
        if not again:
            self.runtime.ceiling.hit()
        figures = f"at {format_size(usage.used)} of {format_size(usage.limit)}"
        return out_of_memory.refusal(figures, "LOWMEM_CEILING")


class Request(Exchange):
    """A request for the app."""

    __slots__ = ("_alone", "_number", "_place", "_record", "_route", "pipeline")

    def __init__(
        self, environ: WSGIEnvironment, start_response: StartResponse, pipeline: Pipeline
    ) -> None:
        self.pipeline: Pipeline = pipeline
        self._number = 0  # among all requests of the process
        self._record: WorkerRecord | None = None
        self._place = -1  # on the shared page
        self._alone: bool | None = None  # None: attribute nothing to the route
        self._route: str | None = None
        Exchange.__init__(self, environ, start_response, pipeline.interrupt)

    def choose(self) -> WSGIApplication:
        """Refuse the request, or make it ready for the app."""
        pipeline, environ = self.pipeline, self.environ
        try:
            path, method = environ[PATH], environ.get("REQUEST_METHOD", "")
            self._number = number = pipeline.in_flight.enter(method, path, id(pipeline))
            for guard in pipeline.entering:
                try:
                    refusal = guard.enter(environ, number)
                except MemoryError:
                    raise
                except Exception as error:
                    failed(guard, error)
                    refusal = None
                if refusal is not None:
                    pipeline.in_flight.leave(number)
                    environ[ERROR_PAGE] = pipeline.error_page
                    return refusal
            if pipeline.watchdog.asleep:
                pipeline.watchdog.wake()
            environ[LIMITS] = pipeline.same_limits or pipeline.limits_for(path)
            environ[LEVEL] = pipeline.levels.level
        except (MemoryError, GuardError):
            raise
        except Exception as error:
            log.failure("Letting a request in", REFUSED)
            raise GuardError from error
        try:
            self._alone = pipeline.in_flight.count() < 2
            if pipeline.attribution.closely:
                pipeline.before_request()
            self._record = record = pipeline.worker.record
            if record is not None:
                self._place = record.began(method, path)
        except MemoryError:
            raise
        except Exception:
            log.failure("Noting a request")
        return pipeline.app

    def started(self) -> None:
        """Read what the framework provides only while the app answers."""
        try:
            self._route = route_pattern(self.environ)
        except MemoryError:
            raise
        except Exception:
            log.failure("Reading a route's name")
        for guard in self.pipeline.starting:
            try:
                guard.started(self.environ)
            except MemoryError:
                raise
            except Exception as error:
                failed(guard, error)

    def amend(self, status: str, headers: Headers) -> Headers:
        for guard in self.pipeline.amending:
            try:
                headers = guard.amend(self.environ, status, headers)
            except MemoryError:
                raise
            except Exception as error:
                failed(guard, error)
        return headers

    def rescue(self, error: BaseException | None, sent: bool) -> WSGIApplication | None:
        environ = self.environ
        if error is None and BODY not in environ and out_of_memory.MARK not in environ:
            return None  # most requests
        return self.pipeline.rescue(environ, error, sent)

    def finish(self, closed: bool) -> None:
        pipeline = self.pipeline
        try:
            pipeline.in_flight.leave(self._number)
            if self.strikes.striking:
                self.strikes.settle()
            if self._record is not None:  # the one that it began on: a fork has another
                self._record.ended(self._place)
                self._record = None
        except MemoryError:
            raise
        except Exception:
            log.failure("Ending a request")
        if not closed:
            return
        if self._alone is not None and pipeline.runtime.users:
            try:
                # Other requests may have begun before this request, or since.
                others = not self._alone or self._number != pipeline.in_flight.latest
                self._alone = None
                route = self._route
                if route is None and ROUTE in self.environ:  # the answer is not the app's
                    route = route_pattern(self.environ)
                name = pipeline.route_name(self.environ, self.status, route)
                pipeline.attribution.ended(name, others)
            except Exception:
                log.failure("Naming a route")
        try:
            if pipeline.runtime.users:
                pipeline.after_request(pipeline.in_flight.count)
            if DRAIN in self.environ:
                drain(self.environ, pipeline.ending)
        except Exception:
            log.failure("Cleaning up after a request")


class AdminRequest(Exchange):
    """Serve an admin route without attributing its memory to the app."""

    __slots__ = ("_pipeline", "_serve")

    def __init__(
        self,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        pipeline: Pipeline,
        serve: WSGIApplication,
    ) -> None:
        self._pipeline = pipeline
        self._serve = serve
        Exchange.__init__(self, environ, start_response, pipeline.interrupt)

    def choose(self) -> WSGIApplication:
        try:
            self._pipeline.runtime.gc_runner.attribute()
        except Exception:
            log.failure("Weighing")
        return self._serve

    def started(self) -> None:
        """Do nothing: no framework answers an admin route."""

    def rescue(self, error: BaseException | None, sent: bool) -> WSGIApplication | None:
        return self._pipeline.rescue(self.environ, error, sent)

    def finish(self, closed: bool) -> None:
        try:
            self._pipeline.runtime.gc_runner.rebase()
        except Exception:
            log.failure("Weighing")
        if closed and DRAIN in self.environ:
            drain(self.environ, self._pipeline.ending)


def failed(guard: Guard, error: Exception) -> None:
    """Log the error that a guard has raised. Raise GuardError if the guard protects."""
    if guard.protects:
        log.failure(guard.name, REFUSED)
        raise GuardError from error
    log.failure(guard.name)


# LowMemory's functions that may run between the code of `_INSIDE` (middleware.py) and the app.
THROUGH = tuple(
    function.__code__
    for function in (
        *(Exchange.run, Exchange.first, Stream.begin, Stream._begin, Pipeline.nested),
        *(Body.read, Body.read1, Body.readline, Body._take, Body._ask, TracedRoute.__call__),
    )
)
