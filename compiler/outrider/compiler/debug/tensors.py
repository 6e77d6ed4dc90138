"""An ONNX artifact against its source, tensor by tensor: both graphs are run with the tensors that both name laid open.

Passes keep the names of what they keep. A quantised graph names a tensor `x` as the operator gives it, and
`x_DequantizeLinear_Output` as it is after it was held in int8; a graph in float16 names it `x_half`. Where quantising
does the work of another operator too, as for a Relu whose range begins at 0, `x` is not yet what it was in the source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outrider.compiler.debug.finding import Tally, TensorError, largest, tensor_error
from outrider.compiler.debug.graph import INPUT, Call, Origin, exposed, input_origins, origins, run_plainly

if TYPE_CHECKING:
    import onnx

_QUANTISED, _HALF = "_DequantizeLinear_Output", "_half"


@dataclass(frozen=True)
class _Pair:
    """A tensor of the source, and one of the artifact that should be the same."""

    origin: Origin
    found_as: str
    quantised: bool


def compare_tensors(source: onnx.ModelProto, artifact: onnx.ModelProto, calls: Sequence[Call]) -> list[TensorError]:
    """The errors of all tensors that both have, in the order of the source's graph.

    Raises UnsupportedError where ONNX Runtime cannot run one of the graphs.
    """
    made_by = [*input_origins(source), *origins(source)]
    given = {origin.tensor for origin in made_by if origin.operator == INPUT}
    pairs = _pairs(made_by, artifact)
    wanted = exposed(source, [pair.origin.tensor for pair in pairs if pair.origin.tensor not in given])
    found = exposed(artifact, [pair.found_as for pair in pairs])
    tallies = {pair.found_as: Tally() for pair in pairs}
    seen: set[str] = set()
    # Call by call, so that no more than the tensors of one call are in memory.
    for call, theirs, ours in zip(calls, run_plainly(wanted, calls), run_plainly(found, calls), strict=True):
        theirs |= {name: call[name] for name in given if call[name].dtype.kind == "f"}
        for pair in pairs:
            if pair.origin.tensor in theirs and pair.found_as in ours:
                seen.add(pair.found_as)
                tallies[pair.found_as].add(ours[pair.found_as], theirs[pair.origin.tensor])
    errors = {name: tally.error for name, tally in tallies.items() if name in seen}
    return _told(pairs, errors, made_by)


def _pairs(made_by: Sequence[Origin], artifact: onnx.ModelProto) -> list[_Pair]:
    makers = {name: node.op_type for node in artifact.graph.node for name in node.output if name}
    pairs = []
    for origin in made_by:
        plain = next((name for name in (origin.tensor, f"{origin.tensor}{_HALF}") if name in makers), None)
        quantised = f"{origin.tensor}{_QUANTISED}"
        if plain is not None and (quantised not in makers or makers[plain] == origin.operator):
            pairs.append(_Pair(origin, plain, quantised=False))
        if quantised in makers:
            pairs.append(_Pair(origin, quantised, quantised=True))
    return pairs


def _told(pairs: Sequence[_Pair], errors: Mapping[str, float | None], made_by: Sequence[Origin]) -> list[TensorError]:
    """Each with the error of what it is made of: of tensors that were fused away, of what those are made of."""
    last: dict[str, float | None] = {}  # by tensor of the source, as what follows it reads it
    by_tensor: dict[str, list[_Pair]] = {}
    for pair in pairs:
        by_tensor.setdefault(pair.origin.tensor, []).append(pair)
    told = []
    for origin in made_by:
        before = largest([last.get(name, 0.0) for name in origin.inputs])
        last[origin.tensor] = before
        for pair in by_tensor.get(origin.tensor, ()):
            if pair.found_as not in errors:
                continue
            error = errors[pair.found_as]
            told.append(tensor_error(origin, error, before, found_as=pair.found_as, quantised=pair.quantised))
            last[origin.tensor] = before = error
    return told
