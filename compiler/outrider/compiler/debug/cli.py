"""`outrider debug --bisect`: the first operator, or quantised tensor, whose values are not the source model's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from outrider.compiler.backends import BACKENDS
from outrider.compiler.debug.finding import (
    BEYOND,
    BEYOND_EXACT,
    Bisection,
    Tally,
    TensorError,
    describe,
    is_beyond,
    largest,
)
from outrider.compiler.debug.graph import Call
from outrider.compiler.frontends import ReadOptions, read_model
from outrider.compiler.images import in_calls, prepare_calibration
from outrider.compiler.model import Array, Model, OnnxGraph
from outrider.compiler.options import ModelOptions, add_model_options, model_options
from outrider.compiler.samples import Samples, examples, golden_inputs, load_calibration, make_samples
from outrider.compiler.verify import spread
from outrider.runtime.admission import admissible, need_of
from outrider.runtime.arguments import Parser
from outrider.runtime.bundle import ArtifactEntry, Bundle, CandidateRecord, open_bundle
from outrider.runtime.calls import one_call
from outrider.runtime.engines import available, open_engine
from outrider.runtime.errors import (
    EXIT_OK,
    BadInputError,
    NotFoundError,
    TargetMismatchError,
    UnsupportedError,
    UsageError,
)
from outrider.runtime.output import as_json
from outrider.targets import get_target

CALLS = 4  # that are compared, spread over the calibration
_CALIBRATION_CALLS = 64


def main(argv: Sequence[str]) -> int:
    """`outrider debug --bisect x.orb MODEL`: exit code 0 whether or not anything diverges."""
    arguments = _parser().parse_args(argv)
    if not arguments.bisect:
        raise UsageError("say what to do", hint="--bisect looks for the first operator that diverges")
    if arguments.beyond is not None and not arguments.beyond >= 0:
        raise UsageError(f"{arguments.beyond} is no relative error", hint="give a number from 0, such as 0.05")
    options = model_options(arguments)

    from rich.console import Console

    bundle = open_bundle(arguments.bundle)
    with Console(stderr=True).status("reading the model") as status:
        found = bisect(
            bundle,
            arguments.model,
            options,
            artifact=arguments.artifact,
            beyond=arguments.beyond,
            progress=status.update,
        )
    print(as_json(found) if arguments.json else describe(found))
    return EXIT_OK


def bisect(
    bundle: Bundle,
    model: Path,
    options: ModelOptions,
    *,
    artifact: str | None = None,
    beyond: float | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Bisection:
    """Find where an artifact leaves its source, the ONNX model in the file `model`.

    Compares on some of the calibration's calls, or on golden ones where there is none. `artifact`: a candidate's id,
    None for the first that runs here. `beyond`: the relative L2 error from which a tensor diverges, None for what the
    artifact's precision does not explain. Raises UnsupportedError for models without operators, BadInputError where the
    model is not the bundle's, NotFoundError for an artifact that is not there, TargetMismatchError.
    """
    given, pictures = _given(bundle, options)
    source = _read(bundle, model, options, given)
    entry, record = _pick(bundle, artifact)
    samples = _samples(bundle, source, given, pictures=pictures)
    calls, calibration = (_calls(source, samples, count) for count in (CALLS, _CALIBRATION_CALLS))
    limit = BEYOND.get(record.precision, BEYOND_EXACT) if beyond is None else beyond
    data = bundle.read(entry.path)
    outputs = _outputs(entry, data, source, calls)
    progress("comparing")
    if entry.format == "onnx":
        method, tensors = "tensors", _by_tensors(source, data, calls)
    else:
        method, tensors = "parts", _by_parts(source, bundle, record, calls, calibration, limit, progress)
    return Bisection(
        bundle=str(bundle.path),
        artifact=record.id,
        method=method,
        beyond=limit,
        calls=len(calls),
        outputs=outputs,
        first=next((one for one in tensors if is_beyond(one.error, limit)), None),
        tensors=tuple(tensors),
    )


def _read(bundle: Bundle, path: Path, options: ModelOptions, given: Any) -> Model:
    """The source model, which must be the bundle's."""
    read_options = ReadOptions(
        class_labels=options.labels,
        trust_pickle=options.trust_pickle,
        examples=_examples(bundle, options, given),
        shapes=options.shapes,
    )
    model = read_model(path, read_options)
    if model.sha256 != bundle.manifest.source.sha256:
        raise BadInputError(
            f"{bundle.path} was compiled from another model than {path}",
            hint="where sizes were bound, give the same --shape",
        )
    if not isinstance(model.payload, OnnxGraph):
        raise UnsupportedError("the model is a tree ensemble, which has no operators to bisect")
    return model


def _given(bundle: Bundle, options: ModelOptions) -> tuple[Any, bool]:
    """The caller's calibration, else the golden calls; and whether it was images, which the bundle's plan prepared."""
    if options.calibration is None:
        return golden_inputs(bundle), False
    calibration, plan = load_calibration(options.calibration), bundle.manifest.images
    if plan is None:
        return calibration, False
    made, pictures = prepare_calibration(calibration, plan)
    return made, bool(pictures)


def _examples(bundle: Bundle, options: ModelOptions, given: Any) -> Mapping[str | None, Array]:
    if options.calibration is not None:
        return examples(given)
    batched = bundle.manifest.signature.batched
    return {name: array if batched else array[0] for name, array in given.items()}


def _samples(bundle: Bundle, model: Model, given: Any, *, pictures: bool) -> Samples:
    plan = bundle.manifest.images
    return make_samples(model, in_calls(given, plan, model.signature) if plan is not None and pictures else given)


def _calls(model: Model, samples: Samples, count: int) -> tuple[Call, ...]:
    batched = model.signature.batched
    picked = spread(samples.rows, count).tolist()
    return tuple(one_call(samples.inputs, number, batched=batched) for number in picked)


def _pick(bundle: Bundle, wanted: str | None) -> tuple[ArtifactEntry, CandidateRecord]:
    """The artifact of that candidate, or the first that runs here."""
    host, refusals = get_target("host"), []
    records = {record.id: record for record in bundle.manifest.candidates}
    entries = [one for one in bundle.manifest.ranked_artifacts() if wanted in (None, one.candidate)]
    if not entries:
        known = ", ".join(one.candidate for one in bundle.manifest.artifacts)
        raise NotFoundError(f"{bundle.path} has no artifact {wanted!r}", hint=f"it has {known}")
    for entry in entries:
        refusal = admissible(need_of(entry), host, engines=available)
        if refusal is None:
            return entry, records[entry.candidate]
        refusals.append(refusal)
    raise TargetMismatchError(f"{entries[0].candidate} does not run here: {refusals[0]}", reason=refusals[0].code)


def _outputs(entry: ArtifactEntry, data: bytes, source: Model, calls: Sequence[Call]) -> float | None:
    """The largest error of an output, by the engine as a device runs it."""
    tallies: dict[str, Tally] = {}
    with closing(open_engine(entry, data, source.signature)) as engine:
        for call in calls:
            found, wanted = engine.run(call), source.reference(call)
            for name, truth in wanted.items():
                if np.asarray(truth).dtype.kind == "f":
                    tallies.setdefault(name, Tally()).add(found[name], truth)
    return largest([tally.error for tally in tallies.values()])


def _by_tensors(source: Model, data: bytes, calls: Sequence[Call]) -> list[TensorError]:
    import onnx

    from outrider.compiler.debug.tensors import compare_tensors

    assert isinstance(source.payload, OnnxGraph)
    read = onnx.load_model_from_string
    return compare_tensors(read(source.payload.data), read(data), calls)


def _by_parts(
    source: Model,
    bundle: Bundle,
    record: CandidateRecord,
    calls: tuple[Call, ...],
    calibration: tuple[Call, ...],
    beyond: float,
    progress: Callable[[str], None],
) -> list[TensorError]:
    import onnx

    from outrider.compiler.debug.parts import Recipe, bisect_parts
    from outrider.compiler.pipeline import tuning_of

    if record.backend not in BACKENDS:
        raise UnsupportedError(f"this release has no backend {record.backend!r} to compile parts with")
    assert isinstance(source.payload, OnnxGraph)
    # Parts run here, whatever the artifact was compiled for: it does so, too.
    recipe = Recipe(record, get_target("host"), calibration, calls, beyond, tuning_of(bundle), progress)
    return bisect_parts(onnx.load_model_from_string(source.payload.data), recipe)


def _parser() -> Parser:
    parser = Parser(prog="outrider debug", description="Where does a compiled network leave its source model?")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the .orb file")
    parser.add_argument("model", type=Path, metavar="MODEL", help="the model that it was compiled from")
    parser.add_argument(
        "--bisect", action="store_true", help="find the first operator or quantised tensor that diverges"
    )
    parser.add_argument(
        "--artifact", metavar="ID", help="of the bundle's artifacts (default: the first that runs here)"
    )
    parser.add_argument(
        "--beyond",
        type=float,
        metavar="ERROR",
        help="the relative L2 error from which a tensor diverges (default: by precision)",
    )
    parser.add_argument("--json", action="store_true", help="print all that was compared as JSON")
    add_model_options(parser)
    return parser
