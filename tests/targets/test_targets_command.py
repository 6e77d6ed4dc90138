"""`outrider targets`: every target that a compile takes, with what runs artifacts there."""

from __future__ import annotations

from typing import Any

import msgspec

from outrider.runtime.cli import main
from outrider.runtime.engines import ENGINES
from outrider.targets import target_names
from outrider.targets.cli import TargetInfo


def test_every_target_with_its_engines(capsys: Any) -> None:
    assert main(["targets", "--json"]) == 0
    found = msgspec.json.decode(capsys.readouterr().out, type=tuple[TargetInfo, ...])
    assert [info.name for info in found] == list(target_names())
    engines = {info.name: [one.format for one in info.engines] for info in found}
    assert engines["aarch64"] == ["native", "ncnn", "onnx", "openvino", "tvm"]
    assert engines["riscv64"] == ["native"]
    assert engines["wasm32-wasi"] == ["wasm"]
    assert main(["targets"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{name}: " in f"\n{text}" for name in target_names())
    assert "pip install onnxruntime" in text


def test_every_engine_is_for_some_target() -> None:
    assert all(engine.archs for engine in ENGINES.values())
