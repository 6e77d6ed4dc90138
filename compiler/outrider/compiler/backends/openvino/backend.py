"""ONNX models for OpenVINO, in float32, with weights in float16, and quantised by NNCF."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from outrider.compiler.backends import Built, Candidate, Order, Workbench, artifact_entry
from outrider.compiler.backends.graphs import GraphBackend
from outrider.compiler.backends.openvino.convert import convert_onnx
from outrider.compiler.backends.openvino.quantise import Int8Options, Preset, quantise_onnx
from outrider.compiler.model import OnnxGraph
from outrider.runtime.target import Requirements

_PRESETS: tuple[Preset, ...] = ("mixed", "performance")


class OpenVinoBackend(GraphBackend):
    """A candidate is a precision and, where it is int8, NNCF's preset. `fp16` halves weights; sums stay in float32."""

    engine, title = "openvino", "OpenVINO"
    precisions = ("fp32", "fp16", "int8")
    tools = ("onnx", "openvino", "nncf")

    def refuses(self, order: Order) -> str | None:
        """Anything but an ONNX graph, and what OpenVINO is not packaged for or not installed to convert."""
        refusal = super().refuses(order)
        if refusal is not None:
            return refusal
        if find_spec("openvino") is None:
            return "the package openvino is not installed: pip install 'outrider[openvino]'"
        texts = [spec.name for spec in order.model.signature.inputs if spec.dtype == "string"]
        return f"OpenVINO takes no text, as the input {texts[0]!r} is" if texts else None

    def offers(self) -> Sequence[Candidate]:
        """Each precision, int8 by each preset."""
        int8 = [Candidate("openvino", "int8", {"preset": preset}) for preset in _PRESETS]
        return [Candidate("openvino"), *int8, Candidate("openvino", "fp16")]

    def explore(self, order: Order, bench: Workbench) -> None:
        """All precisions that may be tried."""
        bench.build(self.allowed(order))

    def rule(self, order: Order) -> Sequence[Candidate]:
        """Quantised where that may be, then float32."""
        first = {one.precision: one for one in reversed(self.allowed(order))}
        return [first[precision] for precision in ("int8", "fp32", "fp16") if precision in first]

    def build(self, order: Order, candidate: Candidate) -> Built:
        """Convert or quantise."""
        model = order.model
        assert isinstance(model.payload, OnnxGraph)
        if candidate.precision == "int8":
            preset = next(preset for preset in _PRESETS if preset == candidate.options["preset"])
            data = quantise_onnx(model.payload.data, order.calibration, Int8Options(preset=preset))
        else:
            data = convert_onnx(model.payload.data, weights="fp16" if candidate.precision == "fp16" else "fp32")
        entry = artifact_entry(
            model,
            candidate,
            data,
            file="model.ov",
            kind="openvino",
            package="openvino",
            triple=None,
            needs=Requirements(memory_bytes=len(data)),
        )
        return Built(candidate, data, entry)
