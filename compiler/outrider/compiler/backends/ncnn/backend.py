"""ONNX models for ncnn, for ARM above all: converted by pnnx for fixed sizes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from outrider.compiler.backends import Built, Candidate, Order, Workbench, artifact_entry, row_shapes
from outrider.compiler.backends.graphs import GraphBackend
from outrider.compiler.backends.ncnn.convert import convert
from outrider.compiler.model import OnnxGraph
from outrider.runtime.calls import rows_of_call
from outrider.runtime.engines.ncnn_file import NcnnPrecision
from outrider.runtime.target import Requirements


class NcnnBackend(GraphBackend):
    """A candidate is a precision. `fp16` stores weights in half the bytes, and computes with them as a device can."""

    engine, title = "ncnn", "ncnn"
    precisions = ("fp32", "fp16")
    tools = ("onnx", "ncnn", "pnnx")

    def refuses(self, order: Order) -> str | None:
        """Anything but an ONNX graph of float32 tensors and fixed sizes, and what ncnn is not packaged for."""
        refusal = super().refuses(order)
        if refusal is not None:
            return refusal
        model, signature = order.model, order.model.signature
        for module, package in (("ncnn", "ncnn"), ("pnnx", "networks")):
            if find_spec(module) is None:
                return f"the package {module} is not installed: pip install 'outrider[{package}]'"
        for spec in signature.inputs:
            if not spec.shape:
                return f"ncnn takes no single number, as the input {spec.name!r} is"
            if None in spec.shape[1:] or (spec.shape[0] is None and not signature.batched):
                return f"ncnn needs every size of the input {spec.name!r} fixed: bind it by a shape"
            if spec.dtype != "float32":
                return f"ncnn takes float32, and the input {spec.name!r} is {spec.dtype}"
        if not signature.batched and rows_of_call(signature) is None:
            return "ncnn computes row by row, and axis 0 of this model's tensors does not count rows"
        computed = [spec for spec in signature.outputs if spec.name in model.computed]
        others = [spec for spec in computed if spec.dtype != "float32"]
        return f"ncnn gives float32, and the output {others[0].name!r} is {others[0].dtype}" if others else None

    def offers(self) -> Sequence[Candidate]:
        """Each precision."""
        return [Candidate("ncnn", precision) for precision in self.precisions]

    def explore(self, order: Order, bench: Workbench) -> None:
        """All precisions that may be tried."""
        bench.build(self.allowed(order))

    def rule(self, order: Order) -> Sequence[Candidate]:
        """Half the bytes first, where that may be: many ARM cores compute in float16 twice as fast."""
        return sorted(self.allowed(order), key=lambda one: one.precision != "fp16")

    def build(self, order: Order, candidate: Candidate) -> Built:
        """Bind and convert."""
        model = order.model
        assert isinstance(model.payload, OnnxGraph)
        precision: NcnnPrecision = "float16" if candidate.precision == "fp16" else "float32"
        data = convert(model.payload.data, row_shapes(model), precision=precision)
        entry = artifact_entry(
            model,
            candidate,
            data,
            file="model.ncnn",
            kind="ncnn",
            package="ncnn",
            triple=None,
            needs=Requirements(memory_bytes=2 * len(data)),
        )
        return Built(candidate, data, entry)
