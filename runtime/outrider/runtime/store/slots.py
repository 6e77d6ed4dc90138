"""Bundles on disk and the links that say which one a slot runs.

```
bundles/<sha256>/bundle.orb          complete and verified: a bundle gets here by one rename
                 bundle.orb.dsse     its detached signature
                 choice-<slot>.json  which of several artifacts the slot runs (see `outrider.runtime.choice`)
staging/<sha256>.part  .map          a bundle that is being fetched, and which blocks of it are written
        <sha256>.new/                a bundle that is about to be renamed into bundles/
slots/<slot>/current   previous      symbolic links to ../../bundles/<sha256>
```
"""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Collection
from pathlib import Path

import msgspec

from outrider.runtime.durable import (
    Checkpoint,
    fsync_folder,
    make_folder,
    remove_link,
    replace_link,
    storage_errors,
    write_file,
)
from outrider.runtime.errors import BadInputError, BadMessageError, StorageError
from outrider.runtime.messages import BundleRef
from outrider.runtime.messages.topics import NAME_PATTERN
from outrider.runtime.trust import BundleStatement, decode_envelope

_SLOT = re.compile(NAME_PATTERN)
_SHA256 = re.compile(r"^[0-9a-f]{64}$")


def check_slot_name(slot: str) -> str:
    """The name, if it can be a folder. Raises BadInputError."""
    if not _SLOT.fullmatch(slot):
        raise BadInputError(f"{slot!r} is not a slot name", hint="use letters, digits, '.', '_' and '-'")
    return slot


class Slots:
    """The folders of one device. Every method leaves a state from which a restart can go on."""

    def __init__(self, folder: Path, checkpoint: Checkpoint) -> None:
        self._bundles = folder / "bundles"
        self.staging = folder / "staging"
        self._slots = folder / "slots"
        self._checkpoint = checkpoint
        with storage_errors(f"prepare {folder}"):
            for place in (self._bundles, self.staging, self._slots):
                make_folder(place)

    def names(self) -> list[str]:
        """The slots that have ever held a bundle."""
        return sorted(place.name for place in self._slots.iterdir() if place.is_dir())

    def current(self, slot: str) -> str | None:
        """SHA-256 of the bundle that the slot runs, or None where it is empty."""
        return self._linked(slot, "current")

    def previous(self, slot: str) -> str | None:
        """SHA-256 of the bundle to fall back to, or None."""
        return self._linked(slot, "previous")

    def bundle_path(self, sha256: str) -> Path:
        """Where a complete bundle lies."""
        return self._bundles / sha256 / "bundle.orb"

    def has(self, sha256: str) -> bool:
        """Whether the bundle was staged completely."""
        return self.bundle_path(sha256).is_file()

    def part_path(self, sha256: str) -> Path:
        """Where a bundle is fetched to."""
        return self.staging / f"{sha256}.part"

    def map_path(self, sha256: str) -> Path:
        """Where it is kept which blocks of a bundle are written."""
        return self.staging / f"{sha256}.map"

    def ref(self, sha256: str | None) -> BundleRef | None:
        """Name and version of a staged bundle, as its signature file says (for reports; nothing is verified)."""
        if sha256 is None:
            return None
        try:
            envelope = decode_envelope(self.bundle_path(sha256).with_name("bundle.orb.dsse").read_bytes())
            statement = msgspec.json.decode(base64.b64decode(envelope.payload), type=BundleStatement)
        except (OSError, ValueError, BadMessageError, msgspec.DecodeError):
            return BundleRef(sha256=sha256, name="unknown", version="unknown")
        return BundleRef(sha256=sha256, name=statement.name, version=statement.version)

    def stage(self, sha256: str, signature: bytes) -> Path:
        """Move a fetched, verified bundle with its signature into `bundles/`. Repeating it is harmless."""
        if self.has(sha256):
            self._sign_again(sha256, signature)
            return self.bundle_path(sha256)
        part, new = self.part_path(sha256), self.staging / f"{sha256}.new"
        with storage_errors("stage the bundle"):
            make_folder(new)
            self._checkpoint("stage.folder")
            if part.exists():
                part.replace(new / "bundle.orb")
                fsync_folder(self.staging)
            self._checkpoint("stage.moved")
            if not (new / "bundle.orb").exists():
                raise StorageError(f"the fetched bundle {sha256[:16]} is gone")
            write_file(new / "bundle.orb.dsse", signature)
            self._checkpoint("stage.signed")
            if self.bundle_path(sha256).parent.exists():
                shutil.rmtree(self.bundle_path(sha256).parent)
            new.replace(self.bundle_path(sha256).parent)
            fsync_folder(self._bundles)
            fsync_folder(self.staging)
            self.map_path(sha256).unlink(missing_ok=True)
            self._checkpoint("stage.done")
        return self.bundle_path(sha256)

    def swap(self, slot: str, sha256: str, fallback: str | None) -> None:
        """Make `sha256` current and `fallback` previous. Repeating it is harmless."""
        if not self.has(sha256):
            raise StorageError(f"bundle {sha256[:16]} is not staged")
        place = self._slots / check_slot_name(slot)
        with storage_errors(f"swap slot {slot}"):
            make_folder(place)
            self._checkpoint("swap.begin")
            if fallback is not None and self.previous(slot) != fallback:
                replace_link(place / "previous", _target(fallback))
            self._checkpoint("swap.previous")
            if self.current(slot) != sha256:
                replace_link(place / "current", _target(sha256))
            self._checkpoint("swap.current")

    def restore(self, slot: str, sha256: str | None) -> None:
        """Make `sha256` current again, or empty the slot where it is None. Repeating it is harmless.

        A bundle that is gone changes nothing: what is current is better than nothing. Raises StorageError then.
        """
        if sha256 is not None and not self.has(sha256):
            raise StorageError(f"the earlier bundle {sha256[:16]} is gone")
        place = self._slots / check_slot_name(slot)
        with storage_errors(f"restore slot {slot}"):
            make_folder(place)
            self._checkpoint("restore.begin")
            if sha256 is None:
                remove_link(place / "current")
            elif self.current(slot) != sha256:
                replace_link(place / "current", _target(sha256))
            self._checkpoint("restore.current")
            if self.previous(slot) == sha256:
                remove_link(place / "previous")
            self._checkpoint("restore.done")

    def collect(self, keep: Collection[str]) -> None:
        """Remove every bundle and fetch that is neither current nor previous in a slot nor in `keep`."""
        wanted = set(keep)
        for slot in self.names():
            wanted.update(one for one in (self.current(slot), self.previous(slot)) if one is not None)
        self._checkpoint("collect.begin")
        with storage_errors("collect garbage"):
            for place in list(self._bundles.iterdir()):
                if place.name not in wanted:
                    self._discard(place)
            for place in list(self.staging.iterdir()):
                if place.name.split(".")[0] not in wanted or place.name.endswith(".trash"):
                    _remove(place)
            fsync_folder(self.staging)
        self._checkpoint("collect.done")

    def discard(self, sha256: str) -> None:
        """Remove a staged bundle whose bytes turned out to be damaged."""
        with storage_errors("remove a damaged bundle"):
            if self.bundle_path(sha256).parent.exists():
                self._discard(self.bundle_path(sha256).parent)

    def _sign_again(self, sha256: str, signature: bytes) -> None:
        """A bundle that was there already may have been signed anew, with another key."""
        place = self.bundle_path(sha256).with_name("bundle.orb.dsse")
        with storage_errors("write the bundle's signature"):
            if not place.exists() or place.read_bytes() != signature:
                write_file(place, signature)

    def _discard(self, place: Path) -> None:
        """Remove a bundle so that a half-removed one never looks complete."""
        trash = self.staging / f"{place.name}.trash"
        _remove(trash)
        place.replace(trash)
        fsync_folder(self._bundles)
        self._checkpoint("collect.renamed")
        _remove(trash)

    def _linked(self, slot: str, name: str) -> str | None:
        try:
            sha256 = (self._slots / check_slot_name(slot) / name).readlink().name
        except OSError:
            return None
        return sha256 if _SHA256.fullmatch(sha256) and self.has(sha256) else None


def _target(sha256: str) -> str:
    return f"../../bundles/{sha256}"


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
