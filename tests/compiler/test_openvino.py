"""ONNX -> OpenVINO: the bytes, what is refused, and int8."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from outrider.compiler.backends.openvino import Int8Options, convert_onnx, quantise, quantise_onnx
from outrider.compiler.backends.openvino.write import with_fixed_names
from outrider.runtime.bundle import ArtifactEntry, Signature, TensorSpec
from outrider.runtime.engines.openvino import OpenVinoEngine
from outrider.runtime.engines.openvino_files import unpack_files
from outrider.runtime.errors import BadDataError, BadModelError, EngineMissingError, ToolchainError, UnsupportedError
from outrider.runtime.target import Requirements

Array = np.ndarray
Feed = dict[str, Array]
IMAGE: tuple[int | str, ...] = ("n", 3, "h", "w")


def model(nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, Array] | None = None) -> bytes:
    held = [onnx.numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    made = helper.make_graph(nodes, "net", inputs, outputs, held)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("custom", 1)]
    data: bytes = helper.make_model(made, opset_imports=opsets, ir_version=9).SerializeToString()
    return data


def floats(name: str, *shape: int | str | None) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


@pytest.fixture(scope="module")
def net() -> bytes:
    """Two convolutions, one depthwise, with a residual, over images of any number and size; an input is not read."""
    rng = np.random.default_rng(7)

    def normal(*shape: int) -> Array:
        return (rng.standard_normal(shape) * 0.3).astype(np.float32)

    constants = {
        "w1": normal(16, 3, 3, 3),
        "b1": normal(16),
        "w2": normal(16, 1, 3, 3),
        "w3": normal(16, 5),
        "low": np.float32(0),
        "high": np.float32(6),
    }
    return model(
        [
            helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="first", pads=[1, 1, 1, 1]),
            helper.make_node("Clip", ["c1", "low", "high"], ["r1"], name="clip"),
            helper.make_node("Conv", ["r1", "w2"], ["c2"], name="depthwise", group=16, pads=[1, 1, 1, 1]),
            helper.make_node("Add", ["c2", "r1"], ["a"], name="residual"),
            helper.make_node("GlobalAveragePool", ["a"], ["g"], name="pool"),
            helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
            helper.make_node("MatMul", ["f", "w3"], ["y"], name="head"),
        ],
        [floats("unread", "n"), floats("x", *IMAGE)],
        [floats("y", "n", 5)],
        constants,
    )


@pytest.fixture(scope="module")
def feeds() -> list[Feed]:
    rng = np.random.default_rng(3)
    return [
        {"x": rng.standard_normal((2, 3, 12, 12)).astype(np.float32), "unread": np.zeros(2, np.float32)}
        for _ in range(8)
    ]


@pytest.fixture
def run() -> Callable[[bytes, Feed], Array]:
    """Run an artifact of the net above."""
    signature = Signature(
        inputs=(
            TensorSpec(name="unread", dtype="float32", shape=(None,)),
            TensorSpec(name="x", dtype="float32", shape=(None, 3, None, None)),
        ),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(None, 5)),),
        predict="y",
    )
    fixed = {"path": "artifacts/ov/model.openvino", "size": 1, "sha256": "0" * 64, "candidate": "ov"}
    kind = {"format": "openvino", "abi": 1, "engine": "openvino", "package": "openvino", "triple": None}
    entry = ArtifactEntry(**fixed, **kind, needs=Requirements(), inputs=("unread", "x"), outputs=("y",))  # type: ignore[arg-type]

    def call(data: bytes, feed: Feed) -> Array:
        with closing(OpenVinoEngine.open(entry, data, signature)) as engine:
            return engine.run(feed)["y"]

    return call


def reference(data: bytes, feed: Feed) -> Array:
    found: Array = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, feed)[0]
    return found


# Floats -----------------------------------------------------------------------------------------------------------


def test_floats_agree_with_the_source(net: bytes, feeds: list[Feed], run: Callable[[bytes, Feed], Array]) -> None:
    whole, half = convert_onnx(net), convert_onnx(net, weights="fp16")
    weights, halves = (unpack_files(data).weights.nbytes for data in (whole, half))
    assert halves < 0.6 * weights
    wide = {"x": np.ones((1, 3, 5, 9), np.float32), "unread": np.zeros(1, np.float32)}
    for feed in (*feeds, wide):
        wanted = reference(net, feed)
        np.testing.assert_allclose(run(whole, feed), wanted, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(run(half, feed), wanted, rtol=1e-2, atol=1e-2)


def test_the_same_model_gives_the_same_bytes(net: bytes, tmp_path: Path) -> None:
    """In this process, where OpenVINO has numbered other layers before, and in another."""
    first = convert_onnx(net)
    assert convert_onnx(net) == first
    (tmp_path / "net.onnx").write_bytes(net)
    code = (
        "import sys, pathlib; from outrider.compiler.backends.openvino import convert_onnx\n"
        "sys.stdout.buffer.write(convert_onnx(pathlib.Path(sys.argv[1]).read_bytes()))"
    )
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path}\n{code}", str(tmp_path / "net.onnx")]
    assert subprocess.run(command, capture_output=True, check=True).stdout == first
    assert str(tmp_path.parent).encode() not in first


def test_layers_keep_the_names_of_the_source(net: bytes) -> None:
    graph = unpack_files(convert_onnx(net)).graph
    for name in ("first", "depthwise", "residual", "y"):
        assert f'name="{name}"' in graph
    made = '<layer id="4" name="Relu_31" type="ReLU" version="opset1"><layer id="5" name="a&lt;b" type="Add"'
    fixed = '<layer id="4" name="ReLU@4" type="ReLU" version="opset1"><layer id="5" name="a&lt;b" type="Add"'
    assert with_fixed_names(made, frozenset({"a<b"})) == fixed


def test_arguments_and_errors_go_to_other_processes(net: bytes) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(convert_onnx, net, weights="fp16").result() == convert_onnx(net, weights="fp16")
        with pytest.raises(BadModelError):
            pool.submit(convert_onnx, b"x").result()
    assert pickle.loads(pickle.dumps(Int8Options(keep=("a",)))) == Int8Options(keep=("a",))


# Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"hello", b"\x00" * 40, None], ids=["text", "zeros", "cut short"])
def test_what_is_no_onnx_file(data: bytes | None, net: bytes) -> None:
    with pytest.raises(BadModelError, match="not an ONNX file"):
        convert_onnx(net[: len(net) // 2] if data is None else data)


def test_an_unsupported_operator_is_named_with_its_place() -> None:
    odd = helper.make_node("Wavelet", ["h"], ["y"], name="n7", domain="custom")
    odd.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="encoder.wave")
    data = model([helper.make_node("Relu", ["x"], ["h"]), odd], [floats("x", "n")], [floats("y", "n")])
    with pytest.raises(UnsupportedError, match=r"custom\.Wavelet \(node 'n7', module encoder\.wave\)"):
        convert_onnx(data)


def test_an_unsupported_operator_of_the_standard_in_a_branch() -> None:
    def branch(name: str, kind: str) -> Any:
        return helper.make_graph([helper.make_node(kind, ["x"], [name])], name, [], [floats(name, "n")])

    data = model(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch("t", "Det"), else_branch=branch("e", "ReduceSum"))],
        [floats("x", "n", 2, 2), helper.make_tensor_value_info("c", TensorProto.BOOL, ())],
        [floats("y", None)],
    )
    with pytest.raises(UnsupportedError, match=r"cannot convert Det \(node 't'\)"):
        convert_onnx(data)


def test_an_operator_on_a_dtype_it_does_not_take() -> None:
    text = onnx.numpy_helper.from_array(np.array(["a", "b"], object), "text")
    data = model(
        [
            helper.make_node("Constant", [], ["c"], value=text),
            helper.make_node("StringConcat", ["c", "c"], ["d"], name="join"),
            helper.make_node("Shape", ["d"], ["s"]),
            helper.make_node("Cast", ["s"], ["y"], to=TensorProto.FLOAT),
        ],
        [floats("x", "n")],
        [floats("y", 1)],
    )
    with pytest.raises(UnsupportedError, match="StringConcat"):
        convert_onnx(data)


def test_text_and_sequences_are_refused() -> None:
    text = helper.make_tensor_value_info("x", TensorProto.STRING, ("n",))
    with pytest.raises(UnsupportedError, match="no tensors of text, which 'x' is"):
        convert_onnx(model([helper.make_node("Identity", ["x"], ["y"])], [text], [text]))
    many = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, ("n",))
    with pytest.raises(UnsupportedError, match="'y' is a sequence"):
        convert_onnx(model([helper.make_node("SequenceConstruct", ["x"], ["y"])], [floats("x", "n")], [many]))


@pytest.mark.parametrize("dtype", [TensorProto.BFLOAT16, TensorProto.FLOAT8E5M2, TensorProto.INT4])
def test_dtypes_that_no_signature_has(dtype: int) -> None:
    name = TensorProto.DataType.Name(dtype)
    odd = helper.make_tensor_value_info("y", dtype, ("n",))
    with pytest.raises(UnsupportedError, match=f"cannot be {name}, which 'y' is"):
        convert_onnx(model([helper.make_node("Cast", ["x"], ["y"], to=dtype)], [floats("x", "n")], [odd]))


def test_a_dtype_inside_that_openvino_lacks() -> None:
    odd = helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT8E5M2FNUZ)
    back = helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT)
    with pytest.raises(UnsupportedError, match=r"convert Cast \(node 'h'\): .*FLOAT8E5M2FNUZ"):
        convert_onnx(model([odd, back], [floats("x", "n")], [floats("y", "n")]))


def test_an_input_that_is_given_out_as_it_came() -> None:
    """OpenVINO calls it by the name of the output. Where it dropped another too, it's not known which is which."""
    nodes = [helper.make_node("Dropout", ["x"], ["y"])]
    assert unpack_files(convert_onnx(model(nodes, [floats("x", "n")], [floats("y", "n")]))).graph
    with pytest.raises(UnsupportedError, match="tell this model's inputs apart"):
        convert_onnx(model(nodes, [floats("unread", "k"), floats("x", "n")], [floats("y", "n")]))


def test_without_the_package(net: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineMissingError, match="pip install openvino"):
        convert_onnx(net)


# int8 -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def int8(net: bytes, feeds: list[Feed]) -> bytes:
    return quantise_onnx(net, feeds)


def test_int8_is_near_the_source_and_not_the_same(
    net: bytes, feeds: list[Feed], int8: bytes, run: Callable[[bytes, Feed], Array]
) -> None:
    graph = unpack_files(int8).graph
    assert graph.count('type="FakeQuantize"') >= 4
    rng = np.random.default_rng(11)
    fresh = [{"x": rng.standard_normal((3, 3, 10, 14)).astype(np.float32), "unread": np.zeros(3, np.float32)}]
    for feed in (*feeds, *fresh):
        wanted, found = reference(net, feed), run(int8, feed)
        assert found.shape == wanted.shape
        error = np.abs(found - wanted).max() / np.abs(wanted).max()
        assert 1e-5 < error < 0.05


def test_int8_bytes_are_the_same_each_time(
    net: bytes, feeds: list[Feed], int8: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    assert quantise_onnx(net, feeds) == int8
    assert capfd.readouterr() == ("", "")


def test_options_of_int8(net: bytes, feeds: list[Feed], int8: bytes) -> None:
    assert quantise_onnx(net, feeds, Int8Options(preset="performance")) != int8
    few = quantise_onnx(net, feeds, Int8Options(subset=2))
    assert few == quantise_onnx(net, feeds[:2])
    with pytest.raises(UnsupportedError, match="'nowhere', which was to stay in floats"):
        quantise_onnx(net, feeds, Int8Options(keep=("nowhere",)))


@pytest.mark.parametrize("node", ["first", "depthwise", "head"])
def test_what_stays_in_floats(node: str, net: bytes, feeds: list[Feed], int8: bytes) -> None:
    """Nodes with a bias, which OpenVINO makes two layers of, and those that it names after their output, too."""
    weights = {"first": "w1", "depthwise": "w2", "head": "w3"}[node]
    held = next(tensor for tensor in onnx.load_model_from_string(net).graph.initializer if tensor.name == weights)
    exact = onnx.numpy_helper.to_array(held)
    exact = exact.T if node == "head" else exact
    assert exact.tobytes() not in bytes(unpack_files(int8).weights)
    kept = quantise_onnx(net, feeds, Int8Options(keep=(node,)))
    assert exact.tobytes() in bytes(unpack_files(kept).weights)


def test_calibration_samples_that_do_not_fit(net: bytes, feeds: list[Feed]) -> None:
    with pytest.raises(BadDataError, match="there is none"):
        quantise_onnx(net, [])
    with pytest.raises(BadDataError, match="lack the input 'x'"):
        quantise_onnx(net, [*feeds, {"unread": feeds[0]["unread"]}])
    with pytest.raises(BadDataError, match="sample 1: 'x' is float64, the model takes float32"):
        quantise_onnx(net, [feeds[0], {**feeds[0], "x": feeds[0]["x"].astype(np.float64)}])
    with pytest.raises(BadDataError, match=r"sample 0: 'x' has the shape \(2, 3\)"):
        quantise_onnx(net, [{**feeds[0], "x": np.zeros((2, 3), np.float32)}])


def test_a_quantiser_that_is_absent_or_fails(
    net: bytes, feeds: list[Feed], int8: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nncf

    def failing(*given: Any, **options: Any) -> None:
        raise nncf.InternalError("out of luck")

    monkeypatch.setattr(nncf, "quantize", failing)
    with pytest.raises(ToolchainError, match="NNCF cannot quantise this model: out of luck"):
        quantise_onnx(net, feeds)
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ToolchainError, match="pip install nncf"):
        quantise._import_nncf()
