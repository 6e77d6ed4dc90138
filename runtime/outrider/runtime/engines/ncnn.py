"""The engine of ncnn artifacts, for ARM above all: ncnn on the CPU, a row at a time."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from outrider.runtime.bundle.manifest import ArtifactEntry, Signature, TensorSpec
from outrider.runtime.engines.base import Array, Engine, numpy_dtype, tensors
from outrider.runtime.engines.ncnn_file import NcnnFile, NcnnPlan, NcnnTensor
from outrider.runtime.errors import BadBundleError, BadDataError, EngineFault, EngineMissingError, UsageError

_HALF = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic")
_NEVER = ("use_vulkan_compute", "use_bf16_packed", "use_bf16_storage")
_WINOGRAD = (
    *("use_winograd_convolution", "use_winograd23_convolution"),
    *("use_winograd43_convolution", "use_winograd63_convolution"),
)


class NcnnEngine(Engine):
    """Runs an ncnn artifact. Calls from several threads run side by side; threads share out the work within a row.

    ncnn has no batches, so the rows run one after the other. Tensors are matched by position: the entry's names are
    the signature's, the file uses names of its own. Rows must have the very shape that the artifact was made for, also
    where the signature leaves it free.
    """

    binding = "ncnn"

    def __init__(self, net: Any, plan: NcnnPlan, entry: ArtifactEntry, signature: Signature) -> None:
        self._net = net
        self._inputs = tuple(zip(tensors(entry.inputs, signature.inputs), plan.inputs, strict=True))
        self._outputs = tuple(zip(tensors(entry.outputs, signature.outputs), plan.outputs, strict=True))
        self._path = entry.path

    @classmethod
    def open(cls, entry: ArtifactEntry, data: bytes, signature: Signature, *, threads: int = 1) -> NcnnEngine:
        """Load an artifact. Raises BadBundleError too, for a file that is none or does not fit its manifest."""
        if threads < 1:
            raise UsageError(f"{threads} threads cannot run anything", hint="threads=1 is the least")
        file = NcnnFile.unpack(data)
        for names, specs, parts in (
            (entry.inputs, signature.inputs, file.plan.inputs),
            (entry.outputs, signature.outputs, file.plan.outputs),
        ):
            _check(entry.path, tensors(names, specs), parts)
        try:
            import ncnn
        except ImportError as e:
            raise EngineMissingError(
                "ncnn artifacts need the package ncnn", hint="pip install ncnn", reason="engine"
            ) from e
        net = ncnn.Net()
        _set_options(net.opt, file.plan, threads)
        try:
            with _readable(file.graph) as graph, _readable(file.weights) as weights:
                failed = "graph" if net.load_param(graph) else "weights" if net.load_model(weights) else None
        except OSError as e:
            raise EngineFault(f"{entry.path!r} cannot be handed to ncnn: {e}") from e
        except Exception as e:  # whatever the binding turns C++ exceptions into
            raise EngineFault(f"ncnn cannot load {entry.path!r}: {e}") from e
        if failed:
            raise EngineFault(f"ncnn cannot load the {failed} of {entry.path!r}", hint="it may be of another version")
        return cls(net, file.plan, entry, signature)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the rows of a batch. Raises BadDataError for rows of another shape than the artifact was made for."""
        net = self._net
        if net is None:
            raise EngineFault(f"{self._path!r} was closed")
        arrays = [_rows(inputs[spec.name], spec, part) for spec, part in self._inputs]
        batch = len(arrays[0])
        if any(len(array) != batch for array in arrays):
            raise BadDataError(f"the inputs have {' and '.join(str(len(array)) for array in arrays)} rows")
        outputs = {spec.name: np.empty((batch, *part.shape), numpy_dtype(spec.dtype)) for spec, part in self._outputs}
        for row in range(batch):
            self._run_row(net, [array[row] for array in arrays], [output[row : row + 1] for output in outputs.values()])
        return outputs

    def _run_row(self, net: Any, rows: list[Array], results: list[Array]) -> None:
        import ncnn

        try:
            extractor = net.create_extractor()
            for (_, part), row in zip(self._inputs, rows, strict=True):
                # A copy of ncnn's own: layers that work in place crash on, or write to, memory that is not.
                if extractor.input(part.blob, ncnn.Mat(row).clone()):
                    raise EngineFault(f"{self._path!r} has no input {part.blob!r}")
            for (spec, part), result in zip(self._outputs, results, strict=True):
                status, value = extractor.extract(part.blob)
                if status:
                    raise EngineFault(f"ncnn failed on {self._path!r} with status {status}")
                found = np.asarray(value)
                if found.size != result.size:
                    shape = " x ".join(map(str, found.shape))
                    raise EngineFault(f"{self._path!r} gives {spec.name!r} of {shape} for a row, not {part.shape}")
                result[...] = found.reshape(result.shape)
        except EngineFault:
            raise
        except Exception as e:  # as above
            raise EngineFault(f"ncnn failed on {self._path!r}: {e}") from e

    def close(self) -> None:
        """Drop the network; calls that are under way finish on it."""
        self._net = None


def _check(path: str, specs: tuple[TensorSpec, ...], parts: tuple[NcnnTensor, ...]) -> None:
    """Refuse a plan that does not fit the signature. Raises BadBundleError."""
    if len(specs) != len(parts):
        raise BadBundleError(f"{path!r} has {len(parts)} inputs or outputs where its manifest has {len(specs)}")
    for spec, part in zip(specs, parts, strict=True):
        row = spec.shape[1:]
        fits = len(row) == len(part.shape) and all(
            size in (None, fixed) for size, fixed in zip(row, part.shape, strict=True)
        )
        if not spec.shape or not fits:
            raise BadBundleError(f"{path!r} has rows of {part.shape} for {spec.name!r}, unlike its manifest's {row}")


def _set_options(options: Any, plan: NcnnPlan, threads: int) -> None:
    """Before a network is loaded. What this release of ncnn does not know, it does not do."""
    options.num_threads = threads
    for names, value in ((_NEVER, False), (_HALF, plan.precision == "float16"), (_WINOGRAD, plan.winograd)):
        for name in names:
            if hasattr(options, name):
                setattr(options, name, value)


def _rows(array: Array, spec: TensorSpec, part: NcnnTensor) -> Array:
    """The rows as ncnn takes them, float32 [batch, …]."""
    if array.shape[1:] != part.shape:
        raise BadDataError(f"{spec.name!r} has rows of {array.shape[1:]}; the artifact was made for {part.shape}")
    shape = (1, *part.shape) if part.batch_axis else part.shape or (1,)
    return np.ascontiguousarray(array, np.float32).reshape(len(array), *shape)


@contextlib.contextmanager
def _readable(data: bytes) -> Iterator[str]:
    """A path under which the bytes can be read: in memory, or a temporary file where the system has no such thing."""
    with contextlib.ExitStack() as stack:
        path = Path()
        with contextlib.suppress(OSError, AttributeError):
            memory = stack.enter_context(os.fdopen(os.memfd_create("outrider-artifact", os.MFD_CLOEXEC), "wb"))
            memory.write(data)
            memory.flush()
            path = Path(f"/proc/self/fd/{memory.fileno()}")
        if not path.is_file():
            file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="outrider-"))
            file.write(data)
            file.flush()
            path = Path(file.name)
        yield str(path)
