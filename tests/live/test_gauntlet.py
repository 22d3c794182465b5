"""`benchmarks/gauntlet`, with two contenders and tiny phases: it runs, goes on, leaves nothing."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.cgroup import cpu_cgroup, cpu_seconds, memory_cgroup
from helpers.servers import SLOWER, clean_environ, wait_for

ROOT = Path(__file__).resolve().parents[2]
PLAIN, RUN = "Gunicorn gthread", "lowmem-wsgi run"
ALL_PHASES = {"steady", "uploads", "spikes", "leak", "runaways", "sessions", "recovery"}


@pytest.fixture(autouse=True)
def _needs_a_cgroup() -> None:
    with memory_cgroup(1 << 29) as group:
        try:
            with cpu_cgroup(group, 1.0) as groups:
                cpu_seconds(groups)
        except (OSError, StopIteration) as error:
            pytest.skip(f"no CPU cgroup can be made here: {error}")


def command(out: Path, *more: str) -> list[str]:
    words = [sys.executable, str(ROOT / "benchmarks" / "gauntlet"), "--plan", "tiny"]
    return [*words, "--out", str(out), "--resume", str(out.parent / "kept.jsonl"), *more]


def environ(tmp_path: Path) -> dict[str, str]:
    return clean_environ({"TMPDIR": str(tmp_path)})


def test_two_contenders_run_and_what_is_kept_is_not_run_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    both = command(out, "--only", PLAIN, "--only", RUN)
    done = subprocess.run(both, env=environ(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    (file,) = out.glob("*.json")
    found = json.loads(file.read_text())
    records: dict[str, dict[str, Any]] = {r["contender"]: r for r in found["records"]}
    assert set(records) == {PLAIN, RUN}
    for record in records.values():
        assert record["missing"] == ""
        assert set(record["phases"]) == ALL_PHASES
        assert all(phase["asked"] > 0 for phase in record["phases"].values())
        assert {"start", "idle", "idle again", *ALL_PHASES} == set(record["trace"])
        assert 20 < record["memory"]["initial"] <= record["memory"]["peak"] <= 513
        assert all(0 < one["cpu"] < 1000 for one in record["steady"])
    assert records[PLAIN]["kills"] == 1
    assert records[PLAIN]["refused"] == 0
    assert records[RUN]["kills"] == 0
    assert records[RUN]["refused"] == 1
    assert records[RUN]["phases"]["uploads"]["wrong"] == 0
    text = (out / "README.md").read_text()
    pictures = re.findall(r'(?:src|srcset)="([^"]+)"', text)
    assert len(pictures) == 6
    assert all((out / name).exists() for name in pictures)
    assert not list(out.glob(".*"))

    began = time.monotonic()
    again = subprocess.run(both, env=environ(tmp_path), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "start" not in again.stdout.partition("\n\n")[0]
    assert json.loads(file.read_text())["records"] == found["records"]
    assert time.monotonic() - began < 60 * SLOWER


@pytest.mark.parametrize(
    ("sent", "more"),
    [
        (signal.SIGINT, ()),
        (signal.SIGTERM, ()),
        (signal.SIGINT, ("--cpu", "0.2", "--only", PLAIN)),
    ],
    ids=["Ctrl-C", "SIGTERM", "Ctrl-C beside the damage of two"],
)
def test_an_interruption_leaves_no_process_no_cgroup_and_no_file(
    tmp_path: Path, sent: signal.Signals, more: tuple[str, ...]
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            # As a job in the background has it.
            ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command(out, "--only", RUN, *more)],
            env=environ(tmp_path),
            stdout=file,
            stderr=file,
        )
    try:
        wait_for(lambda: b": uploads" in log.read_bytes(), log.read_text, 120)
        process.send_signal(sent)
        assert process.wait(60 * SLOWER) == 128 + sent, log.read_text()
    finally:
        process.kill()
    wait_for(lambda: not started_by(tmp_path), lambda: f"{started_by(tmp_path)} to end")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.jsonl", "log"]
    assert (b"Go on with --resume" in log.read_bytes()) == (sent == signal.SIGINT)


def started_by(tmp_path: Path) -> list[str]:
    """Processes that were started with this directory in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if str(tmp_path).encode() in (place / "environ").read_bytes():
                found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has ended, or is somebody else's
            continue
    return found
