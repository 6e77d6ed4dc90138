"""The desired document of one device: which bundle of a release it gets, and the signed bytes that say so. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from outrider.runtime.admission import admissible, needs_of
from outrider.runtime.api_client.types import RolloutSettings
from outrider.runtime.bundle.manifest import Manifest
from outrider.runtime.errors import BadInputError
from outrider.runtime.messages import (
    MAX_DESIRED_BYTES,
    Activate,
    Address,
    ArtifactNeed,
    Desired,
    Health,
    SlotDesired,
)
from outrider.runtime.target import Target
from outrider.runtime.trust import DESIRED_TYPE, PrivateKey, encode_envelope, sign

MAIN_SLOT = "main"


class BundleFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the document says of a bundle. `signature` is its detached DSSE envelope as JSON text."""

    sha256: str
    size: int
    name: str
    version: str
    release: int
    target: str
    signature: str
    artifacts: tuple[ArtifactNeed, ...]


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle for a slot by one attempt of one rollout (`job`)."""

    job: str
    attempt: int
    bundle: BundleFacts
    settings: RolloutSettings


def artifact_needs(manifest: Mapping[str, object]) -> tuple[ArtifactNeed, ...]:
    """The needs of a stored manifest's artifacts, best candidate first."""
    return needs_of(msgspec.convert(manifest, Manifest))


def choose_bundle(target: Target, bundles: Sequence[BundleFacts]) -> tuple[BundleFacts | None, str]:
    """The bundle of a release that fits a device's target, or None and why there is none.

    A bundle fits where one of its artifacts is admissible. One compiled for the target's own name is preferred, then
    one for its architecture over one for any (WebAssembly, ONNX), then the one whose first artifact asks for the most
    instruction-set features, which is the most specialised.
    """
    if not bundles:
        return None, "the release has no bundle"
    refusals = []
    fitting = []
    for bundle in bundles:
        found = [admissible(need, target, engines=lambda _format: True) for need in bundle.artifacts]
        if None in found:
            fitting.append(bundle)
        else:
            refusals.append(f"{bundle.target}: {found[0] if found else 'no artifact'}")
    if not fitting:
        return None, f"no bundle of {bundles[0].name}:{bundles[0].version} fits {target.name} ({'; '.join(refusals)})"

    def preference(bundle: BundleFacts) -> tuple[bool, bool, int, str]:
        needs = bundle.artifacts[0].needs
        return bundle.target == target.name, needs.arch is not None, len(needs.features), bundle.sha256

    return max(fitting, key=preference), ""


def slot_desired(assignment: Assignment, urls: Sequence[str] = ()) -> SlotDesired:
    """One slot of the document."""
    bundle, settings = assignment.bundle, assignment.settings
    return SlotDesired(
        bundle=bundle.sha256,
        size=bundle.size,
        name=bundle.name,
        version=bundle.version,
        release=bundle.release,
        target=bundle.target,
        signature=bundle.signature,
        artifacts=bundle.artifacts,
        urls=tuple(urls),
        health=Health(max_err=settings.max_err, p99_ms=settings.p99_ms, soak_s=settings.soak_s),
        activate=Activate(jitter_s=settings.jitter_s),
    )


def build_desired(
    address: Address,
    slots: Mapping[str, Assignment],
    *,
    rev: int,
    now: float,
    ttl_s: float,
    rollback_floor: int = 0,
    urls: Mapping[str, Sequence[str]] | None = None,
) -> Desired:
    """The document of revision `rev`: `slots` maps slot names to what they shall run, `urls` bundles to HTTP sources.

    With no slots the document withdraws what the device was offered and has not activated yet. Job and attempt are
    those of the newest rollout among the slots.
    """
    newest = max(slots.values(), key=lambda wanted: int(wanted.job), default=None)
    sources = urls or {}
    return Desired(
        v=1,
        tenant=address.tenant,
        device=address.device,
        rev=rev,
        issued=now,
        not_after=now + ttl_s,
        job=newest.job if newest else "",
        attempt=newest.attempt if newest else 0,
        rollback_floor=rollback_floor,
        slots={name: slot_desired(wanted, sources.get(wanted.bundle.sha256, ())) for name, wanted in slots.items()},
    )


def sign_desired(document: Desired, key: PrivateKey) -> bytes:
    """The document as a signed DSSE envelope, ready to publish. Raises BadInputError over 8 KB."""
    data = encode_envelope(sign(msgspec.json.encode(document), DESIRED_TYPE, [key]))
    if len(data) > MAX_DESIRED_BYTES:
        raise BadInputError(
            f"the desired document of {document.device} is {len(data)} bytes long, over {MAX_DESIRED_BYTES}",
            hint="ship fewer artifacts in the bundle",
        )
    return data
