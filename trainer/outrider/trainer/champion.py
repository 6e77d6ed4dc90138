"""The champion: the release that is in service, run here on rows that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.runtime import load
from outrider.runtime.api_client import ReleaseInfo, RolloutInfo
from outrider.runtime.bundle import open_bundle
from outrider.runtime.bundle.manifest import Manifest
from outrider.runtime.errors import (
    BadModelError,
    ConflictError,
    NotFoundError,
    TargetMismatchError,
)
from outrider.runtime.features import compute
from outrider.targets.catalog import get_target
from outrider.targets.emulate import run_native
from outrider.trainer.fleet import Fleet
from outrider.trainer.metrics import Floats


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The release in service, and the newest rollout of the model in each group that runs it."""

    release: ReleaseInfo
    rollouts: tuple[RolloutInfo, ...]


def find_champion(fleet: Fleet, model: str, *, job: int) -> Champion:
    """The release of the newest rollout that was not aborted and that this Job did not make itself.

    Raises ConflictError where nothing of the model was ever rolled out: there is nothing to take the place of.
    """
    newest: dict[str, RolloutInfo] = {}
    for rollout in fleet.rollouts():
        if rollout.name == model and rollout.state != "ABORTED" and rollout.job != job:
            newest.setdefault(rollout.group, rollout)
    if not newest:
        raise ConflictError(f"no release of {model} is rolled out", hint="roll the first one out by hand")
    latest = max(newest.values(), key=lambda rollout: rollout.id)
    release = next((r for r in fleet.releases(model) if r.number == latest.release), None)
    if release is None or not release.bundles:
        raise NotFoundError(f"the fleet has no bundle of {model}:{latest.version}, which it rolls out")
    return Champion(release=release, rollouts=tuple(newest.values()))


def fetch_champion(fleet: Fleet, champion: Champion, folder: Path) -> Path:
    """One bundle of the champion on disk, one that runs on this machine where there is such a one."""
    fetched: list[Path] = []
    for bundle in champion.release.bundles:
        path = folder / f"{bundle.sha256}.orb"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            fleet.download_bundle(bundle.sha256, path)
        try:
            load(path).close()
        except TargetMismatchError:
            fetched.append(path)
        else:
            return path
    return fetched[0]


def champion_scores(path: Path, raw: dict[str, NDArray[Any]], classes: Sequence[int | str]) -> Floats:
    """The champion's class probabilities of raw rows, by its compiled artifact, as on a device.

    A bundle for other hardware is run under emulation. Raises BadModelError where it answers other classes.
    """
    manifest = open_bundle(path).manifest
    if manifest.features is None:
        raise BadModelError(f"the champion {manifest.name}:{manifest.version} takes no raw columns")
    if tuple(manifest.signature.class_labels) != tuple(classes):
        raise BadModelError(f"the champion answers {manifest.signature.class_labels}, the candidate {tuple(classes)}")
    features = compute(manifest.features, {column.name: raw[column.name] for column in manifest.features.columns})
    try:
        session = load(path)
    except TargetMismatchError:
        return _emulated(path, manifest, features)
    try:
        return np.asarray(session.predict(features))
    finally:
        session.close()


def _emulated(path: Path, manifest: Manifest, features: NDArray[np.float32]) -> Floats:
    native = [artifact for artifact in manifest.artifacts if artifact.format == "native"]
    if not native:
        raise TargetMismatchError(f"no artifact of {manifest.name}:{manifest.version} for {manifest.target} runs here")
    inputs = {manifest.signature.inputs[0].name: features}
    library = open_bundle(path).read(native[0].path)
    outputs = run_native(native[0], library, inputs, get_target(manifest.target), manifest.signature)
    return np.asarray(outputs[manifest.signature.predict])
