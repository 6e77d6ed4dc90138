"""`outrider publish`: sign a bundle where it needs it, and upload it to the fleet's registry."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from outrider.fleet.cli.parse import Parser, connect, connection_options, parse
from outrider.runtime.bundle import open_bundle
from outrider.runtime.errors import EXIT_OK, DigestMismatchError, TrustError, UnsignedError
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
from outrider.runtime.trust.statements import signature_path


def main(argv: Sequence[str]) -> int:
    """Sign, upload, and print the release."""
    arguments = parse(_parser(), argv)
    if arguments is None:
        return EXIT_OK
    client = connect(arguments)
    key = None if arguments.key is None else load_private_key(arguments.key)
    console = Console(highlight=False)
    status = Console(stderr=True).status if sys.stderr.isatty() else None
    for path in arguments.bundle:
        envelope = signature(path, key)
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


def signature(path: Path, key: PrivateKey | None) -> Envelope:
    """The bundle's signature: the one beside it where it holds (by `key`, if given), else a new one by `key`.

    Raises UnsignedError where there is none and no key to make one.
    """
    bundle = open_bundle(path)
    beside = signature_path(path)
    if beside.exists():
        envelope = decode_envelope(beside.read_bytes())
        if key is None:
            return envelope
        try:
            verify_bundle(path, TrustStore({BUNDLE_TYPE: [key.public]}), envelope)
        except (TrustError, DigestMismatchError):
            pass  # by another key, or over an earlier build of the file
        else:
            return envelope
    if key is None:
        raise UnsignedError(
            f"{path} is not signed", hint="give a key with --key, or make one with 'outrider keys init'"
        )
    manifest = bundle.manifest
    return sign_bundle(path, name=manifest.name, version=manifest.version, target=manifest.target, key=key)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="outrider publish",
        parents=[connection_options("--api-key")],
        description="Sign bundles and publish them to the fleet's registry.",
    )
    parser.add_argument("bundle", type=Path, nargs="+", help="bundles (.orb), one a target")
    parser.add_argument("--key", type=Path, help="the publisher's private key, to sign what is not signed by it")
    return parser
