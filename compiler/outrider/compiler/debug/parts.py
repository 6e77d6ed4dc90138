"""An artifact whose engine shows no tensors within: parts of the source, up to a tensor, are compiled as it was.

By bisection: of the tensors in the order of the graph, one is looked for whose part agrees with the source while that
of a later one does not, until the two are neighbours. Where errors shrink again on the way, it is one such place of
several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from outrider.compiler.backends import BACKENDS, REDUCED, Built, Candidate, Order, backend
from outrider.compiler.debug.finding import Tally, TensorError, is_beyond, tensor_error
from outrider.compiler.debug.graph import Call, Origin, exposed, origins, run_plainly
from outrider.compiler.frontends import ReadOptions
from outrider.compiler.model import Array
from outrider.compiler.passes.graph import drop_unused, keep, types, uses
from outrider.compiler.passes.shapes import bind, infer
from outrider.compiler.workshop import Workshop
from outrider.runtime.bundle import CandidateRecord
from outrider.runtime.engines import open_engine
from outrider.runtime.errors import OutriderError, UnsupportedError
from outrider.runtime.target import Target

if TYPE_CHECKING:
    import onnx

_BUILD_S = 300.0
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """How the artifact was built, and for what. `calibration`: calls that fix ranges, and `calls` those compared.
    `tuning`: the records that it was built by."""

    record: CandidateRecord
    target: Target
    calibration: tuple[Call, ...]
    calls: tuple[Call, ...]
    beyond: float
    tuning: Mapping[str, bytes] = field(default_factory=dict)
    progress: Progress = lambda _: None


def bisect_parts(source: onnx.ModelProto, recipe: Recipe) -> list[TensorError]:
    """The errors of the parts that were compiled, in the order of the source's graph.

    Raises UnsupportedError where the backend takes no part of the graph.
    """
    graph = infer(source)
    cuts = _cuts(graph)
    wanted = [*run_plainly(exposed(graph, [origin.tensor for origin in cuts]), recipe.calls)]
    cuts = [origin for origin in cuts if all(origin.tensor in call for call in wanted)]
    if not cuts:
        raise UnsupportedError("the graph has no tensor of floats to compare")
    found: dict[int, _Outcome] = {}
    forms = _Forms(graph, recipe.calls[0])
    with Workshop() as workshop:

        def error_at(place: int) -> float | None:
            name = cuts[place].tensor
            recipe.progress(f"compiling up to {name}")
            found[place] = _try(workshop, forms, recipe, name, [call[name] for call in wanted])
            return found[place].error

        _search(error_at, len(cuts), recipe.beyond)
    before: float | None = 0.0
    told = []
    for place, outcome in sorted(found.items()):
        told.append(tensor_error(cuts[place], outcome.error, before, problem=outcome.problem))
        before = outcome.error
    return told


@dataclass(frozen=True)
class _Outcome:
    """The error of a part, None where it is infinite; `problem`: why it could not be built or run."""

    error: float | None
    problem: str | None = None


@dataclass(frozen=True)
class _Forms:
    """The source's graph with inferred types, its sizes free as they are, or bound to those of a call."""

    free: onnx.ModelProto
    call: Call

    @cached_property
    def bound(self) -> onnx.ModelProto:
        return infer(bind(self.free, {name: array.shape for name, array in self.call.items()}))

    def __iter__(self) -> Iterator[onnx.ModelProto]:
        yield self.free
        yield self.bound


def _search(error_at: Callable[[int], float | None], count: int, beyond: float) -> None:
    """Ask for errors until a place beyond has a neighbour in front that is not, or is the first itself."""
    low, high = -1, count - 1
    if not is_beyond(error_at(high), beyond):
        return
    while high - low > 1:
        middle = (low + high) // 2
        if is_beyond(error_at(middle), beyond):
            high = middle
        else:
            low = middle


def _cuts(model: onnx.ModelProto) -> list[Origin]:
    """Where the graph can be ended: at its first output at the latest, since that is what the artifact gives."""
    import onnx

    known = types(model.graph)
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    found = [one for one in origins(model) if known.get(one.tensor, (0, None))[0] in floats]
    outputs = {value.name for value in model.graph.output}
    last = max((place for place, one in enumerate(found) if one.tensor in outputs), default=len(found) - 1)
    return found[: last + 1]


def part_of(model: onnx.ModelProto, tensor: str) -> onnx.ModelProto:
    """The part of a graph with inferred types that ends at one tensor, with the inputs that it reads."""
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(model)
    known = {value.name: value for value in (*made.graph.value_info, *made.graph.output)}
    end = onnx.ValueInfoProto()
    end.CopyFrom(known[tensor])
    del made.graph.output[:]
    made.graph.output.append(end)
    drop_unused(made.graph)
    read = uses(made.graph)
    keep([*made.graph.input], made.graph.input, lambda value: read[value.name] > 0)
    return made


def _try(workshop: Workshop, forms: _Forms, recipe: Recipe, tensor: str, wanted: Sequence[Array]) -> _Outcome:
    """Build the part that ends at the tensor, run it, and compare."""
    name, record = recipe.record.backend, recipe.record
    order = _order(forms, recipe, tensor)
    candidate = backend(name).recall(order, record.precision, record.options)
    if candidate is None:
        raise UnsupportedError(f"this release does not know the candidate {record.id!r}")
    names = [spec.name for spec in order.model.signature.inputs]
    tally = Tally()
    try:
        built = _built(workshop, name, order, candidate)
        with closing(open_engine(built.entry, built.data, order.model.signature)) as engine:
            for call, truth in zip(recipe.calls, wanted, strict=True):
                tally.add(engine.run({key: call[key] for key in names})[tensor], truth)
    except OutriderError as e:
        return _Outcome(None, e.message)
    return _Outcome(tally.error)


def _order(forms: _Forms, recipe: Recipe, tensor: str) -> Order:
    """The part, ordered as the artifact was; with its sizes bound where the backend takes it in no other way."""
    from outrider.compiler.frontends.onnx import read_onnx

    precision = recipe.record.precision if recipe.record.precision in REDUCED else "fp32"
    refusal: str | None = None
    for graph in forms:
        part = part_of(graph, tensor)
        inputs = [value.name for value in part.graph.input]
        calibration = tuple({name: call[name] for name in inputs} for call in recipe.calibration)
        made = read_onnx(
            part.SerializeToString(), ReadOptions(examples={name: recipe.calls[0][name] for name in inputs})
        )
        order = Order(
            model=made,
            target=recipe.target,
            calibration=calibration,
            real=True,
            precisions=frozenset((precision,)),
            on_host=True,
            backends=(recipe.record.backend,),
            tuning=dict(recipe.tuning),
        )
        refusal = backend(recipe.record.backend).refuses(order)
        if refusal is None:
            return order
    raise UnsupportedError(f"{recipe.record.backend} does not compile the part up to {tensor!r}: {refusal}")


def _built(workshop: Workshop, name: str, order: Order, candidate: Candidate) -> Built:
    """The part as the artifact was built; in floats where nothing of it can be quantised, as it is in the artifact."""

    def build(order: Order, candidate: Candidate) -> Built:
        entry = "outrider.compiler.backends:build_elsewhere"
        made: Built = workshop.call(entry, BACKENDS[name], order.portable(), candidate, seconds=_BUILD_S)
        return made

    try:
        return build(order, candidate)
    except UnsupportedError:
        plain = backend(name).recall(order, "fp32", {}) if candidate.precision in REDUCED else None
        if plain is None:
            raise
        return build(replace(order, precisions=frozenset(("fp32",))), plain)
