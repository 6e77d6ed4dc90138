"""ONNX graphs for OpenVINO: converted as they are, or quantised to int8.

The functions take and give bytes and arrays alone, so that they can be run in another process.
"""

from __future__ import annotations

from outrider.compiler.backends.openvino.convert import Weights, convert_onnx
from outrider.compiler.backends.openvino.quantise import Int8Options, quantise_onnx

__all__ = ["Int8Options", "Weights", "convert_onnx", "quantise_onnx"]
