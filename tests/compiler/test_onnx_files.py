"""ONNX files: weights in other files, and what is said of models that cannot be read or compiled."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from outrider.compiler.frontends import read_model
from outrider.compiler.model import Model
from outrider.compiler.samples import make_samples
from outrider.compiler.verify import source_truth
from outrider.runtime.errors import BadModelError, OutriderError, UnsupportedError

FLOAT, BOOL = TensorProto.FLOAT, TensorProto.BOOL
Shape = Sequence[Any]
Values = Mapping[str, tuple[int, Shape | None]]
node = helper.make_node


def net(
    nodes: Sequence[onnx.NodeProto],
    inputs: Values,
    outputs: Values,
    weights: Mapping[str, np.ndarray] | None = None,
    opset: int = 18,
) -> onnx.ModelProto:
    made = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [helper.make_tensor_value_info(name, *spec) for name, spec in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 9
    return model


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def works(model: Model, calibration: Any = None) -> None:
    """Samples can be made, and the source runs on them."""
    assert set(source_truth(model, make_samples(model, calibration)).outputs) == set(model.computed)


# Weights in other files ----------------------------------------------------------------------------------------


def linear(**options: Any) -> onnx.ModelProto:
    return net(
        [node("MatMul", ["x", "w"], ["y"])],
        {"x": (FLOAT, ["n", 3])},
        {"y": (FLOAT, ["n", 2])},
        {"w": floats(3, 2)},
        **options,
    )


def saved(folder: Path, location: str = "weights.bin") -> Path:
    onnx.save(linear(), folder / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = onnx.load(folder / "m.onnx", load_external_data=False)
    entry = next(entry for entry in model.graph.initializer[0].external_data if entry.key == "location")
    entry.value = location
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def test_weights_in_a_file_beside(tmp_path):
    path = saved(tmp_path)
    model = read_model(path)
    rows = floats(4, 3)
    assert np.allclose(model.reference({"x": rows})["y"], rows @ floats(3, 2), atol=1e-6)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(BadModelError, match="weights"):
        read_model(path)
    with pytest.raises(UnsupportedError, match="'w' of the ONNX model lie in another file"):
        read_model(onnx.load(path, load_external_data=False))


def test_a_file_beside_that_is_too_short(tmp_path):
    path = saved(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"\0\0\0\0")
    with pytest.raises(BadModelError):
        read_model(path)


@pytest.mark.parametrize("way", ["../secret.bin", "/secret.bin", "sub/../../secret.bin", "link.bin", "hard.bin", ""])
def test_weights_outside_the_folder_are_refused(tmp_path, way):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "sub").mkdir()
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(24))
    (folder / "link.bin").symlink_to(secret)
    os.link(secret, folder / "hard.bin")
    path = saved(folder, str(tmp_path / way[1:]) if way.startswith("/") else way)
    with pytest.raises(BadModelError):
        read_model(path)


def hidden(location: str) -> dict[str, onnx.ModelProto]:
    """Weights in other files that are no initializers of the main graph: in a constant, and in a branch."""

    def outside() -> onnx.TensorProto:
        tensor = TensorProto(name="w", data_type=FLOAT, dims=[3, 2], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=location)
        return tensor

    constant = net(
        [node("Constant", [], ["w"], value=outside()), node("MatMul", ["x", "w"], ["y"])],
        {"x": (FLOAT, ["n", 3])},
        {"y": (FLOAT, ["n", 2])},
    )
    value = helper.make_tensor_value_info
    sides = [
        helper.make_graph([node("MatMul", ["x", "w"], [name])], name, [], [value(name, FLOAT, [1, 2])], [outside()])
        for name in "te"
    ]
    choice = node("If", ["c"], ["y"], then_branch=sides[0], else_branch=sides[1])
    inputs: Values = {"c": (BOOL, []), "x": (FLOAT, [1, 3])}
    return {"constant": constant, "branch": net([choice], inputs, {"y": (FLOAT, [1, 2])})}


@pytest.mark.parametrize("where", ["constant", "branch"])
def test_weights_in_other_files_deep_in_the_graph(where, tmp_path, monkeypatch):
    (tmp_path / "secret.bin").write_bytes(floats(3, 2).tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "m.onnx").write_bytes(hidden("../secret.bin")[where].SerializeToString())
    with pytest.raises(BadModelError):
        read_model(folder / "m.onnx")
    with pytest.raises(UnsupportedError, match="lie in another file"):
        read_model(hidden("w.bin")[where])
    (folder / "m.onnx").write_bytes(hidden("w.bin")[where].SerializeToString())
    (folder / "w.bin").write_bytes(floats(3, 2).tobytes())
    monkeypatch.chdir("/")
    works(read_model(folder / "m.onnx"))


def test_weights_in_other_files_in_a_function(tmp_path):
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    constant = hidden("../secret.bin")["constant"].graph.node[0]
    nodes = [constant, node("MatMul", ["x", "w"], ["y"])]
    made = net([node("F", ["x"], ["y"], domain="own")], {"x": (FLOAT, ["n", 3])}, {"y": (FLOAT, ["n", 2])})
    made.functions.append(helper.make_function("own", "F", ["x"], ["y"], nodes, opsets[:1]))
    made.opset_import.append(opsets[1])
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(BadModelError, match="outside the directory"):
        read_model(tmp_path / "m.onnx")
    constant.attribute[0].t.external_data[0].value = "w.bin"
    made.functions[0].node[0].CopyFrom(constant)
    (tmp_path / "w.bin").write_bytes(floats(3, 2).tobytes())
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    works(read_model(tmp_path / "m.onnx"))


# Files that cannot be compiled ---------------------------------------------------------------------------------


def spoiled(value: float) -> onnx.ModelProto:
    made = linear()
    weights = floats(3, 2)
    weights[1, 1] = value
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
    return made


def unknown(domain: str) -> onnx.ModelProto:
    made = net([node("Frobnicate", ["x"], ["y"], domain=domain)], {"x": (FLOAT, [1])}, {"y": (FLOAT, [1])})
    if domain:
        made.opset_import.append(helper.make_opsetid(domain, 1))
    return made


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: spoiled(np.nan), BadModelError, "'w' of the ONNX model hold NaN in 1 places"),
        (lambda: unknown(""), UnsupportedError, "Frobnicate"),
        (lambda: unknown("com.example"), UnsupportedError, "Frobnicate"),
        (lambda: linear(opset=99), UnsupportedError, "99"),
        (lambda: net([], {"x": (FLOAT, [1])}, {"x": (FLOAT, [1])}), BadModelError, "no operators"),
        (lambda: net([node("Relu", ["q"], ["y"])], {"x": (FLOAT, [1])}, {"y": (FLOAT, [1])}), BadModelError, "q"),
        (
            lambda: net([node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)], {"x": (FLOAT, [1])}, {"y": (16, [1])}),
            UnsupportedError,
            "BFLOAT16",
        ),
        (
            lambda: net([node("Relu", ["w"], ["y"])], {}, {"y": (FLOAT, [2])}, {"w": floats(2)}),
            BadModelError,
            "no inputs",
        ),
    ],
)
def test_models_that_cannot_be_compiled(make: Callable[[], onnx.ModelProto], error: type[OutriderError], message):
    with pytest.raises(error, match=message):
        read_model(make())


def test_infinite_weights_are_masks_and_nan_by_itself_is_a_constant():
    works(read_model(spoiled(-np.inf)), floats(3, 3))
    fill = net([node("Add", ["x", "w"], ["y"])], {"x": (FLOAT, [3])}, {"y": (FLOAT, [3])}, {"w": np.float32([np.nan])})
    assert not read_model(fill).signature.batched


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.98])
def test_truncated_files(tmp_path, share):
    data = linear().SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(OutriderError) as raised:
        read_model(path)
    assert raised.value.exit_code in (1, 4)
