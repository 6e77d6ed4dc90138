"""Admission: whether a machine can take a bundle, decided before a byte of it is fetched.

Pure: what the machine has is passed in, so the same code runs on the device, in the fleet and in tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from outrider.runtime.bundle.manifest import ArtifactEntry, Manifest
from outrider.runtime.engines import ENGINES, supports
from outrider.runtime.messages import ArtifactNeed
from outrider.runtime.target import Refusal, Target, refuse

DISK_MARGIN_BYTES = 4 << 20  # left free beside the bundle, for the journal and the link

EngineCheck = Callable[[str], bool]


def needs_of(manifest: Manifest) -> tuple[ArtifactNeed, ...]:
    """What the artifacts of a bundle need, in the order in which a device tries them (by their candidates' rank)."""
    return tuple(need_of(artifact) for artifact in manifest.ranked_artifacts())


def need_of(artifact: ArtifactEntry) -> ArtifactNeed:
    """What one artifact needs."""
    return ArtifactNeed(format=artifact.format, abi=artifact.abi, package=artifact.package, needs=artifact.needs)


def admissible(need: ArtifactNeed, target: Target, *, engines: EngineCheck) -> Refusal | None:
    """Why `target` cannot run one artifact, or None where it can. `engines` says whether a format's engine is there.

    Features that the engine brings (SIMD of WebAssembly) are not asked of the machine.
    """
    if need.format not in ENGINES:
        return Refusal(code="engine", needed=need.format, found="an unknown format")
    if not supports(need.format, need.abi):
        known = " ".join(map(str, ENGINES[need.format].abis))
        return Refusal(code="abi", needed=f"{need.format} {need.abi}", found=known)
    own = ENGINES[need.format].features
    needs = replace(need.needs, features=tuple(feature for feature in need.needs.features if feature not in own))
    refusal = refuse(needs, target)
    if refusal is None and not engines(need.format):
        return Refusal(code="engine", needed=need.package or need.format, found="not installed")
    return refusal


def admit(
    needs: Sequence[ArtifactNeed], target: Target, *, engines: EngineCheck, disk_free: int, size: int
) -> Refusal | None:
    """Why `target` cannot take a bundle of `size` bytes with these artifacts, or None where it can.

    One artifact that runs is enough; where none does, the reason is that of the first. `disk_free` is bytes.
    """
    refusals = [admissible(need, target, engines=engines) for need in needs]
    if not refusals:
        return Refusal(code="engine", needed="an artifact", found="none")
    if None not in refusals:
        return refusals[0]
    if disk_free < size + DISK_MARGIN_BYTES:
        return Refusal(code="disk", needed=f"{size + DISK_MARGIN_BYTES} B", found=f"{disk_free} B")
    return None
