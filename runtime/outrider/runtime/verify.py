"""`outrider verify`: the golden vectors of a bundle on this machine, by every artifact that runs here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from outrider.runtime.arguments import Parser, positive
from outrider.runtime.bundle import Bundle, open_bundle
from outrider.runtime.bundle.signed import check_signature
from outrider.runtime.errors import EXIT_OK, EngineFault, ParityError, TargetMismatchError
from outrider.runtime.golden import DEFAULT_REPEATS, check_golden
from outrider.runtime.output import as_json
from outrider.runtime.session import Session, load_each
from outrider.runtime.target import Refusal, Target
from outrider.runtime.trust import TrustStore


class ArtifactCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One artifact on this machine.

    `agrees`, `disagrees`: with the golden vectors; `failed`: its engine did; `does not run`: on this machine, for the
    reason `refusal`. `max_abs_error` and `p99_ms` are of the golden check, None where there was none; an error is None
    also where it is infinite.
    """

    artifact: str
    outcome: Literal["agrees", "disagrees", "failed", "does not run"]
    detail: str
    refusal: Refusal | None = None
    max_abs_error: float | None = None
    p99_ms: float | None = None


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What `outrider verify --json` prints: the artifacts by rank."""

    path: str
    sha256: str
    rows: int
    artifacts: tuple[ArtifactCheck, ...]


def verify_bundle(
    bundle: Bundle, *, target: Target | None = None, threads: int = 1, repeats: int = DEFAULT_REPEATS
) -> Verification:
    """Replay the golden vectors by every artifact that runs on `target`, None for this machine.

    Raises BadBundleError for golden files that cannot be read.
    """
    checks = []
    for artifact, found in load_each(bundle, target, threads):
        if isinstance(found, Session):
            checks.append(_checked(found, repeats))
        elif isinstance(found, Refusal):
            checks.append(
                ArtifactCheck(artifact=artifact.candidate, outcome="does not run", detail=str(found), refusal=found)
            )
        else:
            checks.append(ArtifactCheck(artifact=artifact.candidate, outcome="failed", detail=found.message))
    rows = bundle.manifest.golden.rows
    return Verification(path=str(bundle.path), sha256=bundle.sha256, rows=rows, artifacts=tuple(checks))


def _checked(session: Session, repeats: int) -> ArtifactCheck:
    name = session.artifact.candidate
    try:
        result = check_golden(session, repeats=repeats)
    except EngineFault as e:
        return ArtifactCheck(artifact=name, outcome="failed", detail=e.message)
    error = result.max_abs_error
    return ArtifactCheck(
        artifact=name,
        outcome="agrees" if result.passed else "disagrees",
        detail=result.detail,
        max_abs_error=error if error < float("inf") else None,
        p99_ms=result.p99_ms,
    )


def judge(found: Verification) -> None:
    """Raises ParityError where an artifact disagrees or fails, TargetMismatchError where none runs here."""
    wrong = [check for check in found.artifacts if check.outcome in ("disagrees", "failed")]
    if wrong:
        raise ParityError(f"{found.path}: {'; '.join(f'{one.artifact}: {one.detail}' for one in wrong)}")
    refusals = [check.refusal for check in found.artifacts if check.refusal is not None]
    if len(refusals) == len(found.artifacts):
        reasons = "; ".join(f"{check.artifact}: {check.refusal}" for check in found.artifacts)
        raise TargetMismatchError(f"no artifact of {found.path} runs here: {reasons}", reason=refusals[0].code)


def main(argv: Sequence[str]) -> int:
    """`outrider verify x.orb`: exit code 0 where all that runs here agrees, 6 where something does not, 5 for none."""
    parser = Parser(prog="outrider verify", description="Replay a bundle's golden vectors on this machine.")
    parser.add_argument("bundle", type=Path, help="the .orb file")
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="that a run may use (default: 1)")
    parser.add_argument("--trust", type=Path, metavar="DIR", help="check the signature: a trust store or a .pub file")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    arguments = parser.parse_args(argv)
    bundle = open_bundle(arguments.bundle)
    if arguments.trust is not None:
        check_signature(bundle, TrustStore.load(arguments.trust))
    found = verify_bundle(bundle, threads=arguments.threads)
    print(as_json(found) if arguments.json else _text(found))
    judge(found)
    return EXIT_OK


def _text(found: Verification) -> str:
    lines = [f"{found.path}: {found.rows} golden rows"]
    for check in found.artifacts:
        error = "" if check.max_abs_error is None else f", error {check.max_abs_error:.2e}"
        time = "" if check.p99_ms is None else f", p99 of a row {check.p99_ms:.4g} ms"
        lines.append(f"  {check.artifact}: {check.outcome}{error}{time}; {check.detail}")
    return "\n".join(lines)
