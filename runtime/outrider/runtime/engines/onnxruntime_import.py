"""ONNX Runtime as a module that stays at home: wheels report their use from 1.32 on, unless they are told not to."""

from __future__ import annotations

import os
from typing import Any

from outrider.runtime.errors import EngineMissingError

SWITCH = "ORT_DISABLE_TELEMETRY"  # read once, when the library is loaded


def import_onnxruntime() -> Any:
    """The module, with its telemetry off. Raises EngineMissingError where it is not installed."""
    os.environ.setdefault(SWITCH, "1")
    try:
        import onnxruntime
    except ImportError as e:
        raise EngineMissingError(
            "ONNX artifacts need the package onnxruntime", hint="pip install onnxruntime", reason="engine"
        ) from e
    onnxruntime.disable_telemetry_events()  # where the user's own code loaded it before
    return onnxruntime
