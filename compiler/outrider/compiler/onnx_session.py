"""ONNX Runtime as the compiler asks it: on one thread, saying nothing."""

from __future__ import annotations

from typing import Any

from outrider.runtime.engines.onnxruntime_import import import_onnxruntime

_FATAL = 4  # what is wrong comes as an exception


def open_session(data: bytes, *, as_written: bool = False) -> Any:
    """A session of an ONNX file; `as_written`: each operator by itself, none merged or moved.

    Raises what the binding raises: one class a status code, some not exported, with no common base but Exception; and
    EngineMissingError where ONNX Runtime is not installed.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = 1
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
