"""`outrider keys` and `outrider sign`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from outrider.runtime.arguments import Parser
from outrider.runtime.bundle import open_bundle
from outrider.runtime.errors import EXIT_OK, NotFoundError
from outrider.runtime.trust.keys import generate_key, load_private_key, load_public_key, write_key_pair
from outrider.runtime.trust.statements import sign_bundle, signature_path

DEFAULT_NAME = "publisher"


def default_key_folder() -> Path:
    """Where keys lie unless told otherwise: `outrider/keys` in the user's configuration folder."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "outrider" / "keys"


def default_key_path() -> Path:
    """The private key that signs unless another is named."""
    return default_key_folder() / f"{DEFAULT_NAME}.key"


def keys(argv: Sequence[str]) -> int:
    """`outrider keys init` makes a key pair; `outrider keys show` lists the public keys."""
    parser = Parser(prog="outrider keys", description="Make and show signing keys.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = "make a key pair; an existing one is never overwritten"
    init = commands.add_parser("init", help=text, description=f"{text.capitalize()}.")
    init.add_argument("--name", default=DEFAULT_NAME, help=f"name of the key files (default: {DEFAULT_NAME})")
    init.add_argument(
        "--algorithm", choices=("ed25519", "p256"), default="ed25519", help="what to sign with (default: ed25519)"
    )
    text = "list the public keys and their ids"
    show = commands.add_parser("show", help=text, description=f"{text.capitalize()}.")
    folder = default_key_folder()
    for command in (init, show):
        command.add_argument("--dir", type=Path, default=folder, help=f"folder of the keys (default: {folder})")
    arguments = parser.parse_args(argv)
    if arguments.command == "init":
        return _init(arguments.dir, arguments.name, arguments.algorithm)
    return _show(arguments.dir)


def sign(argv: Sequence[str]) -> int:
    """`outrider sign x.orb --key K`: check the bundle and write its detached signature beside it."""
    parser = Parser(prog="outrider sign", description="Sign a bundle: writes x.orb.dsse beside it.")
    parser.add_argument("bundle", type=Path, help="the .orb file")
    default = default_key_path()
    parser.add_argument(
        "--key", type=Path, metavar="FILE", default=default, help=f"the private key (default: {default})"
    )
    arguments = parser.parse_args(argv)
    key = load_private_key(arguments.key)
    bundle = open_bundle(arguments.bundle)
    manifest = bundle.manifest
    sign_bundle(bundle.path, name=manifest.name, version=manifest.version, target=manifest.target, key=key)
    print(f"{signature_path(bundle.path)}: {manifest.name} {manifest.version}, signed by {key.public.keyid[:16]}")
    return EXIT_OK


def _init(folder: Path, name: str, algorithm: str) -> int:
    key = generate_key("p256" if algorithm == "p256" else "ed25519")
    private, public = write_key_pair(key, folder, name)
    print(f"private key  {private}\npublic key   {public}\nkey id       {key.public.keyid}")
    return EXIT_OK


def _show(folder: Path) -> int:
    paths = sorted(folder.glob("*.pub"))
    if not paths:
        raise NotFoundError(f"there are no keys in {folder}", hint="make some with 'outrider keys init'")
    for path in paths:
        public = load_public_key(path)
        print(f"{path.stem}  {public.keyid}\n{public.pem()}", end="")
    return EXIT_OK
