"""ONNX -> OpenVINO with weights and activations in int8, by NNCF."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from outrider.compiler.backends.openvino.graph import Source, read_graph, with_all_inputs
from outrider.compiler.backends.openvino.write import write_artifact
from outrider.runtime.engines.openvino_files import import_openvino, without_telemetry
from outrider.runtime.errors import BadDataError, ToolchainError, UnsupportedError

Feed = Mapping[str, NDArray[Any]]
Preset = Literal["mixed", "performance"]


@dataclass(frozen=True)
class Int8Options:
    """How to quantise.

    `preset`: activations symmetric everywhere (`performance`), or asymmetric where they are of one sign only by chance
    (`mixed`). `subset`: how many of the feeds fix the ranges. `transformer`: the rules for attention. `keep`: names of
    ONNX nodes that stay in floats.
    """

    preset: Preset = "mixed"
    subset: int = 300
    transformer: bool = False
    keep: tuple[str, ...] = ()


def quantise_onnx(data: bytes, feeds: Sequence[Feed], options: Int8Options | None = None) -> bytes:
    """An artifact of the format `openvino` with int8 operators from an ONNX file in float32, weights inside.

    `feeds` are the calibration samples, one run each: arrays of the graph's dtypes and shapes by its input names. What
    is not quantised is computed in float32. Free dimensions stay free. The same arguments give the same bytes on the
    same machine; on others the last bits of the ranges may differ, as sums of floats do.

    Raises BadModelError, UnsupportedError, EngineMissingError as `convert_onnx` does; BadDataError for feeds that do
    not fit the graph, or where there is none; ToolchainError without the package nncf, or where it fails.
    """
    options = options or Int8Options()
    source = read_graph(data)
    samples = _samples(source, feeds[: options.subset])
    model = with_all_inputs(_quantised(source, samples, options), source)
    return write_artifact(model, source, arithmetic="f32")


def _samples(source: Source, feeds: Sequence[Feed]) -> list[dict[str, NDArray[Any]]]:
    """The feeds, each with what the graph reads of it."""
    if not feeds:
        raise BadDataError("int8 needs calibration samples, and there is none")
    missing = sorted({name for feed in feeds for name in source.inputs if name not in feed})
    if missing:
        raise BadDataError(f"the calibration samples lack the input {missing[0]!r}")
    ports = {name: parameter.output(0) for name, parameter in source.parameters().items()}
    for number, feed in enumerate(feeds):
        for name, port in ports.items():
            _check(name, number, feed[name], port)
    return [{port.get_any_name(): feed[name] for name, port in ports.items()} for feed in feeds]


def _check(name: str, number: int, array: NDArray[Any], port: Any) -> None:
    shape, dtype = port.get_partial_shape(), port.get_element_type().to_dtype()
    if array.dtype != dtype:
        raise BadDataError(f"calibration sample {number}: {name!r} is {array.dtype}, the model takes {dtype}")
    if not shape.compatible(import_openvino().PartialShape(list(array.shape))):
        raise BadDataError(
            f"calibration sample {number}: {name!r} has the shape {array.shape}, the model takes {shape}"
        )


def _quantised(source: Source, samples: list[dict[str, NDArray[Any]]], options: Int8Options) -> Any:
    nncf = _import_nncf()
    kept = [layer for node in options.keep for layer in _layers(source, node)]
    with _quiet():
        try:
            return nncf.quantize(
                source.model,
                nncf.Dataset(samples),
                preset=nncf.QuantizationPreset(options.preset),
                target_device=nncf.TargetDevice.CPU,
                subset_size=len(samples),
                model_type=nncf.ModelType.TRANSFORMER if options.transformer else None,
                ignored_scope=nncf.IgnoredScope(names=kept) if kept else None,
            )
        except (
            Exception
        ) as e:  # NNCF raises errors of its own, OpenVINO's binding RuntimeError, and others come through
            raise ToolchainError(f"NNCF cannot quantise this model: {e}") from e


def _layers(source: Source, node: str) -> list[str]:
    found = source.layers(node)
    if not found:
        raise UnsupportedError(f"OpenVINO has no layer of the node {node!r}, which was to stay in floats")
    return found


def _import_nncf() -> Any:
    with without_telemetry():
        try:
            import nncf
        except ImportError as e:
            raise ToolchainError("int8 for OpenVINO needs the package nncf", hint="pip install nncf") from e
    return nncf


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Neither progress bars nor a line a step; errors come as exceptions."""
    import rich

    console, logger = rich.get_console(), logging.getLogger("nncf")
    before = console.quiet, logger.level
    console.quiet = True
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        console.quiet = before[0]
        logger.setLevel(before[1])
