"""A model of OpenVINO's -> the bytes of an artifact, the same for the same model."""

from __future__ import annotations

import html
import re
import tempfile
from pathlib import Path
from typing import Any

from outrider.compiler.backends.openvino.graph import Source
from outrider.runtime.engines.openvino import brief
from outrider.runtime.engines.openvino_files import Arithmetic, OpenVinoFiles, Settings, import_openvino, pack_files
from outrider.runtime.errors import UnsupportedError

_LAYER = re.compile(r'<layer id="(\d+)" name="([^"]*)" type="([^"]*)"')


def write_artifact(model: Any, source: Source, *, arithmetic: Arithmetic, half: bool = False) -> bytes:
    """Serialise the model; `half` stores constants of float32 in 16 bits. Raises UnsupportedError."""
    openvino = import_openvino()
    with tempfile.TemporaryDirectory(prefix="outrider-") as folder:
        path = Path(folder) / "model.xml"
        try:
            openvino.save_model(model, str(path), compress_to_fp16=half)
        except Exception as e:  # the binding raises RuntimeError for all of it, and may let others through
            raise UnsupportedError(f"OpenVINO cannot write this model: {brief(e)}") from e
        graph, weights = path.read_text("utf-8"), path.with_suffix(".bin").read_bytes()
    settings = Settings(arithmetic=arithmetic)
    return pack_files(OpenVinoFiles(with_fixed_names(graph, source.names), memoryview(weights), settings))


def with_fixed_names(graph: str, names: frozenset[str]) -> str:
    """The graph with layers that the ONNX file does not name called after their type and place.

    OpenVINO numbers them through the life of the process.
    """

    def fixed(found: re.Match[str]) -> str:
        place, name, kind = found.groups()
        kept = name if html.unescape(name) in names else f"{kind}@{place}"
        return f'<layer id="{place}" name="{kept}" type="{kind}"'

    return _LAYER.sub(fixed, graph)
