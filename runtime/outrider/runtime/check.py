"""`outrider check`: would a bundle run on a device, by what `outrider probe` printed there? Nothing is sent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from outrider.runtime.admission import admissible, need_of
from outrider.runtime.arguments import Parser
from outrider.runtime.bundle import Manifest, open_bundle
from outrider.runtime.engines import ENGINES
from outrider.runtime.errors import EXIT_OK, BadInputError, NotFoundError, TargetMismatchError, UsageError
from outrider.runtime.output import as_json
from outrider.runtime.target import Refusal, Target


class ArtifactAdmission(msgspec.Struct, frozen=True, kw_only=True):
    """Whether one artifact would run: `refusal` None where it would. `package`: what its engine needs, if anything."""

    artifact: str
    format: str
    package: str | None
    refusal: Refusal | None


class DeviceCheck(msgspec.Struct, frozen=True, kw_only=True):
    """What `outrider check --json` prints: the artifacts by rank, and the first that would run."""

    bundle: str
    device: str
    runs: str | None
    artifacts: tuple[ArtifactAdmission, ...]


def check_device(
    manifest: Manifest, target: Target, *, engines: Sequence[str] | None = None, bundle: str = ""
) -> DeviceCheck:
    """Hold every artifact against a device. `engines`: the formats that it has engines for, None for all."""
    found = []
    for artifact in manifest.ranked_artifacts():
        refusal = admissible(need_of(artifact), target, engines=lambda kind: engines is None or kind in engines)
        found.append(
            ArtifactAdmission(
                artifact=artifact.candidate, format=artifact.format, package=artifact.package, refusal=refusal
            )
        )
    runs = next((one.artifact for one in found if one.refusal is None), None)
    return DeviceCheck(bundle=bundle, device=target.name, runs=runs, artifacts=tuple(found))


def read_target(path: Path) -> Target:
    """A target from the JSON that `outrider probe` prints. Raises NotFoundError, BadInputError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Target)
    except OSError as e:
        raise NotFoundError(f"cannot read {path}: {e.strerror}") from e
    except msgspec.DecodeError as e:
        raise BadInputError(
            f"{path} does not describe a device: {e}",
            hint="outrider probe > probe.json, on the device, makes such a file",
        ) from e


def main(argv: Sequence[str]) -> int:
    """`outrider check x.orb --device probe.json`: exit code 0 where it would run there, 5 and the reason where not."""
    parser = Parser(prog="outrider check", description="Would a bundle run on a device? Nothing is sent there.")
    parser.add_argument("bundle", type=Path, help="the .orb file")
    parser.add_argument(
        "--device", type=Path, required=True, metavar="FILE", help="what 'outrider probe' printed on the device"
    )
    parser.add_argument(
        "--engine",
        action="append",
        metavar="FORMAT",
        help=f"an engine that the device has ({', '.join(ENGINES)}); may be repeated (default: all)",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    arguments = parser.parse_args(argv)
    unknown = [kind for kind in arguments.engine or () if kind not in ENGINES]
    if unknown:
        raise UsageError(f"there is no engine {unknown[0]!r}", hint=f"there are {', '.join(ENGINES)}")
    bundle = open_bundle(arguments.bundle)
    target = read_target(arguments.device)
    found = check_device(bundle.manifest, target, engines=arguments.engine, bundle=str(bundle.path))
    print(as_json(found) if arguments.json else _text(found))
    if found.runs is None:
        first = found.artifacts[0].refusal
        assert first is not None
        raise TargetMismatchError(f"{bundle.path} does not run on {target.name}: {first}", reason=first.code)
    return EXIT_OK


def _text(found: DeviceCheck) -> str:
    lines = [f"{found.bundle} on {found.device}"]
    for one in found.artifacts:
        package = f", with the package {one.package}" if one.package else ""
        lines.append(f"  {one.artifact}: {f'no, {one.refusal}' if one.refusal else f'yes{package}'}")
    return "\n".join(lines)
