"""What an engine is, and how arrays meet the dtypes of a signature."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.bundle.manifest import ArtifactEntry, Dtype, Signature, TensorSpec
from outrider.runtime.errors import BadBundleError

Array = NDArray[Any]
MatrixFunction = Callable[[Any], Array]


class Engine(ABC):
    """Executes one artifact.

    `binding` says how the code is called (`built-in`, `cffi`, `ctypes`, `onnxruntime`). `run` may be called from
    several threads; the engine's docstring says whether calls run side by side or in turn.
    """

    binding: str
    doubles: bool = False
    """Whether `run` takes float64 where the signature says float32, for models of one input."""

    @classmethod
    @abstractmethod
    def open(cls, entry: ArtifactEntry, data: bytes, signature: Signature, *, threads: int = 1) -> Engine:
        """Load the artifact's bytes; a run may use up to `threads` threads.

        Raises EngineMissingError, TargetMismatchError or EngineFault.
        """

    @abstractmethod
    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a batch. Inputs are C-contiguous, of the signature's dtypes and shapes; outputs are new arrays.

        Where `doubles` says so, inputs may be float64 for float32: they are decided as the source model decides them.
        Raises EngineFault.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the artifact, as does dropping the engine.

        Calling it again does nothing; calling `run` afterwards raises EngineFault.
        """

    def matrix_function(self, output: str, fallback: MatrixFunction) -> MatrixFunction | None:
        """A shorter way from a matrix to one output, for models of one float32 matrix; None where there is none.

        The function takes float32 arrays of shape [n, features], and float64 ones where `doubles` says so. What it is
        not made for goes to `fallback`, which must not hold on to the function. It may be called from several threads,
        and after the engine was closed, when everything goes to `fallback`.
        """
        del output, fallback
        return None


_DTYPES: dict[Dtype, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "float16": np.dtype("<f2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "int16": np.dtype("<i2"),
    "uint16": np.dtype("<u2"),
    "int32": np.dtype("<i4"),
    "uint32": np.dtype("<u4"),
    "int64": np.dtype("<i8"),
    "uint64": np.dtype("<u8"),
    "bool": np.dtype("?"),
    "string": np.dtype(object),
}


def numpy_dtype(dtype: Dtype) -> np.dtype[Any]:
    """The numpy dtype of a signature's dtype; `string` is an array of Python objects."""
    return _DTYPES[dtype]


def are_doubles(inputs: Sequence[Array], specs: Sequence[TensorSpec]) -> bool:
    """Whether the inputs are float64 where the signature says float32."""
    pairs = zip(inputs, specs, strict=True)
    return any(array.dtype == np.float64 and spec.dtype == "float32" for array, spec in pairs)


def tensors(names: tuple[str, ...], specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """The specs of these names, in their order. Raises BadBundleError for a name that the signature lacks."""
    known = {spec.name: spec for spec in specs}
    try:
        return tuple(known[name] for name in names)
    except KeyError as e:
        raise BadBundleError(f"the artifact names the tensor {e.args[0]!r}, which the signature lacks") from e
