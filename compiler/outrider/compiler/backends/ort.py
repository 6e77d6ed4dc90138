"""ONNX models for ONNX Runtime: as they are, in float16, quantised, or quantised in part.

A file in the model's own precision passes through: ONNX Runtime optimises it when it loads it on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from outrider.compiler.backends import Built, Candidate, Order, Workbench, artifact_entry
from outrider.compiler.backends.graphs import GraphBackend
from outrider.compiler.model import OnnxGraph
from outrider.runtime.target import Requirements

if TYPE_CHECKING:
    import onnx

    from outrider.compiler.passes.int8 import Calibration, Prepared
    from outrider.compiler.passes.mixed import Ranking

Method = Literal["minmax", "entropy", "percentile"]

_METHODS: tuple[Method, ...] = ("minmax", "entropy", "percentile")  # of calibration
_KEPT = (0.1, 0.25, 0.5)  # shares of the layers that mixed precision keeps, the most sensitive ones, in float32
_RANKED_LAYERS = 48  # that are measured for the ranking by sensitivity; a few tenths of a second each

# Of the last model with its calibration, since candidates differ in method and in how many layers they keep alone.
_PREPARED: dict[tuple[str, ...], Prepared] = {}
_RANKED: dict[tuple[str, ...], tuple[Calibration, Ranking]] = {}


class OrtBackend(GraphBackend):
    """A candidate is a precision and, where it is int8, the method of calibration."""

    engine, title = "onnx", "ONNX Runtime"
    precisions = ("fp32", "fp16", "int8", "mixed")
    tools = ("onnx", "onnxruntime")

    def offers(self) -> Sequence[Candidate]:
        """Each precision, int8 by each method, and shares of the layers in float32."""
        int8 = [Candidate("ort", "int8", {"method": method}) for method in _METHODS]
        mixed = [Candidate("ort", "mixed", {"method": "minmax", "kept": f"{share:g}"}) for share in _KEPT]
        return [Candidate("ort"), *int8, Candidate("ort", "fp16"), *mixed]

    def explore(self, order: Order, bench: Workbench) -> None:
        """All precisions that may be tried; mixed ones where int8 loses too much, the least of float32 first."""
        allowed = self.allowed(order)
        whole = [one for one in allowed if one.precision != "mixed"]
        bench.build(whole)
        int8 = [one for one in whole if one.precision == "int8"]
        if int8 and any(bench.misses(one) == () for one in int8):
            return
        for one in allowed:
            if one.precision == "mixed":
                bench.build([one])
                if bench.misses(one) == ():
                    return

    def rule(self, order: Order) -> Sequence[Candidate]:
        """Quantised where that may be, since integers are the quicker everywhere; then the model's own precision."""
        first = {one.precision: one for one in reversed(self.allowed(order))}
        return [first[precision] for precision in ("int8", "fp32", "fp16") if precision in first]

    def build(self, order: Order, candidate: Candidate) -> Built:
        """Pass the file through, or rewrite it."""
        model = order.model
        assert isinstance(model.payload, OnnxGraph)
        data = model.payload.data if candidate.precision == "fp32" else _rewritten(order, model.payload.data, candidate)
        needs = Requirements(memory_bytes=len(data))
        entry = artifact_entry(
            model, candidate, data, file="model.onnx", kind="onnx", package="onnxruntime", triple=None, needs=needs
        )
        return Built(candidate, data, entry)


def _rewritten(order: Order, data: bytes, candidate: Candidate) -> bytes:
    """The file in another precision."""
    import onnx

    rewrite: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
        "fp16": _fp16,
        "int8": lambda model: _int8(model, order, candidate),
        "mixed": lambda model: _mixed(model, order, candidate),
    }
    made = rewrite[candidate.precision](onnx.load_model_from_string(data))
    rewritten: bytes = made.SerializeToString(deterministic=True)
    return rewritten


def _fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    from outrider.compiler.passes import get_pass, tidy

    return get_pass("fp16")(tidy(model))


def _int8(model: onnx.ModelProto, order: Order, candidate: Candidate) -> onnx.ModelProto:
    from outrider.compiler.passes.int8 import quantise

    return quantise(_calibrated(model, order, _method(candidate)))


def _mixed(model: onnx.ModelProto, order: Order, candidate: Candidate) -> onnx.ModelProto:
    from outrider.compiler.passes.mixed import keep_sensitive

    calibration, ranking = _ranked(model, order, _method(candidate))
    return keep_sensitive(calibration, ranking, math.ceil(float(candidate.options["kept"]) * len(ranking.layers)))


def _calibrated(model: onnx.ModelProto, order: Order, method: Method) -> Calibration:
    from outrider.compiler.passes.int8 import calibrate, prepare

    key = _key(order)
    if key not in _PREPARED:
        _PREPARED.clear()
        _PREPARED[key] = prepare(model, order.calibration)
    return calibrate(_PREPARED[key], method=method)


def _ranked(model: onnx.ModelProto, order: Order, method: Method) -> tuple[Calibration, Ranking]:
    """The layers by sensitivity, the first few measured.

    A count ends the measuring, not a clock: what is built must not depend on how busy the machine is.
    """
    from outrider.compiler.passes.mixed import rank

    key = *_key(order), method
    if key not in _RANKED:
        calibration = _calibrated(model, order, method)
        _RANKED.clear()
        _RANKED[key] = calibration, rank(calibration, order.calibration, most=_RANKED_LAYERS)
    return _RANKED[key]


def _key(order: Order) -> tuple[str, ...]:
    return order.model.sha256, *(text for call in order.calibration_prints for text in call)


def _method(candidate: Candidate) -> Method:
    return next(method for method in _METHODS if method == candidate.options["method"])
