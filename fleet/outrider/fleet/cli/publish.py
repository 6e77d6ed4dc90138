"""`outrider publish`: sign a bundle where it needs it, and upload it to the fleet's registry."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from outrider.runtime.api_client.connect import connect, connection_options
from outrider.runtime.arguments import Parser
from outrider.runtime.bundle import Bundle, open_bundle
from outrider.runtime.errors import EXIT_OK, DigestMismatchError, GoalUnmetError, TrustError, UnsignedError
from outrider.runtime.trust import (
    BUNDLE_TYPE,
    Envelope,
    PrivateKey,
    TrustStore,
    decode_envelope,
    encode_envelope,
    load_private_key,
    sign_bundle,
    verify_bundle,
)
from outrider.runtime.trust.cli import default_key_path
from outrider.runtime.trust.statements import signature_path


def main(argv: Sequence[str]) -> int:
    """Sign, upload, and print the release."""
    arguments = _parser().parse_args(argv)
    client = connect(arguments)
    key = None if arguments.key is None else load_private_key(arguments.key)
    console = Console(highlight=False)
    status = Console(stderr=True).status if sys.stderr.isatty() else None
    for path in arguments.bundle:
        bundle = open_bundle(path)
        if not arguments.unmet:
            refuse_unmet(bundle)
        envelope = signature(bundle, key)
        if status is not None:
            with status(f"publishing {path.name}"):
                info = client.publish_bundle(path, encode_envelope(envelope))
        else:
            info = client.publish_bundle(path, encode_envelope(envelope))
        console.print(
            f"{info.name}:{info.version} for {info.target}, release {info.release}, sha256 {info.sha256}",
            soft_wrap=True,
        )
    return EXIT_OK


def refuse_unmet(bundle: Bundle) -> None:
    """Raises GoalUnmetError for a bundle of the candidate that came closest to goals which none met."""
    missed = [goal.text for goal in bundle.manifest.goals if goal.met is False]
    if missed:
        raise GoalUnmetError(
            f"{bundle.path} does not meet the goals that it was compiled for: {', '.join(missed)}",
            hint="--unmet publishes it all the same",
        )


def signature(bundle: Bundle, key: PrivateKey | None) -> Envelope:
    """The bundle's signature: the one beside it where it holds (by `key`, if given), else a new one by `key`.

    An unsigned bundle is signed by the default key where no other is given. Raises UnsignedError where there is none.
    """
    beside = signature_path(bundle.path)
    if beside.exists():
        envelope = decode_envelope(beside.read_bytes())
        if key is None:
            return envelope
        try:
            verify_bundle(bundle.path, TrustStore({BUNDLE_TYPE: [key.public]}), envelope)
        except (TrustError, DigestMismatchError):
            pass  # by another key, or over an earlier build of the file
        else:
            return envelope
    key = key or _default_key(bundle.path)
    manifest = bundle.manifest
    return sign_bundle(bundle.path, name=manifest.name, version=manifest.version, target=manifest.target, key=key)


def _default_key(bundle: Path) -> PrivateKey:
    path = default_key_path()
    if not path.exists():
        raise UnsignedError(
            f"{bundle} is not signed", hint="give a key with --key, or make one with 'outrider keys init'"
        )
    return load_private_key(path)


def _parser() -> Parser:
    parser = Parser(
        prog="outrider publish",
        parents=[connection_options()],
        description="Sign bundles and publish them to the fleet's registry.",
    )
    parser.add_argument("bundle", type=Path, nargs="+", help="bundles (.orb), one a target")
    default = default_key_path()
    parser.add_argument(
        "--key", type=Path, metavar="FILE", help=f"sign by this private key; what is not signed at all, by {default}"
    )
    parser.add_argument("--unmet", action="store_true", help="publish what does not meet its own goals, too")
    return parser
