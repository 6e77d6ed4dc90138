"""How every command reads its arguments: one parser, whose errors are UsageErrors."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from outrider.runtime.errors import UsageError


def positive(text: str) -> int:
    """An option's value that counts something: 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


class HelpShown(SystemExit):
    """The help or the version was asked for and printed; nothing else is to be done."""


class Parser(argparse.ArgumentParser):
    """Raises UsageError for arguments that cannot be parsed, HelpShown after `--help`. Options have one spelling."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        """Arguments that cannot be parsed."""
        raise UsageError(message, hint=f"{self.prog} --help explains it")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """After `--help` and `--version`."""
        if message:
            self._print_message(message)
        raise HelpShown(status)
