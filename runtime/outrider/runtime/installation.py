"""The acts of an update, each of which may be repeated after a crash at any point of it."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from outrider.runtime.admission import admit, needs_of
from outrider.runtime.bundle import open_bundle, read_manifest
from outrider.runtime.choice import choice_of, write_choice
from outrider.runtime.durable import storage_errors
from outrider.runtime.engines import available
from outrider.runtime.errors import (
    BadBundleError,
    DigestMismatchError,
    OutriderError,
    StorageError,
    StorageFullError,
    TrustError,
    UnavailableError,
)
from outrider.runtime.fetch import BlockFile, Source, allocated_bytes, fetch_bundle
from outrider.runtime.messages import ArtifactTrial
from outrider.runtime.offer import check_slot
from outrider.runtime.prober import Prober
from outrider.runtime.store import Store
from outrider.runtime.target import Target
from outrider.runtime.trust import TrustStore, verify_bundle
from outrider.runtime.updater import Action, Deployment

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Device:
    """What installing needs of the device; see `Installer` for the callbacks."""

    store: Store
    sources: Sequence[Source]
    trust: TrustStore
    boot_id: str
    host: Target
    prober: Prober
    on_active: Callable[[str, Path | None], None]
    on_change: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Setback:
    """Why an act did not succeed. `reason` is machine-readable, `retry` says that it may work later.

    `trials`: what a probe found of each artifact, where there are several.
    """

    reason: str
    detail: str
    retry: bool = False
    trials: tuple[ArtifactTrial, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A probe that passed, and what it found of each artifact, where there are several."""

    trials: tuple[ArtifactTrial, ...]


Outcome = bool | Setback | Tried


class Installation:
    """The acts for one slot. `interrupted` is asked during long ones: True means leave off now."""

    def __init__(self, slot: str, device: Device, interrupted: Callable[[], bool]) -> None:
        self._slot = slot
        self._device = device
        self._store = device.store
        self._interrupted = interrupted
        self._acts: dict[Action, Callable[[Deployment], Outcome]] = {
            "admit": self._admit,
            "reserve": self._reserve,
            "fetch": self._fetch,
            "stage": self._stage,
            "inspect": self._inspect,
            "probe": self._probe,
            "swap": self._swap,
            "activate": self._activate,
            "restore": self._restore,
        }

    def carry_out(self, action: Action, deployment: Deployment) -> Outcome:
        """Do one act: True or `Tried` when it is done, False when interrupted, or why it failed. Never raises."""
        try:
            return self._acts[action](deployment)
        except StorageFullError as e:
            return Setback(reason="disk", detail=str(e))
        except StorageError as e:
            return Setback(reason="storage", detail=str(e))
        except Exception as e:
            log.exception("slot %s: the act %s failed", self._slot, action)
            return Setback(reason="fault", detail=f"{type(e).__name__}: {e}")

    def collect(self) -> None:
        """Remove what nothing needs any more. A failure is logged: the next update tries again."""
        try:
            self._store.collect_garbage()
        except StorageError as e:
            log.warning("slot %s: old bundles could not be removed: %s", self._slot, e)

    def load(self, sha256: str | None) -> str | None:
        """Have the serving side take up a bundle, or nothing; why it could not, or None where it could."""
        path = None if sha256 is None else self._store.slots.bundle_path(sha256)
        try:
            self._device.on_active(self._slot, path)
        except OutriderError as e:
            return str(e)
        except Exception as e:
            log.exception("slot %s: the serving side failed", self._slot)
            return f"{type(e).__name__}: {e}"
        return None

    def _admit(self, deployment: Deployment) -> bool | Setback:
        """Decide, before a byte is fetched, whether this device may and can take the bundle."""
        wanted, slots = deployment.wanted, self._store.slots
        declined = check_slot(wanted, floor=self._store.rollback_floor(), trust=self._device.trust)
        if declined is not None:
            return Setback(reason=declined.reason, detail=declined.detail)
        self._store.collect_garbage()
        here = wanted.size if slots.has(wanted.bundle) else allocated_bytes(slots.part_path(wanted.bundle))
        free = self._store.disk().free + here
        refusal = admit(wanted.artifacts, self._device.host, engines=available, disk_free=free, size=wanted.size)
        return True if refusal is None else Setback(reason=refusal.code, detail=str(refusal))

    def _reserve(self, deployment: Deployment) -> bool | Setback:
        """Take the space, or find that the bundle is there already and sound."""
        bundle, slots = deployment.wanted.bundle, self._store.slots
        if slots.has(bundle):
            try:
                sound = open_bundle(slots.bundle_path(bundle)).sha256 == bundle
            except BadBundleError:
                sound = False
            if sound:
                return True
            slots.discard(bundle)
        self._open_blocks(deployment).close()
        self._store.checkpoint("reserve.done")
        return True

    def _fetch(self, deployment: Deployment) -> bool | Setback:
        wanted = deployment.wanted
        if self._store.slots.has(wanted.bundle):
            return True
        try:
            with self._open_blocks(deployment) as blocks:
                done = fetch_bundle(self._device.sources, wanted, blocks, self._interrupted)
        except UnavailableError as e:
            return Setback(reason="unavailable", detail=str(e), retry=True)
        except DigestMismatchError as e:
            return Setback(reason="digest", detail=str(e))
        self._store.checkpoint("fetch.done")
        return done

    def _stage(self, deployment: Deployment) -> bool | Setback:
        self._store.slots.stage(deployment.wanted.bundle, deployment.wanted.signature.encode())
        return True

    def _inspect(self, deployment: Deployment) -> bool | Setback:
        """The staged file itself must be what was signed, be whole, and say what the desired document said."""
        wanted = deployment.wanted
        path = self._store.slots.bundle_path(wanted.bundle)
        try:
            verify_bundle(path, self._device.trust)
            manifest = open_bundle(path).manifest
        except TrustError as e:
            return Setback(reason="signature", detail=str(e))
        except BadBundleError as e:
            return Setback(reason="bundle", detail=str(e))
        found = (manifest.name, manifest.version, manifest.target)
        if found != (wanted.name, wanted.version, wanted.target):
            return Setback(reason="bundle", detail=f"the bundle holds {' '.join(found)}")
        refusal = admit(
            needs_of(manifest), self._device.host, engines=available, disk_free=sys.maxsize, size=wanted.size
        )
        return True if refusal is None else Setback(reason=refusal.code, detail=str(refusal))

    def _probe(self, deployment: Deployment) -> Outcome:
        """Golden vectors on this silicon, in a process that may die; of several artifacts the fastest is kept."""
        wanted = deployment.wanted
        self._store.checkpoint("probe.begin")
        path = self._store.slots.bundle_path(wanted.bundle)
        result = self._device.prober(path, self._write_trust(), wanted.health, self._interrupted)
        if result is not None and result.candidate:
            # On disk before the journal says ARMED: whatever the slot runs from then on, it finds its choice.
            write_choice(path, self._slot, choice_of(read_manifest(path), result.candidate, result.sound))
        self._store.checkpoint("probe.done")
        if result is None:
            return False
        if not result.passed:
            return Setback(reason=result.reason, detail=result.detail, trials=result.trials)
        return Tried(trials=result.trials)

    def _swap(self, deployment: Deployment) -> bool | Setback:
        self._store.slots.swap(self._slot, deployment.wanted.bundle, deployment.fallback)
        return True

    def _activate(self, deployment: Deployment) -> bool | Setback:
        """Serve the new bundle."""
        self._store.checkpoint("activate.begin")
        trouble = self.load(deployment.wanted.bundle)
        self._store.checkpoint("activate.done")
        return True if trouble is None else Setback(reason="load", detail=trouble)

    def _restore(self, deployment: Deployment) -> bool | Setback:
        """Serve what was active before; an empty slot where there was nothing."""
        fallback = deployment.fallback
        if fallback is not None and not self._store.slots.has(fallback):
            log.critical("slot %s keeps its bundle: the earlier one, %s, is gone", self._slot, fallback[:16])
            return True
        self._store.slots.restore(self._slot, fallback)
        trouble = self.load(fallback)
        if trouble is not None:
            log.critical("slot %s cannot serve the earlier bundle either: %s", self._slot, trouble)
        return True

    def _write_trust(self) -> Path:
        """The trusted keys as a folder, for the probe's process."""
        folder = self._store.folder / "probe" / self._slot
        with storage_errors("write the trusted keys for the probe"):
            if folder.exists():
                shutil.rmtree(folder)
            self._device.trust.save(folder)
        return folder

    def _open_blocks(self, deployment: Deployment) -> BlockFile:
        slots, wanted = self._store.slots, deployment.wanted
        return BlockFile(
            slots.part_path(wanted.bundle),
            slots.map_path(wanted.bundle),
            wanted.size,
            checkpoint=self._store.checkpoint,
        )
