"""ONNX -> OpenVINO's intermediate representation, in the precision of the source."""

from __future__ import annotations

from typing import Literal

from outrider.compiler.backends.openvino.graph import read_graph, with_all_inputs
from outrider.compiler.backends.openvino.write import write_artifact
from outrider.runtime.engines.openvino_files import Arithmetic

Weights = Literal["fp32", "fp16"]


def convert_onnx(data: bytes, *, weights: Weights = "fp32", arithmetic: Arithmetic = "f32") -> bytes:
    """An artifact of the format `openvino` from an ONNX file whose weights are all inside.

    Inputs and outputs keep their number, order, dtypes and free dimensions. `weights="fp16"` stores floats in 16 bits,
    half the size, and computes in `arithmetic` all the same; `arithmetic` below `f32` takes effect on processors that
    have it. The same arguments give the same bytes.

    Raises BadModelError for what is no ONNX file, UnsupportedError, which names them, for operators and dtypes that
    OpenVINO cannot run, EngineMissingError without the package openvino.
    """
    source = read_graph(data)
    model = with_all_inputs(source.model, source)
    return write_artifact(model, source, arithmetic=arithmetic, half=weights == "fp16")
