"""Options of the commands: what is wrong with one is told in one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

from ..settings import parse_duration
from .tell import WRONG, tell


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations that tells an error in one line. The exit code is WRONG."""

    def __init__(self, command: str, *, description: str, epilog: str) -> None:
        super().__init__(
            prog=f"lowmem-wsgi {command}",
            allow_abbrev=False,
            description=description,
            epilog=epilog,
        )
        self._command = command

    def error(self, message: str) -> NoReturn:
        tell(f"{self._command}: {message}; see lowmem-wsgi {self._command} --help")
        raise SystemExit(WRONG)


def kind(expected: str, parse: Callable[[str], object]) -> Callable[[str], object]:
    """Return `parse` with an error that says what was expected."""

    def parsed(text: str) -> object:
        try:
            return parse(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {expected}, not {text!r}") from None

    return parsed


def positive_duration(text: str) -> float:
    """Return seconds. Raises ValueError for none."""
    seconds = parse_duration(text)
    if seconds <= 0:
        raise ValueError(text)
    return seconds


def count(least: int, most: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from `least` to `most`."""

    def parsed(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise ValueError(text)
        number = int(text)
        if not least <= number <= most:
            raise ValueError(text)
        return number

    return parsed
