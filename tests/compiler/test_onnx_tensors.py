"""Tensors of an ONNX graph that are no rows: scalars, and such without values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from outrider.compiler import compile_model
from outrider.compiler.backends import Order, backend
from outrider.compiler.frontends import ReadOptions, read_model
from outrider.compiler.samples import make_samples
from outrider.runtime import load
from outrider.runtime.errors import BadBundleError, BadDataError, ToolchainError, UnsupportedError
from outrider.targets import get_target

Array = np.ndarray
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def graph(node: onnx.NodeProto, inputs: dict[str, Any], outputs: dict[str, Any], opset: int = 18) -> onnx.ModelProto:
    given, made = (
        [helper.make_tensor_value_info(name, *spec) for name, spec in tensors.items()] for tensors in (inputs, outputs)
    )
    return helper.make_model(
        helper.make_graph([node], "g", given, made), opset_imports=[helper.make_opsetid("", opset)], ir_version=10
    )


def through(model: onnx.ModelProto, inputs: dict[str, Array], folder: Path) -> dict[str, Array]:
    """What comes out after compile and load."""
    path = folder / "model.orb"
    compile_model(model, out=path, name="m", calibration=inputs, backends=["ort"])
    with load(path) as session:
        return session.run(inputs)


def test_scalars_go_in_and_come_out(tmp_path: Path) -> None:
    node = helper.make_node("Range", ["start", "limit", "step"], ["y"])
    names = ("start", "limit", "step")
    model = graph(node, {name: (FLOAT, []) for name in names}, {"y": (FLOAT, ["n"])})
    values = dict(zip(names, (np.array(value, np.float32) for value in (1, 5, 2)), strict=True))
    assert through(model, values, tmp_path)["y"].tolist() == [1.0, 3.0]


@pytest.mark.parametrize("shape", [[], [3]])
def test_an_output_that_is_one_number(shape: list[int], tmp_path: Path) -> None:
    model = graph(helper.make_node("Einsum", ["x", "x"], ["y"], equation="...,...->"), {}, {"y": (FLOAT, [])})
    model.graph.input.append(helper.make_tensor_value_info("x", FLOAT, shape))
    model.graph.node[0].attribute[0].s = b"i,i->" if shape else b",->"
    x = np.full(shape, 2, np.float32)
    found = through(model, {"x": x}, tmp_path)["y"]
    assert found.shape == ()
    assert found == 4 * max(x.size, 1)


def test_an_input_without_values(tmp_path: Path) -> None:
    """Axes that are none, as exporters leave them where all are meant; and a set without members."""
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)
    model = graph(node, {"x": (FLOAT, [2, 3]), "axes": (INT64, [0])}, {"y": (FLOAT, None)})
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert through(model, {"x": x, "axes": np.zeros(0, np.int64)}, tmp_path)["y"] == 15
    model = graph(helper.make_node("Relu", ["x"], ["y"]), {"x": (FLOAT, [2, 0, 4])}, {"y": (FLOAT, [2, 0, 4])})
    assert through(model, {"x": np.zeros((2, 0, 4), np.float32)}, tmp_path)["y"].shape == (2, 0, 4)


def test_old_files_in_which_weights_are_inputs_too(tmp_path: Path) -> None:
    model = graph(
        helper.make_node("Add", ["x", "w"], ["y"]), {"x": (FLOAT, ["n", 2]), "w": (FLOAT, [2])}, {"y": (FLOAT, [1, 2])}
    )
    model.graph.initializer.append(helper.make_tensor("w", FLOAT, [2], [1, 2]))
    model.ir_version = 3
    assert through(model, {"x": np.zeros((1, 2), np.float32)}, tmp_path)["y"].tolist() == [[1, 2]]


def test_an_output_whose_shape_is_left_out(tmp_path: Path) -> None:
    model = graph(helper.make_node("Relu", ["x"], ["y"]), {"x": (FLOAT, [2, 3])}, {"y": (FLOAT, None)})
    assert through(model, {"x": np.ones((2, 3), np.float32)}, tmp_path)["y"].shape == (2, 3)


def test_text_that_is_no_row(tmp_path: Path) -> None:
    model = graph(
        helper.make_node("StringConcat", ["x", "x"], ["y"]),
        {"x": (TensorProto.STRING, [])},
        {"y": (TensorProto.STRING, [])},
        opset=20,
    )
    assert through(model, {"x": np.array("ab", object)}, tmp_path)["y"] == "abab"


def test_sequences_are_refused() -> None:
    node = helper.make_node("SequenceConstruct", ["x", "x"], ["y"])
    model = graph(node, {"x": (FLOAT, [2])}, {})
    model.graph.output.append(helper.make_tensor_sequence_value_info("y", FLOAT, [2]))
    with pytest.raises(UnsupportedError, match="'y' of the ONNX model is not a tensor"):
        read_model(model)


def test_calibration_without_rows_is_still_refused() -> None:
    model = graph(helper.make_node("Relu", ["x"], ["y"]), {"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, ["n", 4])})
    empty = np.zeros((0, 4), np.float32)
    read = read_model(model, ReadOptions(examples={None: empty}))
    assert read.signature.batched
    with pytest.raises(BadDataError, match="has no rows"):
        make_samples(read, empty)


def test_tensors_without_rows_in_common_are_not_for_ncnn() -> None:
    model = graph(
        helper.make_node("Add", ["x", "b"], ["y"]), {"x": (FLOAT, [3, 5]), "b": (FLOAT, [5])}, {"y": (FLOAT, [3, 5])}
    )
    reason = backend("ncnn").refuses(Order(read_model(model), get_target("host")))
    assert reason is not None
    assert "axis 0" in reason or "not installed" in reason


def test_an_artifact_that_its_engine_refuses_spoils_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = graph(helper.make_node("Relu", ["x"], ["y"]), {"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, ["n", 4])})

    def refuse(entry: Any, *_: Any) -> Any:
        raise BadBundleError(f"{entry.path!r} is unlike its manifest")

    monkeypatch.setattr("outrider.compiler.making.open_engine", refuse)
    with pytest.raises(ToolchainError, match="no candidate could be built") as caught:
        compile_model(model, out=tmp_path / "m.orb", name="m", backends=["ort"], precisions=["fp32", "fp16"])
    assert "unlike its manifest" in str(caught.value)
