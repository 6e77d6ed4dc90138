"""`outrider inspect`: check a bundle and show what it holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from outrider.runtime.arguments import Parser
from outrider.runtime.bundle.manifest import ArtifactEntry, CandidateRecord, Manifest, TensorSpec
from outrider.runtime.bundle.reader import Bundle, open_bundle
from outrider.runtime.bundle.signed import check_signature
from outrider.runtime.errors import EXIT_OK
from outrider.runtime.images.plan import kind_of
from outrider.runtime.output import as_json
from outrider.runtime.trust import TrustStore
from outrider.runtime.trust.statements import signature_path


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What `outrider inspect --json` prints. `signature` is `none`, `not checked` or `verified`."""

    path: str
    sha256: str
    size: int
    signature: str
    manifest: Manifest


def inspect(argv: Sequence[str]) -> int:
    """`outrider inspect x.orb`: exit code 0 where the whole bundle is sound, and signed if that was asked for."""
    parser = Parser(prog="outrider inspect", description="Check a bundle and show what it holds.")
    parser.add_argument("bundle", type=Path, help="the .orb file")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--trust", type=Path, metavar="DIR", help="check the signature: a trust store or a .pub file")
    arguments = parser.parse_args(argv)
    bundle = open_bundle(arguments.bundle)
    found = Inspection(
        path=str(bundle.path),
        sha256=bundle.sha256,
        size=bundle.size,
        signature=_signature_state(bundle, arguments.trust),
        manifest=bundle.manifest,
    )
    print(as_json(found) if arguments.json else describe(found))
    return EXIT_OK


def describe(found: Inspection) -> str:
    """The inspection as text."""
    manifest = found.manifest
    source = manifest.source
    lines = [
        f"{manifest.name} {manifest.version}  for {manifest.target}",
        f"file        {found.path}, {found.size} B",
        f"sha256      {found.sha256}",
        f"signature   {found.signature}",
        f"model       {source.framework} {source.framework_version}: {source.description or source.sha256[:16]}",
        f"run         {manifest.run_id or 'none'}",
        f"inputs      {_tensors(manifest.signature.inputs)}",
        f"outputs     {_tensors(manifest.signature.outputs)}; predict gives {manifest.signature.predict}",
        *_features(manifest),
        f"golden      {manifest.golden.rows} rows ({manifest.golden.evidence}), "
        f"within {manifest.golden.atol:g} + {manifest.golden.rtol:g} |value|",
        f"baseline    {'yes' if manifest.baseline else 'no'}",
        *(f"goal        {goal.text}: {_met(goal.met)}" for goal in manifest.goals),
        "artifacts",
        *map(_artifact, manifest.artifacts),
        "candidates",
        *map(_candidate, manifest.candidates),
    ]
    return "\n".join(lines)


def _signature_state(bundle: Bundle, trust: Path | None) -> str:
    if trust is not None:
        check_signature(bundle, TrustStore.load(trust))
        return "verified"
    return "not checked" if signature_path(bundle.path).exists() else "none"


def _tensors(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(
        f"{spec.name} {spec.dtype}({', '.join('n' if size is None else str(size) for size in spec.shape)})"
        for spec in specs
    )


def _features(manifest: Manifest) -> Iterable[str]:
    plan = manifest.features
    if plan is not None:
        yield f"features    {len(plan.columns)} raw columns -> {len(plan.steps)} steps -> {len(plan.outputs)} features"
    image = manifest.images
    if image is not None:
        height, width = image.size
        steps = "".join(f" -> {kind_of(step)}" for step in manifest.postprocess)
        yield f"images      {image.fit} to {height}x{width} {image.colour} -> {image.input}{steps}"


def _met(met: bool | None) -> str:
    return {True: "met", False: "not met", None: "not measured"}[met]


def _artifact(artifact: ArtifactEntry) -> str:
    needs = artifact.needs
    wanted = [needs.arch or "any CPU", *needs.features, *([str(needs.libc)] if needs.libc else [])]
    package = f", package {artifact.package}" if artifact.package else ""
    return f"  {artifact.path}  {artifact.format} ABI {artifact.abi}, {artifact.size} B, {' '.join(wanted)}{package}"


def _candidate(candidate: CandidateRecord) -> str:
    rank = f"#{candidate.rank}" if candidate.rank else "-"
    return f"  {rank:>3} {candidate.id}  {candidate.precision}  {candidate.outcome}: {candidate.reason}"
