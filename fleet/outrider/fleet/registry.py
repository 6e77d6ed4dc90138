"""The registry: content-addressed bundle files on disk, their metadata in the database.

A bundle gets in only with a signature by a trusted publisher over exactly these bytes, and only where the signed
name, version and target are those of its manifest. A release is a (name, version) with one bundle a target.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from outrider.fleet import audit
from outrider.fleet.db import BundleRow, Database, ReleaseRow
from outrider.runtime.bundle import Bundle, open_bundle
from outrider.runtime.durable import fsync_file, fsync_folder, storage_errors
from outrider.runtime.errors import (
    BadBundleError,
    BadSignatureError,
    ConflictError,
    NotFoundError,
)
from outrider.runtime.trust import BundleStatement, Envelope, TrustStore, decode_envelope, verify_bundle


@dataclass(frozen=True)
class Published:
    """A stored bundle; `new` is False where the same bytes were there already."""

    row: BundleRow
    new: bool


class Registry:
    """Bundles under `folder` as `ab/abcdef….orb`. Safe to use from several threads and processes.

    The trusted publisher keys are read from the trust store at each publication, so a key added there counts at once.
    """

    def __init__(self, folder: Path, database: Database, trust_dir: Path) -> None:
        self.folder = folder
        self._database = database
        self._trust_dir = trust_dir
        self._incoming = folder / "incoming"
        with storage_errors(f"write {folder}"):
            self._incoming.mkdir(parents=True, exist_ok=True)

    def clean(self) -> None:
        """Remove uploads that a crash cut short. Call it before any upload starts."""
        for left in self._incoming.iterdir():
            left.unlink()

    @contextmanager
    def incoming(self) -> Iterator[tuple[Path, BinaryIO]]:
        """A file to receive an upload in; it is gone after the block unless `publish` took it."""
        with storage_errors(f"write {self._incoming}"):
            handle, name = tempfile.mkstemp(suffix=".orb.part", dir=self._incoming)
        path = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                yield path, file
        finally:
            path.unlink(missing_ok=True)

    def publish(self, upload: Path, envelope: bytes, *, actor: str, now: float) -> Published:
        """Check an uploaded file and its detached signature, and take both in.

        The same bytes again change nothing. Raises BadBundleError, TrustError, BadMessageError; ConflictError where
        other bytes are published under the same name, version and target.
        """
        bundle, signature = self._check(upload, envelope)
        with storage_errors(f"write {upload}"):
            fsync_file(upload)  # before the transaction: flushing gigabytes would hold up every other writer
        try:
            return self._store(upload, bundle, signature, actor=actor, now=now)
        except ConflictError:
            # On PostgreSQL the same upload may have won a moment ago; then there is no conflict.
            with self._database.read() as session:
                known = session.get(BundleRow, bundle.sha256)
            if known is None:
                raise
            return Published(known, new=False)

    def _store(self, upload: Path, bundle: Bundle, signature: Envelope, *, actor: str, now: float) -> Published:
        manifest = bundle.manifest
        with self._database.session() as session:
            known = session.get(BundleRow, bundle.sha256)
            if known is not None:
                return Published(known, new=False)
            release = self._release(session, manifest.name, manifest.version, manifest.target, now=now)
            row = _row(bundle, signature, release=release.number, now=now)
            # The file first: a file that no row names is harmless, a row without its file is not.
            self._take(upload, bundle.sha256)
            session.add(row)
            audit.record(
                session,
                actor=actor,
                action="bundle.publish",
                subject=f"{manifest.name}:{manifest.version}",
                detail={"sha256": bundle.sha256, "target": manifest.target, "run_id": manifest.run_id or ""},
                now=now,
            )
        return Published(row, new=True)

    def path(self, sha256: str) -> Path:
        """Where the bytes of a published bundle lie. Raises NotFoundError."""
        with self._database.read() as session:
            row = session.get(BundleRow, sha256)
        if row is None:
            raise NotFoundError(f"no bundle {sha256[:16]} is published")
        return self.folder / row.path

    def _check(self, upload: Path, envelope: bytes) -> tuple[Bundle, Envelope]:
        signature = decode_envelope(envelope)
        statement = verify_bundle(upload, TrustStore.load(self._trust_dir), signature)
        bundle = open_bundle(upload)
        _compare(statement, bundle)
        return bundle, signature

    @staticmethod
    def _release(session: Session, name: str, version: str, target: str, *, now: float) -> ReleaseRow:
        taken = session.scalars(select(BundleRow).filter_by(name=name, version=version, target=target)).first()
        if taken is not None:
            raise ConflictError(
                f"{name}:{version} for {target} is published already, with other bytes ({taken.sha256[:16]})",
                hint="published bundles never change; choose a new version",
            )
        release = session.scalars(select(ReleaseRow).filter_by(name=name, version=version)).first()
        if release is None:
            release = ReleaseRow(name=name, version=version, created=now)
            session.add(release)
            session.flush()
        return release

    def _take(self, upload: Path, sha256: str) -> None:
        place = self.folder / _relative(sha256)
        with storage_errors(f"write {place}"):
            new_folder = not place.parent.exists()
            place.parent.mkdir(exist_ok=True)
            upload.replace(place)
            fsync_folder(place.parent)
            if new_folder:
                fsync_folder(self.folder)


def _compare(statement: BundleStatement, bundle: Bundle) -> None:
    manifest = bundle.manifest
    signed = (statement.name, statement.version, statement.target)
    held = (manifest.name, manifest.version, manifest.target)
    if signed != held:
        raise BadSignatureError(
            f"the signature speaks of {':'.join(signed)}, the bundle is {':'.join(held)}",
            hint="sign the bundle again with 'outrider publish'",
        )


def _row(bundle: Bundle, signature: Envelope, *, release: int, now: float) -> BundleRow:
    manifest = bundle.manifest
    return BundleRow(
        sha256=bundle.sha256,
        size=bundle.size,
        name=manifest.name,
        version=manifest.version,
        target=manifest.target,
        manifest=msgspec.to_builtins(manifest),
        envelope=msgspec.json.encode(signature).decode(),
        path=_relative(bundle.sha256),
        release=release,
        run_id=manifest.run_id,
        provenance=_provenance(bundle),
        baseline=bundle.read(manifest.baseline) if manifest.baseline else None,
        created=now,
    )


def _provenance(bundle: Bundle) -> dict[str, Any] | None:
    if bundle.manifest.provenance is None:
        return None
    try:
        decoded = json.loads(bundle.read(bundle.manifest.provenance))
    except ValueError as e:
        raise BadBundleError("the bundle's provenance is not JSON") from e
    if not isinstance(decoded, dict):
        raise BadBundleError("the bundle's provenance is not a JSON object")
    return decoded


def _relative(sha256: str) -> str:
    return f"{sha256[:2]}/{sha256}.orb"
