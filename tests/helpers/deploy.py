"""What the platforms document of their files, as far as ours use it, and a reader of that YAML."""

from __future__ import annotations

import json
import re
from typing import Any

# Documented in Render's Blueprint reference, for a web service.
RENDER = {
    "service": {
        *("type", "name", "runtime", "plan", "buildCommand", "startCommand"),
        *("healthCheckPath", "envVars", "disk"),
    },
    "disk": {"name", "mountPath", "sizeGB"},
    "variable": {"key", "value", "generateValue"},
    "plans": {"starter", "standard", "pro", "pro plus"},
}
# Documented in Fly's reference of fly.toml.
FLY = {
    "": {"app", "kill_signal", "kill_timeout", "processes", "env", "http_service", "vm"},
    "http_service": {
        *("internal_port", "force_https", "auto_stop_machines", "auto_start_machines"),
        *("min_machines_running", "processes", "checks"),
    },
    "checks": {"grace_period", "interval", "method", "path", "timeout"},
    "vm": {"memory", "cpu_kind", "cpus"},
}
DOCKER = {"FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "EXPOSE", "VOLUME", "CMD"}


def blocks(text: str) -> Any:
    """A reader of just the YAML that is written: mappings and lists of them, two spaces a step."""

    def parsed(lines: list[str]) -> Any:
        if lines[0].startswith("- "):
            items: list[list[str]] = []
            for line in lines:
                if line.startswith("- "):
                    items.append([line[2:]])
                else:
                    assert line.startswith("  "), line
                    items[-1].append(line[2:])
            return [parsed(item) for item in items]
        found: dict[str, Any] = {}
        while lines:
            key, _, value = lines.pop(0).partition(":")
            assert re.fullmatch(r"\w+", key), key
            assert key not in found
            inner = []
            while lines and lines[0].startswith("  "):
                inner.append(lines.pop(0)[2:])
            assert bool(inner) != bool(value.strip()), key
            found[key] = parsed(inner) if inner else scalar(value.strip())
        return found

    return parsed([line for line in text.splitlines() if not line.startswith("#")])


def scalar(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    if text.startswith('"'):
        return json.loads(text)
    assert not re.search(r": |\s#|^[\[{&*!|>%@`']", text), text  # plain in YAML
    return text
