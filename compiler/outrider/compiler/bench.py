"""`outrider bench`: the artifacts of a bundle against each other on this machine, on its golden rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from outrider.compiler.measure import BATCHES, Load, Run, Timing, measure
from outrider.compiler.report import align
from outrider.compiler.samples import golden_inputs
from outrider.runtime.arguments import Parser, positive
from outrider.runtime.bundle import Bundle, Measurement, Signature, open_bundle
from outrider.runtime.calls import rows_of_call
from outrider.runtime.errors import EXIT_OK, EngineFault, TargetMismatchError, UsageError
from outrider.runtime.output import as_json
from outrider.runtime.session import Session, load_each
from outrider.runtime.target import Refusal, Target


class ArtifactTimes(msgspec.Struct, frozen=True, kw_only=True):
    """One artifact: CPU times by batch size, and the wall time of calls of the smallest batch in ms."""

    artifact: str
    measured: tuple[Measurement, ...]
    p50_ms: float
    p99_ms: float


class BenchResult(msgspec.Struct, frozen=True, kw_only=True):
    """What `outrider bench --json` prints. `refused`: why others do not run here, by candidate."""

    path: str
    sha256: str
    threads: int
    artifacts: tuple[ArtifactTimes, ...]
    refused: dict[str, str]


@dataclass(frozen=True)
class _Runs:
    runs: dict[str, Run]
    refused: dict[str, Refusal | EngineFault]


def bench_bundle(
    bundle: Bundle, batches: Sequence[int] | None = None, *, threads: int = 1, target: Target | None = None
) -> BenchResult:
    """Time every artifact that runs on `target`, None for this machine, interleaved, as a caller of a session has them.

    `batches`: rows of a call, None for 1, 64 and 1024. Raises TargetMismatchError where nothing runs here, UsageError
    for batches of a model whose calls are whole tensors.
    """
    signature = bundle.manifest.signature
    if batches and not signature.batched:
        raise UsageError("the model takes whole tensors, so its calls are of one size", hint="leave --batch out")
    if any(batch < 1 for batch in batches or ()):
        raise UsageError(f"a batch of {min(batches or ())} rows cannot be run", hint="give 1 or more")
    sizes = tuple(sorted(set(batches or BATCHES)))
    load = Load(golden_inputs(bundle), signature.batched, rows_of_call(signature) or 1, sizes, threads)
    with ExitStack() as stack:
        found = _open_all(bundle, target, threads, stack)
        if not found.runs:
            raise _nothing(bundle, found)
        timings = measure(found.runs, load)
    return BenchResult(
        path=str(bundle.path),
        sha256=bundle.sha256,
        threads=threads,
        artifacts=tuple(_times(name, timing) for name, timing in timings.items()),
        refused={name: str(why) for name, why in found.refused.items()},
    )


def _open_all(bundle: Bundle, target: Target | None, threads: int, stack: ExitStack) -> _Runs:
    """Everything that runs, open side by side."""
    runs: dict[str, Run] = {}
    refused: dict[str, Refusal | EngineFault] = {}
    for artifact, found in load_each(bundle, target, threads, keep=stack):
        if isinstance(found, Session):
            runs[artifact.candidate] = _call(found, bundle.manifest.signature)
        else:
            refused[artifact.candidate] = found
    return _Runs(runs, refused)


def _call(session: Session, signature: Signature) -> Run:
    """As a session's caller would: the main output of a model of one input, all of another."""
    if len(signature.inputs) != 1:
        return session.run
    name, predict = signature.inputs[0].name, session.predict
    return lambda inputs: predict(inputs[name])


def _times(name: str, timing: Timing) -> ArtifactTimes:
    return ArtifactTimes(artifact=name, measured=timing.measured, p50_ms=timing.p50_ms, p99_ms=timing.p99_ms)


def _nothing(bundle: Bundle, found: _Runs) -> TargetMismatchError | EngineFault:
    first = next(iter(found.refused.values()))
    reasons = "; ".join(f"{name}: {why}" for name, why in found.refused.items())
    if isinstance(first, EngineFault):
        return first
    return TargetMismatchError(f"no artifact of {bundle.path} runs here: {reasons}", reason=first.code)


def main(argv: Sequence[str]) -> int:
    """`outrider bench x.orb`: exit code 5 where nothing of it runs here."""
    parser = Parser(prog="outrider bench", description="Time a bundle's artifacts on this machine, interleaved.")
    parser.add_argument("bundle", type=Path, help="the .orb file")
    parser.add_argument(
        "--batch",
        type=positive,
        action="append",
        metavar="ROWS",
        help="rows of a call (default: 1, 64, 1024); may be repeated",
    )
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="that a run may use (default: 1)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    arguments = parser.parse_args(argv)
    found = bench_bundle(open_bundle(arguments.bundle), arguments.batch, threads=arguments.threads)
    print(as_json(found) if arguments.json else _text(found))
    return EXIT_OK


def _text(found: BenchResult) -> str:
    batches = sorted({one.batch for artifact in found.artifacts for one in artifact.measured})
    heads = [text for n in batches for text in (f"{n} row{'s' * (n > 1)}, least", "median")]
    rows = [_row(artifact, batches) for artifact in found.artifacts]
    lines = align([("artifact", "", *heads, "p50 ms", "p99 ms", ""), *rows])
    lines += [f"{name} does not run here: {why}" for name, why in found.refused.items()]
    threads, rows_of = f"{found.threads} thread{'s' * (found.threads > 1)}", f"{batches[0]} row{'s' * (batches[0] > 1)}"
    lines.append(f"CPU ns a row, interleaved, {threads}; p50 and p99: wall time of calls of {rows_of}")
    return "\n".join(line.rstrip() for line in lines)


def _row(artifact: ArtifactTimes, batches: Sequence[int]) -> tuple[str, ...]:
    known = {one.batch: (f"{one.ns_per_row_min:,.0f}", f"{one.ns_per_row_median:,.0f}") for one in artifact.measured}
    times = [text for batch in batches for text in known.get(batch, ("-", "-"))]
    return (artifact.artifact, "", *times, f"{artifact.p50_ms:.4g}", f"{artifact.p99_ms:.4g}", "")
