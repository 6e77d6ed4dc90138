"""The engine of ONNX files: ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from outrider.runtime.bundle.manifest import ArtifactEntry, Signature
from outrider.runtime.engines.base import Array, Engine, tensors
from outrider.runtime.engines.onnxruntime_import import import_onnxruntime
from outrider.runtime.errors import BadBundleError, EngineFault

_SEVERITY_ERROR = 3


class OnnxEngine(Engine):
    """Runs an ONNX file. Calls from several threads run side by side.

    Tensors are matched by position: the entry's names are the signature's, the file may use names of its own.
    """

    binding = "onnxruntime"

    def __init__(self, session: Any, entry: ArtifactEntry) -> None:
        self._session = session
        self._inputs = dict(zip(entry.inputs, (tensor.name for tensor in session.get_inputs()), strict=True))
        self._outputs = dict(zip(entry.outputs, (tensor.name for tensor in session.get_outputs()), strict=True))
        self._path = entry.path

    @classmethod
    def open(cls, entry: ArtifactEntry, data: bytes, signature: Signature, *, threads: int = 1) -> OnnxEngine:
        """Load an ONNX file from memory; weights in other files are not allowed."""
        tensors(entry.inputs, signature.inputs)
        tensors(entry.outputs, signature.outputs)
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _SEVERITY_ERROR
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        try:
            session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as e:  # the binding raises one class a status code, with no common base but Exception
            raise EngineFault(f"ONNX Runtime cannot load {entry.path!r}: {e}") from e
        counts = len(session.get_inputs()), len(session.get_outputs())
        if counts != (len(entry.inputs), len(entry.outputs)):
            raise BadBundleError(f"{entry.path!r} has {counts[0]} inputs and {counts[1]} outputs, unlike its manifest")
        return cls(session, entry)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a batch; text outputs come as arrays of Python objects."""
        if self._session is None:
            raise EngineFault(f"{self._path!r} was closed")
        feed = {self._inputs[name]: inputs[name] for name in self._inputs}
        try:
            values = self._session.run(list(self._outputs.values()), feed)
        except Exception as e:  # as above
            raise EngineFault(f"ONNX Runtime failed on {self._path!r}: {e}") from e
        return {name: np.asarray(value) for name, value in zip(self._outputs, values, strict=True)}

    def close(self) -> None:
        """Drop the session."""
        self._session = None
