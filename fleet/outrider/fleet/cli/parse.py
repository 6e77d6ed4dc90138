"""What the fleet's commands share: parsing, and finding the fleet that they talk to."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from outrider.fleet.auth import read_key_file
from outrider.fleet.settings import FleetSettings
from outrider.runtime.api_client import FleetClient
from outrider.runtime.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Raises UsageError instead of leaving the process."""

    def error(self, message: str) -> NoReturn:
        """A command that cannot be parsed."""
        raise UsageError(message, hint=f"{self.prog} --help explains it")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace | None:
    """The arguments, or None where the help was asked for and printed."""
    try:
        return parser.parse_args(list(argv))
    except SystemExit:
        return None


def connection_options(*key_flags: str) -> Parser:
    """A parent parser with the options that say which fleet to talk to, and as whom (`key_flags`)."""
    options = Parser(add_help=False)
    group = options.add_argument_group("fleet")
    group.add_argument("--url", help="the fleet's API (OUTRIDER_URL; the fleet of --data-dir)")
    group.add_argument(
        *key_flags, dest="api_key", metavar="KEY", help="the API key (OUTRIDER_KEY; admin.key in --data-dir)"
    )
    group.add_argument("--data-dir", type=Path, help="data folder of a fleet on this machine (OUTRIDER_DATA_DIR)")
    return options


def connect(arguments: argparse.Namespace) -> FleetClient:
    """The client for the options. Raises NotFoundError where no key is to be found."""
    default = FleetSettings(data_dir=Path(os.environ.get("OUTRIDER_DATA_DIR", FleetSettings().data_dir)))
    fleet = FleetSettings(data_dir=arguments.data_dir) if arguments.data_dir else default
    url = arguments.url or (None if arguments.data_dir else os.environ.get("OUTRIDER_URL")) or _running_url(fleet)
    key = arguments.api_key or (None if arguments.data_dir else os.environ.get("OUTRIDER_KEY"))
    return FleetClient(url, key or read_key_file(fleet.admin_key_path))


def _running_url(fleet: FleetSettings) -> str:
    try:
        return fleet.url_path.read_text(encoding="ascii").strip()
    except OSError:
        return f"http://{fleet.host}:{fleet.port}"
