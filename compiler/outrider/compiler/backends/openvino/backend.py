"""ONNX models for OpenVINO, in float32, with weights in float16, and quantised by NNCF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from outrider.compiler.backends import Built, Candidate, Order, Workbench, artifact_entry
from outrider.compiler.backends.openvino.convert import convert_onnx
from outrider.compiler.backends.openvino.quantise import Int8Options, Preset, quantise_onnx
from outrider.compiler.model import OnnxGraph
from outrider.runtime.engines import ENGINES
from outrider.runtime.target import Requirements, Target

_PACKAGED = ENGINES["openvino"].archs  # architectures with a wheel of openvino
_PRESETS: tuple[Preset, ...] = ("mixed", "performance")


class OpenVinoBackend:
    """A candidate is a precision and, where it is int8, NNCF's preset. `fp16` halves weights; sums stay in float32."""

    isolated = True
    precisions = ("fp32", "fp16", "int8")
    tools = ("onnx", "openvino", "nncf")

    def refuses(self, order: Order) -> str | None:
        """Anything but an ONNX graph, and what OpenVINO is not packaged for or not installed to convert."""
        if not isinstance(order.model.payload, OnnxGraph):
            return "the model is not an ONNX graph, which is what this backend takes"
        if order.target.arch not in _PACKAGED:
            return f"OpenVINO has no package for {order.target.arch}"
        if find_spec("openvino") is None:
            return "the package openvino is not installed: pip install 'outrider[openvino]'"
        texts = [spec.name for spec in order.model.signature.inputs if spec.dtype == "string"]
        return f"OpenVINO takes no text, as the input {texts[0]!r} is" if texts else None

    def explore(self, order: Order, bench: Workbench) -> None:
        """All precisions that may be tried."""
        bench.build([one for one in self._every() if order.allows(one.precision)])

    def rule(self, order: Order) -> Sequence[Candidate]:
        """Quantised where that may be, then float32."""
        allowed = {one.precision: one for one in reversed(self._every()) if order.allows(one.precision)}
        return [allowed[precision] for precision in ("int8", "fp32", "fp16") if precision in allowed]

    def recall(self, order: Order, precision: str, options: Mapping[str, str]) -> Candidate | None:
        """One of what is offered."""
        return next((one for one in self._every() if (one.precision, one.options) == (precision, options)), None)

    def faithful(self, order: Order) -> Candidate | None:
        """There is no other way of computing in OpenVINO."""
        return None

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

    def twin(self, order: Order, candidate: Candidate, host: Target) -> Built | None:
        """The file is the same everywhere."""
        return self.build(order, candidate)

    @staticmethod
    def _every() -> list[Candidate]:
        int8 = [Candidate("openvino", "int8", {"preset": preset}) for preset in _PRESETS]
        return [Candidate("openvino"), *int8, Candidate("openvino", "fp16")]
