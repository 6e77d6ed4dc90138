"""Which fleet a command talks to, and as whom: the same options and variables for every command.

`--url` or OUTRIDER_URL, `--api-key` or OUTRIDER_KEY; otherwise what `outrider up` left in its data folder
(`--data-dir` or OUTRIDER_DATA_DIR) on this machine.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from outrider.runtime.api_client.client import FleetClient
from outrider.runtime.arguments import Parser
from outrider.runtime.errors import BadConfigError, NotFoundError

DEFAULT_DATA_DIR = Path("outrider-data")
DEFAULT_URL = "http://127.0.0.1:8080"

#: What a fleet leaves in its data folder for commands on the same machine: the address of its API, and a key (0600).
URL_FILE = "api.url"
KEY_FILE = "admin.key"

_HINT = "give --api-key or OUTRIDER_KEY, or --data-dir of a fleet on this machine"


def connection_options() -> Parser:
    """A parent parser with `--url`, `--api-key` and `--data-dir`."""
    options = Parser(add_help=False)
    group = options.add_argument_group("fleet")
    group.add_argument("--url", help="the fleet's API (default: OUTRIDER_URL, or the fleet of --data-dir)")
    group.add_argument(
        "--api-key", metavar="KEY", help=f"the API key (default: OUTRIDER_KEY, or {KEY_FILE} in --data-dir)"
    )
    group.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help=f"the data folder of a fleet on this machine (default: OUTRIDER_DATA_DIR, or {DEFAULT_DATA_DIR})",
    )
    return options


def connect(arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> FleetClient:
    """The client for the options; an explicit `--data-dir` goes before the variables.

    A key that lies in the default folder is never sent to an address that was given. Raises NotFoundError where there
    is no key, BadConfigError for an empty key file.
    """
    variables = {} if arguments.data_dir is not None else environment
    named = arguments.data_dir or variables.get("OUTRIDER_DATA_DIR")
    folder = Path(named or DEFAULT_DATA_DIR)
    url = arguments.url or variables.get("OUTRIDER_URL")
    key = arguments.api_key or variables.get("OUTRIDER_KEY")
    if key is None and url is not None and named is None:
        raise NotFoundError(f"there is no API key for {url}", hint=_HINT)
    return FleetClient(url or _running_url(folder), key or read_key_file(folder / KEY_FILE))


def read_key_file(path: Path) -> str:
    """The key in a file. Raises NotFoundError, or BadConfigError for an empty file."""
    try:
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as e:
        raise NotFoundError(f"there is no API key, and {path} cannot be read", hint=_HINT) from e
    if not key:
        raise BadConfigError(f"the API key file {path} is empty")
    return key


def _running_url(folder: Path) -> str:
    try:
        return (folder / URL_FILE).read_text(encoding="ascii").strip()
    except OSError:
        return DEFAULT_URL
