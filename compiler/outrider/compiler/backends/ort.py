"""ONNX models as they are, for ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from outrider.compiler.backends import Built, Candidate, Workbench, artifact_entry
from outrider.compiler.model import Model, OnnxGraph
from outrider.runtime.target import Requirements, Target

_PACKAGED = ("x86_64", "aarch64")  # architectures with a wheel of onnxruntime


class OrtBackend:
    """The file passes through; ONNX Runtime optimises it when it loads it on the device."""

    def refuses(self, model: Model, target: Target) -> str | None:
        """Anything but an ONNX graph, and targets that ONNX Runtime is not packaged for."""
        if not isinstance(model.payload, OnnxGraph):
            return "the model is not an ONNX graph, which is what this backend takes"
        if target.arch not in _PACKAGED:
            return f"ONNX Runtime has no package for {target.arch}"
        return None

    def explore(self, model: Model, target: Target, bench: Workbench) -> None:
        """There is one way."""
        bench.build(self.rule(model, target))

    def rule(self, model: Model, target: Target) -> Sequence[Candidate]:
        """The model in its own precision."""
        return [Candidate("ort", "float32")]

    def recall(self, model: Model, target: Target, options: Mapping[str, str]) -> Candidate | None:
        """The one candidate."""
        return next((one for one in self.rule(model, target) if one.options == options), None)

    def faithful(self, model: Model, target: Target) -> Candidate | None:
        """The source is ONNX Runtime itself."""
        return None

    def build(self, model: Model, candidate: Candidate, target: Target) -> Built:
        """Pass the file through."""
        assert isinstance(model.payload, OnnxGraph)
        data = model.payload.data
        needs = Requirements(memory_bytes=len(data))
        entry = artifact_entry(
            model, candidate, data, file="model.onnx", kind="onnx", package="onnxruntime", triple=None, needs=needs
        )
        return Built(candidate, data, entry)

    def twin(self, model: Model, candidate: Candidate, host: Target) -> Built | None:
        """The file is the same everywhere."""
        return self.build(model, candidate, host)
