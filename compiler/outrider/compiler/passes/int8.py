"""Static quantisation to int8 by ONNX Runtime: QuantizeLinear and DequantizeLinear around each layer (QDQ).

Weights are int8 with a scale for each channel that a layer gives, activations uint8 with one scale for each tensor,
from their ranges on calibration feeds. Preparing is the slow part and is done once: `calibrate` then finds the ranges
by any method, and `quantise` gives the model with any layers kept in float32.
"""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from outrider.compiler.foreign import first_line
from outrider.compiler.passes.feeds import Feed, check_feeds
from outrider.compiler.passes.graph import Names, graphs, keep, need_values, standard
from outrider.compiler.passes.quiet import quiet
from outrider.compiler.passes.ranges import Method, Ranges, Seen, find_ranges, see
from outrider.compiler.passes.simplify import simplify
from outrider.compiler.passes.versions import raised
from outrider.runtime.engines.onnxruntime_import import import_onnxruntime
from outrider.runtime.errors import BadInputError, UnsupportedError

if TYPE_CHECKING:
    import onnx

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # operators that int8 is for
_MARKS = ("onnx.infer", "onnx.quant.pre_process")  # notes that ONNX Runtime leaves to itself


@dataclass(frozen=True)
class Prepared:
    """A model ready to be calibrated by any method: `seen` are its activations on the feeds, else as `Calibration`."""

    data: bytes
    seen: Seen
    layers: tuple[str, ...]
    places: Mapping[str, str]


@dataclass(frozen=True)
class Calibration:
    """A model ready to be quantised: `data` its ONNX bytes, `ranges` those of its activations on the feeds.

    `layers`: the names of the nodes that int8 is for, in the order of the graph. `places`: for each node of the model
    that was given, the node that does its work here.
    """

    data: bytes
    ranges: Ranges
    layers: tuple[str, ...]
    places: Mapping[str, str]

    def model(self) -> onnx.ModelProto:
        """The model in float32."""
        import onnx

        return onnx.load_model_from_string(self.data)


def int8(
    model: onnx.ModelProto, feeds: Sequence[Feed], *, method: Method = "minmax", exclude: Collection[str] = ()
) -> onnx.ModelProto:
    """The model in int8, calibrated on `feeds`: for each an array for each input, in its dtype and shape.

    method: an activation's range is all that was seen (`minmax`), what loses the least information (`entropy`), or all
    but the outermost 1e-4 (`percentile`). exclude: names of nodes to keep in float32.
    The same arguments give the same bytes. Raises as `prepare`, `calibrate` and `quantise` do.
    """
    return quantise(calibrate(prepare(model, feeds), method=method), exclude=exclude)


def prepare(model: onnx.ModelProto, feeds: Sequence[Feed]) -> Prepared:
    """Prepare a model for int8, and run it on the feeds.

    Raises BadDataError for feeds that do not fit the inputs, are too few, hold NaN or infinity or lead to them;
    UnsupportedError for a model without a layer that int8 is for, or with one that ONNX Runtime cannot run or quantise.
    """
    need_values(model)
    check_feeds(model, feeds)
    named = _named(model)
    processed = _pre_processed(named)
    layers = tuple(node.name for node in processed.graph.node if standard(node, *LAYERS))
    if not layers:
        raise UnsupportedError(f"the model has nothing to quantise: no {', '.join(LAYERS[:-1])} or {LAYERS[-1]}")
    data = processed.SerializeToString(deterministic=True)
    return Prepared(data, see(processed, feeds), layers, _places(named, processed))


def calibrate(prepared: Prepared, *, method: Method = "minmax") -> Calibration:
    """Find the ranges of the activations. Raises BadInputError for a method that is none."""
    if method not in get_args(Method):
        raise BadInputError(
            f"there is no calibration method {method!r}", hint=f"there are {', '.join(get_args(Method))}"
        )
    return Calibration(prepared.data, find_ranges(prepared.seen, method), prepared.layers, prepared.places)


def quantise(
    calibration: Calibration, *, exclude: Collection[str] = (), only: Collection[str] | None = None
) -> onnx.ModelProto:
    """The calibrated model in int8. exclude: names of nodes to keep in float32. only: the nodes to quantise at most.

    Names are those of the model as it was given, or of `calibration.layers`.
    Raises BadInputError for a node that is not there, UnsupportedError where nothing is left to quantise.
    """
    import onnx

    kept = sorted({_place(calibration, name) for name in exclude})
    chosen = None if only is None else sorted({_place(calibration, name) for name in only})
    nothing = UnsupportedError("nothing of the model can be quantised", hint="keep fewer nodes in float32")
    if chosen == []:
        raise nothing
    made = onnx.load_model_from_string(_run_ort(calibration, kept, chosen))
    if not any(standard(node, "QuantizeLinear", "DequantizeLinear") for node in made.graph.node):
        raise nothing
    return _clean(made)


# Preparing -----------------------------------------------------------------------------------------------------------


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in operators that know channels, with functions written out and a name of its own for each node."""
    made = raised(simplify(model) if model.functions else model)
    _name_nodes(made)
    return made


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give each node a name of its own, in place."""
    names, seen = Names(model), set[str]()
    for node in model.graph.node:
        if not node.name or node.name in seen:
            node.name = names.fresh(node.name or f"{node.op_type}_{node.output[0]}")
        seen.add(node.name)


def _pre_processed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as quantisation wants it: BatchNormalization and other small things merged, sizes inferred."""
    import onnx

    import_onnxruntime()
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="outrider-int8-") as folder, quiet():
        source, target = Path(folder, "model.onnx"), Path(folder, "prepared.onnx")
        source.write_bytes(model.SerializeToString(deterministic=True))
        try:
            quant_pre_process(source, target, skip_symbolic_shape=True)
            made = onnx.load_model(target)
        except Exception as e:  # of many kinds, some not exported
            raise UnsupportedError(f"ONNX Runtime cannot prepare the model for int8: {first_line(e)}") from e
    _name_nodes(made)
    return made


def _places(before: onnx.ModelProto, after: onnx.ModelProto) -> dict[str, str]:
    """Where the work of each node is done after preparing: under its name, or where its result comes out."""
    names = {node.name for node in after.graph.node}
    makers = {name: node.name for node in after.graph.node for name in node.output if name}
    readers: dict[str, onnx.NodeProto] = {}
    for node in reversed(before.graph.node):
        readers.update((name, node) for name in node.input)
    found: dict[str, str] = {}
    for node in reversed(before.graph.node):  # from the back, so that readers are placed before what they read
        if node.name in names:
            found[node.name] = node.name
            continue
        for name in node.output:
            reader = readers.get(name)
            place = makers.get(name) or (found.get(reader.name) if reader is not None else None)
            if place is not None:
                found[node.name] = place
                break
    return found


def _place(calibration: Calibration, name: str) -> str:
    if name in calibration.places:
        return calibration.places[name]
    if name in calibration.layers:
        return name
    near = difflib.get_close_matches(name, [*calibration.places, *calibration.layers], 3)
    raise BadInputError(
        f"the model has no node {name!r} to keep in float32, or it was folded away",
        hint=f"near it: {', '.join(near)}" if near else "names of nodes, not of values, are meant",
    )


# Calling ONNX Runtime ------------------------------------------------------------------------------------------------


def _run_ort(calibration: Calibration, exclude: Sequence[str], only: Sequence[str] | None) -> bytes:
    """The quantised model's bytes. The ranges go by a file, as those of an earlier calibration."""
    import_onnxruntime()
    from onnxruntime import quantization as ort
    from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data

    minmax = ort.CalibrationMethod.MinMax
    ends = {name: tuple(np.asarray(end, np.float32) for end in one) for name, one in calibration.ranges.items()}
    with tempfile.TemporaryDirectory(prefix="outrider-int8-") as folder, quiet():
        source, target, cache = (Path(folder, name) for name in ("model.onnx", "int8.onnx", "ranges.json"))
        source.write_bytes(calibration.data)
        save_tensors_data(TensorsData(minmax, ends), cache)
        try:
            ort.quantize_static(
                source,
                target,
                quant_format=ort.QuantFormat.QDQ,
                per_channel=True,
                activation_type=ort.QuantType.QUInt8,
                weight_type=ort.QuantType.QInt8,
                nodes_to_quantize=None if only is None else [*only],
                nodes_to_exclude=[*exclude],
                calibrate_method=minmax,
                calibration_cache_path=cache,
            )
        except Exception as e:  # of many kinds, some not exported
            raise UnsupportedError(f"ONNX Runtime cannot quantise the model: {first_line(e)}") from e
        return target.read_bytes()


def _clean(made: onnx.ModelProto) -> onnx.ModelProto:
    """Leave out notes, and operator sets that the model does not use."""
    used = {node.domain for graph in graphs(made.graph) for node in graph.node} | {"", "ai.onnx"}
    keep([*made.opset_import], made.opset_import, lambda one: one.domain in used)
    keep([*made.metadata_props], made.metadata_props, lambda one: one.key not in _MARKS)
    return made
