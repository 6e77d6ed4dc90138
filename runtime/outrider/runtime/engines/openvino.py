"""The engine of OpenVINO artifacts: OpenVINO on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from outrider.runtime.bundle.manifest import ArtifactEntry, Signature
from outrider.runtime.engines.base import Array, Engine, tensors
from outrider.runtime.engines.openvino_files import Arithmetic, import_openvino, openvino_core, unpack_files
from outrider.runtime.errors import BadBundleError, EngineFault

ALIGNMENT = 16  # bytes, of the constants
_INT64, _INT32 = np.dtype(np.int64), np.iinfo(np.int32)


class OpenVinoEngine(Engine):
    """Runs a model in OpenVINO's intermediate representation. Calls from several threads run one after the other.

    Tensors are matched by position: the entry's names are the signature's, the file may use names of its own.
    OpenVINO's CPU plugin computes 64-bit integers in 32 bits and float64 in float32, so int64 inputs that do not fit
    are refused.
    """

    binding = "openvino"

    def __init__(self, compiled: Any, tensor: Any, weights: Array, entry: ArtifactEntry) -> None:
        from openvino._pyopenvino import InferRequest

        # The binding's own function: the public one around it looks every value's type up first, which takes longer
        # than all of a small model.
        self._infer = InferRequest.infer
        self._request: Any = compiled.create_infer_request()
        self._tensor = tensor
        self._weights: Array | None = weights  # the compiled model may read constants where they lie
        self._inputs = entry.inputs
        self._outputs = entry.outputs
        self._path = entry.path
        self._lock = threading.Lock()

    @classmethod
    def open(cls, entry: ArtifactEntry, data: bytes, signature: Signature, *, threads: int = 1) -> OpenVinoEngine:
        """Read the graph, whose constants stay where they lie in `data`, and compile it for this processor."""
        specs = (*tensors(entry.inputs, signature.inputs), *tensors(entry.outputs, signature.outputs))
        text = [spec.name for spec in specs if spec.dtype == "string"]
        if text:
            raise BadBundleError(f"{entry.path!r} is for OpenVINO, which has no tensors of text like {text[0]!r}")
        openvino, core = import_openvino(), openvino_core()
        files = unpack_files(data)
        weights = _writeable(files.weights)
        try:
            model = core.read_model(files.graph, openvino.Tensor(weights, shared_memory=True))
            compiled = core.compile_model(model, "CPU", plugin_config(files.settings.arithmetic, threads))
        except Exception as e:  # the binding raises RuntimeError for all of it, and may let others through
            raise EngineFault(f"OpenVINO cannot load {entry.path!r}: {brief(e)}") from e
        counts = len(compiled.inputs), len(compiled.outputs)
        if counts != (len(entry.inputs), len(entry.outputs)):
            raise BadBundleError(f"{entry.path!r} has {counts[0]} inputs and {counts[1]} outputs, unlike its manifest")
        return cls(compiled, openvino.Tensor, weights, entry)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a batch. Inputs are read where they lie; those that cannot be written to are copied first."""
        arrays = [inputs[name] for name in self._inputs]
        with self._lock:
            if self._request is None:
                raise EngineFault(f"{self._path!r} was closed")
            try:
                values = self._infer(self._request, self._feed(arrays), False, True).values()
            except EngineFault:
                raise
            except Exception as e:  # as above
                raise EngineFault(f"OpenVINO failed on {self._path!r}: {brief(e)}") from e
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Drop the request with its model, once no call is running."""
        with self._lock:
            self._request = None
            self._weights = None

    def _feed(self, arrays: Sequence[Array]) -> Any:
        """What the binding takes: a tensor, or tensors by position. They share the arrays' memory."""
        for array in arrays:
            if array.dtype == _INT64 and array.size and (array.max() > _INT32.max or array.min() < _INT32.min):
                raise EngineFault(f"OpenVINO computes in 32-bit integers, which an input of {self._path!r} exceeds")
        tensor = self._tensor
        if len(arrays) == 1:
            return tensor(arrays[0], arrays[0].flags.writeable)
        return {i: tensor(array, array.flags.writeable) for i, array in enumerate(arrays)}


def plugin_config(arithmetic: Arithmetic, threads: int) -> dict[str, Any]:
    """What decides the speed of a single call, and the numbers, so that neither is left to the plugin.

    Threads are not pinned to cores: several models on one device would all choose the first.
    """
    return {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": arithmetic,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }


def brief(error: Exception) -> str:
    """The lines of an error of OpenVINO's that say something: not those of where in its sources it was raised."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from ", "Check '"))]
    return " ".join(said) or str(error).strip()


def _writeable(data: memoryview) -> Array:
    """The bytes as an array that the binding agrees to share; it only reads them. A copy where they are not aligned."""
    array = np.frombuffer(data, np.uint8)
    if array.ctypes.data % ALIGNMENT:
        return array.copy()
    return np.asarray(_Writeable(array)) if array.size else array.copy()


class _Writeable:
    """A read-only array that says it can be written to."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}
