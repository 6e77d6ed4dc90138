"""ONNX to an artifact of the format `ncnn`. `convert` is the page to read first."""

from __future__ import annotations

from collections.abc import Mapping

from outrider.compiler.backends.ncnn.bind import Shape, bind
from outrider.compiler.backends.ncnn.pnnx import Blob, run_pnnx
from outrider.compiler.backends.ncnn.trial import try_out
from outrider.runtime.engines.ncnn_file import NcnnFile, NcnnPlan, NcnnPrecision, NcnnTensor
from outrider.runtime.errors import ToolchainError


def convert(
    data: bytes,
    shapes: Mapping[str, Shape] | None = None,
    *,
    precision: NcnnPrecision = "float32",
    winograd: bool = True,
) -> bytes:
    """Convert an ONNX file with float32 inputs and outputs; the same file and options give the same bytes.

    `shapes` binds inputs by name, with the batch axis, whose size does not matter: ncnn runs a row at a time. What the
    file itself fixes need not be named. With `float16`, weights are stored in half the bytes, and the device computes
    with them as it can.

    Raises UnsupportedError with what ncnn cannot run, BadModelError for a file that cannot be read, UsageError for
    shapes that do not fit, and ToolchainError where pnnx or ncnn is missing or fails.
    """
    graph = bind(data, shapes or {})
    made = run_pnnx(graph.data, [shape for _, shape in graph.inputs], half=precision == "float16")
    plan = NcnnPlan(
        inputs=_tensors(graph.inputs, made.inputs),
        outputs=_tensors(graph.outputs, made.outputs),
        precision=precision,
        winograd=winograd,
    )
    artifact = NcnnFile(plan=plan, graph=made.graph, weights=made.weights).pack()
    try_out(artifact)
    return artifact


def _tensors(shapes: tuple[tuple[str, Shape], ...], blobs: tuple[Blob, ...]) -> tuple[NcnnTensor, ...]:
    if len(shapes) != len(blobs):
        raise ToolchainError(f"pnnx made {len(blobs)} inputs or outputs of {len(shapes)}")
    return tuple(
        NcnnTensor(blob=blob.name, shape=shape[1:], batch_axis=blob.batch_axis)
        for (_, shape), blob in zip(shapes, blobs, strict=True)
    )
