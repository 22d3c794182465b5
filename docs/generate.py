"""Write docs/settings.md from the table in src/lowmem_wsgi/settings/, docs/metrics.md from those
in src/lowmem_wsgi/metrics.py and src/lowmem_wsgi/admin/openmetrics.py, and docs/api.md from the
docstrings of the public names.

python docs/generate.py            write the pages
python docs/generate.py --check    exit with 1 if a page is not what would be written
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lowmem_wsgi
import lowmem_wsgi.imports
from lowmem_wsgi.admin.openmetrics import FAMILIES
from lowmem_wsgi.metrics import COUNTERS
from lowmem_wsgi.offload.call import Offloaded
from lowmem_wsgi.settings import PRESETS, Setting, Settings, SettingsError, table

DOCS = Path(__file__).parent

# Rows that are read and checked but do not act yet, or not in full. Delete a row here when its
# setting begins to act.
NOT_YET = {}

# What is wrong in the page's example of an error: keywords, environment.
WRONG_KEYWORDS = {"max_uplaod": "1MB", "recursion_limit": 5}
WRONG_ENVIRON = {"LOWMEM_TRIM": "yess", "LOWMEM_SESSION_LIFETIME": "ten minutes"}

NOT_YET_TOLD = """ A row that ends in
**bold** does not act yet, or not in full. Its value is read and checked all the same, so that a
configuration written today keeps working."""

TEMPLATE = """\
# Settings

<!-- Made by docs/generate.py from src/lowmem_wsgi/settings/. Do not edit: run `make docs`. -->

## How values are read

* A keyword (`LowMemory(app, max_upload="4MB")`) beats the environment
  (`LOWMEM_MAX_UPLOAD=4MB`), which beats the preset.
* Sizes are counted in 1024s: `512KB`, `4MB`, `1GiB`, or a number of bytes. `KB` and `KiB` are
  the same.
* Durations: `600` and `600s` are seconds, `10m` minutes, `1h` hours, `2d` days, `500ms`
  milliseconds.
* Switches: `1`/`0`, `true`/`false`, `on`/`off`, `yes`/`no`. Anything else is an error, not
  "off".
* An environment variable that is empty counts as not set.
* A keyword may be text, as in the environment, or a ready value: `max_upload=524288`,
  `trim=False`, `session_cookies=["session", "cart"]`. `None` stands for `none`, `auto` or
  `interpreter`.
* An unknown keyword or an unknown `LOWMEM_*` variable is an error: a misspelt limit would be no
  limit.

All that is wrong is reported at once, in one `SettingsError`, when the app is wrapped.
`LowMemory(app, {keywords})` with {environ} in the environment says:

```text
{error}
```

## The table

"same": the same as in balanced. *In italics*: what a value looks like.{not_yet}

| keyword | variable | balanced | memory | ultra | what it is |
|---|---|---|---|---|---|
{rows}

The rows from `memory_limit` to `purge_modules` are explained in [memory.md](memory.md),
`heavy_modules` and `lazy_heavy` in [heavy.md](heavy.md), `recycle` and `ceiling` in
[survive.md](survive.md), `error_page` in
[how-it-works.md](how-it-works.md#an-error-page-of-your-own).

`balanced` is the default. Take `memory` if you want your app to survive and nothing else: no upload
cap, no session lifetime, no rule for static files. `ultra` takes the source document's own numbers,
for comparison:
[source-document.md](source-document.md#lowmem_presetultra) says what that costs.

The rows "for apps" change nothing by themselves. Apps read them, and `level`, `max_upload` and
`session_lifetime`, from `environ["lowmem.limits"]`: see
[how-it-works.md](how-it-works.md#limits-for-the-app).

## Gunicorn's variables

The config `python:lowmem_wsgi.gunicorn` reads four more variables. They keep the names of the
source document.

| variable | default | ultra | what it sets |
|---|---|---|---|
| `WEB_CONCURRENCY` | as many as fit | same | `workers`: processes. Each costs memory. |
| `WORKER_CONNECTIONS` | 3 | same | `threads`: requests that one worker serves at once. |
| `WORKER_TIMEOUT` | 10 | same | `timeout`: seconds a worker may be silent; 0: for ever. |
| `MAX_REQUESTS` | 0 | 3 | `max_requests`: requests after which a worker is replaced; 0: never. |

**As many as fit:** what is left under `warn` after the master has loaded the app, divided by what a
worker may come to need: twice what was loaded, and 32 MB for a request that needs more. At most two
a core (in a container: of its share), at least one. With 400 MB up to `warn` and two cores, an app
of 30 MB gets four workers, one of 60 MB two, one of 93 MB one. The log says how many, and why. It
is one worker where nothing enforces a limit, and in a config of the site's own, which sets
`workers` itself. Heroku sets `WEB_CONCURRENCY` by itself (2 on a dyno of 512 MB): of these,
LowMemory starts only as many as fit. `--workers` holds as it is.

`graceful_timeout` is 25 s: many platforms kill 30 s after they have asked a server to end,
[some sooner](platforms.md#how-long-a-stop-takes).

`GUNICORN_CMD_ARGS` and the command line beat all four, as they beat any Gunicorn config. `PORT`
is read by Gunicorn itself.

The worker class is `gthread`. Its workers are not silent while a request takes long, so
`WORKER_TIMEOUT` does not end a slow request; it ends a worker that hangs as a whole. With
`--worker-class sync` it ends slow requests too.
"""


METRICS = """\
# Metrics

<!-- Made by docs/generate.py from src/lowmem_wsgi/metrics.py and admin/openmetrics.py. Do not edit:
run `make docs`. -->

[How to scrape them](status.md#metrics), and what the other keys of the status document mean.
[A dashboard for Grafana and alert rules](monitoring.md) use them.

## Counters

All workers of the site together, those that are gone as well. The first column is the place in the
[status document](status.md#json).

| in the JSON | metric | what it counts |
|---|---|---|
{counters}

## All metrics

| metric | kind | labels | what it is |
|---|---|---|---|
{families}

`lowmem_level` is a state set (a gauge in the older format). Of routes, there are a hundred at most,
and `other`.
"""


API = """\
# Python API

<!-- Made by docs/generate.py from the public docstrings. Do not edit: run `make docs`. -->

Import these names from `lowmem_wsgi`, and the last two from `lowmem_wsgi.imports`. Every other
module is internal. `lowmem_wsgi.__version__` is the version. `lowmem_wsgi.gunicorn` is a
[Gunicorn config](run.md#gunicorns-options).

An app also finds two values in the WSGI environ, `lowmem.level` and `lowmem.limits`:
[how-it-works.md](how-it-works.md#limits-for-the-app).

{entries}
"""

# What the page shows, in this order: the object, its heading, the methods that a site may call.
PUBLIC: list[tuple[Any, str, tuple[str, ...]]] = [
    (lowmem_wsgi.LowMemory, "LowMemory", ("status", "cleanup", "heavy", "start", "close")),
    (lowmem_wsgi.on_pressure, "on_pressure", ()),
    (lowmem_wsgi.SettingsError, "SettingsError", ()),
    (lowmem_wsgi.offload, "offload", ()),
    (Offloaded, "Offloaded", ("__call__", "submit", "stream")),
    *(
        (getattr(lowmem_wsgi, name), name, ())
        for name in sorted(lowmem_wsgi.__all__)
        if name.startswith("Offload")
    ),
    (lowmem_wsgi.imports.install, "imports.install", ()),
    (lowmem_wsgi.imports.uninstall, "imports.uninstall", ()),
]


def api_page() -> str:
    """docs/api.md, whole."""
    return API.format(entries="\n\n".join(_entries()))


def _entries() -> Iterator[str]:
    for found, name, methods in PUBLIC:
        yield f"## `{name}`"
        bases = [base.__name__ for base in getattr(found, "__bases__", ()) if base is not object]
        if inspect.isclass(found) and issubclass(found, Exception):
            yield f"An exception. Also a: {', '.join(map(_code, bases))}."
        elif found is not Offloaded:
            yield f"```text\n{name}{_signature(found)}\n```"
        yield _markdown(inspect.getdoc(found) or "")
        for method in methods:
            yield f"### `{name}.{method}`"
            function = getattr(found, method)
            yield f"```text\n{method}{_signature(function)}\n```"
            yield _markdown(inspect.getdoc(function) or "")


def _signature(found: Any) -> str:
    """The signature, an argument a line where it is long; without self, and types unquoted."""
    arguments, _, result = str(inspect.signature(found)).rpartition(") -> ")
    if not arguments:
        arguments, result = result.removesuffix(")"), ""
    arguments = re.sub(r": '([^']*)'", r": \1", arguments[1:]).removeprefix("self").lstrip(", ")
    line = f"({arguments})" + (f" -> {result.strip(chr(39))}" if result else "")
    if len(line) < 80:
        return line
    parts = re.sub(r", (?=\*|\w+: )", ",\n    ", arguments)
    return line.replace(arguments, f"\n    {parts},\n")


def _markdown(doc: str) -> str:
    """A docstring as Markdown: indented lines are code; `name   text` is a row of a list."""
    parts = []
    for part in doc.split("\n\n"):
        if part.startswith("    "):
            parts.append("```text\n" + inspect.cleandoc(part) + "\n```")
        elif re.match(r"\w+ {2,}", part):
            rows = re.sub(r"\n {2,}", " ", part)
            parts.append(re.sub(r"^(\w+) {2,}", r"* `\1`: ", rows, flags=re.MULTILINE))
        else:
            parts.append(re.sub(r"\bLOWMEM_[A-Z_*]+", lambda found: _code(found[0]), part))
    return "\n\n".join(parts)


def metrics_page() -> str:
    """docs/metrics.md, whole."""
    counters = []
    for row in COUNTERS:
        labels = ",".join(f'{name}="{value}"' for name, value in row.labels.items())
        metric = f"{row.family}_total" + (f"{{{labels}}}" if labels else "")
        counters.append([_code(row.key), _code(metric) if row.family else "", row.help])
    suffixes = {"counter": "_total", "info": "_info"}
    families = [
        [
            _code(family.name + suffixes.get(family.kind, "")),
            family.kind,
            ", ".join(map(_code, family.labels)),
            family.help,
        ]
        for family in FAMILIES
    ]
    return METRICS.format(counters=_table(counters), families=_table(families))


def _table(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def settings_page() -> str:
    """docs/settings.md, whole."""
    unknown = NOT_YET.keys() - {row.name for row in table()}
    if unknown:
        sys.exit(f"docs/generate.py: NOT_YET names no row of the table: {', '.join(unknown)}")
    return TEMPLATE.format(
        rows="\n".join(_rows()),
        not_yet=NOT_YET_TOLD if NOT_YET else "",
        error=_error(),
        keywords=", ".join(f"{name}={value!r}" for name, value in WRONG_KEYWORDS.items()),
        environ=" and ".join(f"`{name}={value}`" for name, value in WRONG_ENVIRON.items()),
    )


def _rows() -> Iterator[str]:
    for row in table():
        balanced, memory, ultra = (_code(row.defaults[name]) for name in PRESETS)
        cells = [
            _code(row.name),
            _code(row.variable) + (f", else {_code(row.fallback)}" if row.fallback else ""),
            balanced,
            "same" if memory == balanced else memory,
            "same" if ultra == balanced else ultra,
            _meaning(row),
        ]
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _meaning(row: Setting[Any]) -> str:
    expected = row.kind.expected[0].upper() + row.kind.expected[1:]
    secret = " Never shown or logged." if row.secret else ""
    not_yet = f" **{NOT_YET[row.name]}**" if row.name in NOT_YET else ""
    return f"{row.help} *{expected}.*{secret}{not_yet}"


def _code(text: str) -> str:
    return f"`{text}`"


def _error() -> str:
    """What is really said of settings that are wrong."""
    try:
        Settings.load(WRONG_KEYWORDS, WRONG_ENVIRON)
    except SettingsError as error:
        return str(error)
    sys.exit("docs/generate.py: the example of wrong settings is not wrong")


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    stale = 0
    pages = {"settings.md": settings_page, "metrics.md": metrics_page, "api.md": api_page}
    for name, make in pages.items():
        page, text = DOCS / name, make()
        if not arguments:
            page.write_text(text, encoding="utf-8")
        elif not page.exists() or page.read_text(encoding="utf-8") != text:
            print(f"docs/{name} is stale: run `make docs`", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
