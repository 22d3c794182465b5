"""Find how the site is started, and its variables: in the files that its platform reads."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

# Seconds between a platform's SIGTERM and its SIGKILL, unless the site sets them (docs/doctor.md).
GRACE = {"render": 30.0, "heroku": 30.0, "fly": 5.0, "docker": 10.0, "k8s": 30.0}
# What a platform sets in each of its containers.
SIGNS = {
    "render": "RENDER",
    "heroku": "DYNO",
    "fly": "FLY_APP_NAME",
    "k8s": "KUBERNETES_SERVICE_HOST",
}
# In place of a value that only the platform knows. Long enough for a secret.
HIDDEN = "a-value-that-only-the-platform-knows"
# Of the variables that are set by hand, only these take any value.
SECRETS = re.compile("SECRET|TOKEN|KEY|PASS", re.IGNORECASE)


class Deployment(NamedTuple):
    """How the site is started. `words`: of the start command, without its variables."""

    source: str
    words: tuple[str, ...] = ()
    variables: Mapping[str, str] = {}
    grace: float | None = None


def platform_of(environ: Mapping[str, str]) -> str | None:
    """Return the platform that this process runs on, as far as its variables tell."""
    return next((name for name, sign in SIGNS.items() if environ.get(sign)), None)


def find(directory: str, platform: str | None, environ: Mapping[str, str]) -> Deployment | None:
    """Return what the first file says that names a start command; None without such a file.

    Of a platform, only its files are read. Raises OSError.
    """
    for name, (platforms, read) in FILES.items():
        path = os.path.join(directory, name)
        if (platform is None or platform in platforms) and os.path.isfile(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                found = read(file.read())
            if found.words or found.variables:
                return _expanded(found, environ)
    return None


def of_command(text: str, source: str, environ: Mapping[str, str]) -> Deployment:
    """Return a start command as a deployment. Raises ValueError for an open quote."""
    return _expanded(_command(text, source), environ)


def _expanded(found: Deployment, environ: Mapping[str, str]) -> Deployment:
    known = {**environ, **found.variables}
    return found._replace(words=tuple(_expand(word, known) for word in found.words))


def _expand(word: str, known: Mapping[str, str], unknown: str = "0") -> str:
    def value(match: re.Match[str]) -> str:
        name = match["braced"] or match["plain"]
        return known.get(name) or match["default"] or unknown

    return re.sub(
        r"\$(?:\{(?P<braced>\w+)(?::?-(?P<default>[^}]*))?\}|(?P<plain>\w+))", value, word
    )


def _command(text: str, source: str) -> Deployment:
    words = shlex.split(re.split(r"&&|;", text)[-1])
    variables = {}
    while words and (words[0] in ("exec", "env") or re.match(r"\w+=", words[0])):
        name, equals, value = words.pop(0).partition("=")
        if equals:
            variables[name] = value
    return Deployment(source, tuple(words), variables)


def _procfile(text: str) -> Deployment:
    found = re.search(r"^web:\s*(.+)$", text, re.MULTILINE)
    return _command(found[1], "Procfile") if found else Deployment("Procfile")


def _render(text: str) -> Deployment:
    text = _web_service(text)
    found = _value("startCommand", text)
    made = _command(found, "render.yaml") if found else Deployment("render.yaml")
    pairs = re.findall(
        r"^\s*-\s+key:\s*(\w+)\s*\n\s+(value|generateValue|sync|fromDatabase|fromService|fromGroup)"
        r":\s*(.*?)\s*$",
        text,
        re.MULTILINE,
    )
    given = {
        name: _unquoted(value) if kind == "value" else HIDDEN
        for name, kind, value in pairs
        if kind != "sync" or SECRETS.search(name)
    }
    delay = re.search(r"^\s*maxShutdownDelaySeconds:\s*(\d+)", text, re.MULTILINE)
    return made._replace(
        variables={**given, **made.variables}, grace=float(delay[1]) if delay else None
    )


def _web_service(text: str) -> str:
    """Return the text of the first service of the type web; of the first, if none has a type."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    _, found, services = text.rpartition("services:\n")
    if not found:
        return text
    services = re.split(r"^\S(?<!-)", services, maxsplit=1, flags=re.MULTILINE)[0]
    item = re.match(r"\s*?( *)-", services)
    each = re.split(rf"^{item[1]}-", services, flags=re.MULTILINE)[1:] if item else [services]
    return next(
        (one for one in each if re.search(r"^\s*type:\s*['\"]?web\b", one, re.MULTILINE)), each[0]
    )


def _value(key: str, text: str) -> str:
    """Return the text of a key of YAML, also one of several lines; "" without the key."""
    found = re.search(rf"^(?P<before>\s*?(?:- *)?){key}:[ \t]*(?P<first>.*)$", text, re.MULTILINE)
    if not found:
        return ""
    depth, lines = len(found["before"].lstrip("\n")), []
    for line in text[found.end() + 1 :].splitlines():
        if line.strip() and len(line) - len(line.lstrip()) <= depth:
            break
        lines.append(line.strip())
    first = re.sub(r"\s+#.*$", "", found["first"].strip())
    if first[:1] in (">", "|"):  # folded: one line; else a line each
        joined = "\n".join(lines).strip().replace("\\\n", " ")
        return joined.replace("\n", " " if first[0] == ">" else "; ")
    return _unquoted(" ".join([first, *lines]).strip())


def _unquoted(text: str) -> str:
    text = re.sub(r"\s+#.*$", "", text)
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _dockerfile(text: str) -> Deployment:
    text = re.sub(r"\\\n", " ", text)
    given: dict[str, str] = {}
    commands = {"ENTRYPOINT": "", "CMD": ""}
    for line in text.splitlines():
        name, _, rest = line.strip().partition(" ")
        if name.upper() == "ENV":
            pairs = _env(rest.strip())
            given |= {key: _expand(value, given, "") for key, value in pairs.items()}
        elif name.upper() in commands:
            commands[name.upper()] = rest.strip()
    made = _command(_container_command(commands["ENTRYPOINT"], commands["CMD"]), "Dockerfile")
    return made._replace(variables={**given, **made.variables})


def _container_command(entry_point: str, command: str) -> str:
    """Return what Docker runs: with an entry point that is a list, CMD is its arguments."""
    if entry_point and not entry_point.startswith("["):
        return entry_point
    words = [*_exec_form(entry_point), *_exec_form(command)]
    if "-c" in words[:3] and os.path.basename(words[0]) in ("sh", "bash"):
        return words[words.index("-c") + 1] if words[-1] != "-c" else ""
    return shlex.join(words) if command.startswith("[") or not command else command


def _exec_form(text: str) -> list[str]:
    try:
        found = json.loads(text)
    except ValueError:
        return []
    return [str(word) for word in found] if isinstance(found, list) else []


def _env(rest: str) -> dict[str, str]:
    """Return the pairs of Docker's ENV: `A=b C=d`, or the old form `A b`."""
    if "=" not in rest.partition(" ")[0]:
        name, _, value = rest.partition(" ")
        return {name: value}
    return dict(word.partition("=")[::2] for word in shlex.split(rest) if "=" in word)


def _fly(text: str) -> Deployment:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        return Deployment("fly.toml")
    try:
        found: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return Deployment("fly.toml")
    commands = _table(found, "processes")
    command = commands.get("app") or next(iter(commands.values()), "")
    made = _command(str(command), "fly.toml")
    given = {name: str(value) for name, value in _table(found, "env").items()}
    delay = re.fullmatch(r"(\d+)\s*s?", str(found.get("kill_timeout", "")))
    return made._replace(
        variables={**given, **made.variables}, grace=float(delay[1]) if delay else None
    )


def _table(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a table of a TOML file; an empty one if there is none of this name."""
    table = found.get(name)
    return table if isinstance(table, dict) else {}


FILES: dict[str, tuple[Sequence[str], Callable[[str], Deployment]]] = {
    "render.yaml": (("render",), _render),
    "Procfile": (("heroku", "fly"), _procfile),
    "fly.toml": (("fly",), _fly),
    "Dockerfile": (("docker", "k8s", "fly"), _dockerfile),
}


def server_of(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return what serves: `run`, `gunicorn` or None for another server; and its arguments."""
    for place, word in enumerate(words):
        name = os.path.basename(word)
        rest = [*words[place + 1 :]]
        if name == "gunicorn" or word == "lowmem-wsgi":
            break
        if word == "-m" and rest[:1] in (["gunicorn"], ["lowmem_wsgi"]):
            name, rest = rest[0], rest[1:]
            break
    else:
        return None, []
    if name == "gunicorn":
        return "gunicorn", rest
    return (
        ("run", [word for word in rest[1:] if word not in ("--check", "--dry-run")])
        if (rest[:1] == ["run"])
        else (None, [])
    )
