"""ONNX files for ncnn: what comes out agrees with ONNX Runtime, and what cannot be converted is named."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from outrider.compiler.backends.ncnn import pnnx, trial
from outrider.compiler.backends.ncnn.convert import convert
from outrider.runtime.bundle import ArtifactEntry, Signature, TensorSpec
from outrider.runtime.engines import open_engine
from outrider.runtime.engines.ncnn_file import NcnnFile, NcnnPlan, NcnnTensor
from outrider.runtime.errors import BadModelError, ToolchainError, UnsupportedError, UsageError
from outrider.runtime.target import Requirements
from outrider.targets.emulation import EmulatedPython, run_artifact

Array = np.ndarray
FLOAT = TensorProto.FLOAT
RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def packages_are_there(require_package: Callable[[str], None]) -> None:
    require_package("ncnn")
    require_package("pnnx")


def weight(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(RNG.normal(size=shape, scale=0.4).astype(np.float32), name)


def ints(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def onnx_file(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[Any]],
    outputs: Sequence[str],
    weights: Sequence[onnx.TensorProto] = (),
    opset: int = 18,
    kind: int = FLOAT,
) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        list(weights),
    )
    data: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
    ).SerializeToString()
    return data


def conv_net(*, size: Any = 9, batch: Any = "n", opset: int = 18) -> bytes:
    """Convolution, depthwise convolution with ReLU6, a branch, pooling, a dense layer and a softmax."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], group=8, pads=[1, 1, 1, 1]),
        node("Clip", ["c2", "low", "high"], ["r2"]),
        node("Add", ["r1", "r2"], ["s"]),
        node("GlobalAveragePool", ["s"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "w3", "b3"], ["logits"], transB=1),
        node("Softmax", ["logits"], ["y"], axis=1),
    ]
    limits = [numpy_helper.from_array(np.float32(value), name) for name, value in (("low", 0), ("high", 6))]
    weights = [weight("w1", 8, 3, 3, 3), weight("b1", 8), weight("w2", 8, 1, 3, 3), weight("w3", 5, 8), weight("b3", 5)]
    return onnx_file(nodes, {"x": [batch, 3, size, size]}, ["y"], [*weights, *limits], opset)


def manifest_of(artifact: bytes) -> tuple[ArtifactEntry, Signature]:
    """What a manifest would say of the artifact, with a signature that leaves the batch free."""
    plan = NcnnFile.unpack(artifact).plan
    signature = Signature(inputs=specs(plan.inputs), outputs=specs(plan.outputs), predict=plan.outputs[0].blob)
    entry = ArtifactEntry(
        path="model.ncnn",
        size=len(artifact),
        sha256="0" * 64,
        format="ncnn",
        abi=1,
        engine="ncnn",
        package="ncnn",
        triple=None,
        needs=Requirements(),
        inputs=tuple(spec.name for spec in signature.inputs),
        outputs=tuple(spec.name for spec in signature.outputs),
        candidate="ncnn",
    )
    return entry, signature


def run_ncnn(artifact: bytes, inputs: Sequence[Array], **options: Any) -> list[Array]:
    """Run an artifact on a batch."""
    entry, signature = manifest_of(artifact)
    with closing(open_engine(entry, artifact, signature, **options)) as engine:
        return list(engine.run(dict(zip(entry.inputs, inputs, strict=True))).values())


def specs(parts: Sequence[NcnnTensor]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=part.blob, dtype="float32", shape=(None, *part.shape)) for part in parts)


def run_onnx(data: bytes, inputs: Sequence[Array]) -> list[Array]:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    found: list[Array] = session.run(None, dict(zip(names, inputs, strict=True)))
    return found


def agree(data: bytes, *shapes: tuple[int, ...], rows: int = 3, **options: Any) -> bytes:
    """Check the converted model against ONNX Runtime, which runs the rows one by one too; returns the artifact."""
    artifact = convert(data, **options)
    inputs = [RNG.normal(size=(rows, *shape)).astype(np.float32) for shape in shapes]
    found = run_ncnn(artifact, inputs)
    one_by_one = [run_onnx(data, [array[row : row + 1] for array in inputs]) for row in range(rows)]
    for output, values in zip(found, zip(*one_by_one, strict=True), strict=True):
        np.testing.assert_allclose(output, np.concatenate(values), rtol=1e-4, atol=1e-5)
    return artifact


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_a_small_conv_net(opset: int) -> None:
    artifact = agree(conv_net(opset=opset), (3, 9, 9))
    plan = NcnnFile.unpack(artifact).plan
    assert plan.inputs == (NcnnTensor(blob="in0", shape=(3, 9, 9)),)
    assert plan.outputs == (NcnnTensor(blob="out0", shape=(5,)),)


def test_a_batch_runs_row_by_row() -> None:
    data = conv_net(batch=4)
    artifact = convert(data)
    x = RNG.normal(size=(4, 3, 9, 9)).astype(np.float32)
    whole = run_ncnn(artifact, [x])[0]
    np.testing.assert_allclose(whole, run_onnx(data, [x])[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(run_ncnn(artifact, [x[2:3]])[0], whole[2:3])
    assert run_ncnn(artifact, [x[:0]])[0].shape == (0, 5)
    np.testing.assert_array_equal(run_ncnn(artifact, [x], threads=2)[0], whole)


def test_dense_layers_alone() -> None:
    """Without a convolution pnnx keeps the batch axis."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1),
        helper.make_node("Tanh", ["h"], ["y"]),
    ]
    artifact = agree(onnx_file(nodes, {"x": ["n", 7]}, ["y"], [weight("w", 4, 7), weight("b", 4)]), (7,))
    assert NcnnFile.unpack(artifact).plan.inputs[0].batch_axis


def test_several_inputs_and_outputs() -> None:
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"]),
        helper.make_node("Unsqueeze", ["scale", "axes"], ["u"]),
        helper.make_node("Mul", ["c", "u"], ["product"]),
        helper.make_node("Sigmoid", ["product"], ["mask"]),
        helper.make_node("ReduceMean", ["product", "axes"], ["mean"], keepdims=0),
    ]
    weights = [weight("w", 4, 2, 3, 3), ints("axes", 2, 3)]
    agree(onnx_file(nodes, {"image": ["n", 2, 6, 7], "scale": ["n", 4]}, ["mask", "mean"], weights), (2, 6, 7), (4,))


@pytest.mark.parametrize("kind", ["ReduceMean", "ReduceSum"])
@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize(("axis", "opset"), [(1, 18), (3, 13), (-1, 18), (-2, 11)])
def test_reductions_over_one_axis(kind: str, keep: int, axis: int, opset: int) -> None:
    """pnnx by itself loses the axis, and nothing is reduced."""
    by_input = opset >= (18 if kind == "ReduceMean" else 13)
    reduce = (
        helper.make_node(kind, ["c", "axes"], ["m"], keepdims=keep)
        if by_input
        else helper.make_node(kind, ["c"], ["m"], keepdims=keep, axes=[axis])
    )
    tail = helper.make_node("Sub", ["c", "m"], ["y"]) if keep else helper.make_node("Relu", ["m"], ["y"])
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), reduce, tail]
    weights = [weight("w", 4, 3, 1, 1), *([ints("axes", axis)] if by_input else [])]
    agree(onnx_file(nodes, {"x": [1, 3, 5, 6]}, ["y"], weights, opset), (3, 5, 6))


def test_free_sizes_are_bound() -> None:
    data = conv_net(size="s")
    with pytest.raises(UnsupportedError, match=r"every dimension of the input 'x' fixed .*--shape x=1,3,\?,\?"):
        convert(data)
    agree(data, (3, 12, 8), shapes={"x": (1, 3, 12, 8)})
    assert convert(data, {"x": (64, 3, 12, 8)}) == convert(data, {"x": (1, 3, 12, 8)})
    for shape in ((1, 4, 12, 8), (1, 3, 12), ()):
        with pytest.raises(UsageError, match="does not fit the input 'x'"):
            convert(data, {"x": shape})
    with pytest.raises(UsageError, match="no input 'z'"):
        convert(data, {"z": (1,)})


def test_the_same_bytes_each_time() -> None:
    data = conv_net()
    task = pickle.loads(pickle.dumps(partial(convert, data, {"x": (1, 3, 9, 9)})))
    assert task() == convert(data)


def test_half_precision_halves_the_weights() -> None:
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    data = onnx_file([node], {"x": ["n", 64]}, ["y"], [weight("w", 64, 64)])
    single, half = (NcnnFile.unpack(convert(data, precision=precision)) for precision in ("float32", "float16"))
    assert len(single.weights) > 1.9 * len(half.weights)
    assert half.plan.precision == "float16"
    x = RNG.normal(size=(2, 64)).astype(np.float32)
    np.testing.assert_allclose(run_ncnn(half.pack(), [x])[0], run_onnx(data, [x])[0], atol=0.05)


@pytest.mark.system
@pytest.mark.parametrize(("name", "precision"), [("aarch64", "float32"), ("aarch64", "float16"), ("armv7", "float32")])
def test_on_another_architecture(name: str, precision: Any, emulated_python: Callable[..., EmulatedPython]) -> None:
    """The very bytes run on ARM, where ncnn has other kernels, and agree with ONNX Runtime here."""
    python = emulated_python(name, "ncnn")
    data = conv_net(size=24)
    artifact = convert(data, precision=precision)
    entry, signature = manifest_of(artifact)
    x = RNG.normal(size=(3, 3, 24, 24)).astype(np.float32)
    found = run_artifact(entry, artifact, signature, {"in0": x}, python.target)["out0"]
    expected = run_onnx(data, [x])[0]
    if precision == "float32":
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_allclose(found, expected, atol=0.02)


# What cannot be converted ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "weights", "named"),
    [
        ([helper.make_node("CumSum", ["x", "k"], ["y"])], [ints("k", 1)], "CumSum"),
        ([helper.make_node("ReduceMax", ["x", "k"], ["y"])], [ints("k", 1)], "ReduceMax"),
        ([helper.make_node("Det", ["x"], ["y"])], [], "Det"),
        (
            [helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[2], ceil_mode=1, strides=[2])],
            [],
            "AveragePool",
        ),
    ],
)
def test_an_operator_that_ncnn_lacks(nodes: list[Any], weights: list[Any], named: str) -> None:
    with pytest.raises(UnsupportedError, match=named) as caught:
        convert(onnx_file(nodes, {"x": ["n", 3, 3]}, ["y"], weights))
    assert caught.value.exit_code == 4


def test_tensors_that_are_not_float32() -> None:
    cast = helper.make_node("Cast", ["x"], ["y"], to=FLOAT)
    with pytest.raises(UnsupportedError, match="input 'x' is not a float32 tensor"):
        convert(onnx_file([cast], {"x": ["n", 3]}, ["y"], kind=TensorProto.INT64))
    graph = helper.make_graph(
        [helper.make_node("ArgMax", ["x"], ["y"], axis=1, keepdims=0)],
        "net",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["n"])],
    )
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()
    with pytest.raises(UnsupportedError, match="output 'y' is not a float32 tensor"):
        convert(data)


def test_an_output_without_the_batch() -> None:
    node = helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0])
    with pytest.raises(UnsupportedError, match="output 'y' has no batch axis"):
        convert(onnx_file([node], {"x": ["n", 3]}, ["y"]))


def test_files_that_are_no_models() -> None:
    sound = conv_net()
    for data in (b"", b"not a model", sound[: len(sound) // 2]):
        with pytest.raises(BadModelError):
            convert(data)


def test_a_graph_that_ncnn_cannot_load() -> None:
    plan = NcnnPlan(inputs=(NcnnTensor(blob="in0", shape=(3,)),), outputs=(NcnnTensor(blob="out0", shape=(3,)),))
    graph = b"7767517\n2 2\nInput in0 0 1 in0\nF.huh huh 1 1 in0 out0\n"
    with pytest.raises(UnsupportedError, match=r"no layer F\.huh"):
        trial.try_out(NcnnFile(plan=plan, graph=graph, weights=b"").pack())


def test_a_graph_that_crashes_ncnn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    crash = tmp_path / "python"
    crash.write_text("#!/bin/sh\ncat >/dev/null\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(crash))
    with pytest.raises(UnsupportedError, match=r"crashed \(SIGSEGV\)"):
        trial.try_out(b"")


def test_pnnx_is_missing_or_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "pnnx"
    monkeypatch.setattr(pnnx, "find_pnnx", lambda: program)
    data = conv_net()
    with pytest.raises(ToolchainError, match="cannot be started"):
        convert(data)
    for script, message in (("echo oh dear; exit 3", "status 3:\noh dear"), ("exit 0", r"wrote no m\.ncnn\.param")):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        with pytest.raises(ToolchainError, match=message):
            convert(data)
    program.write_text("#!/bin/sh\nkill -SEGV $$\n")
    with pytest.raises(UnsupportedError, match=r"crashed \(SIGSEGV\)"):
        convert(data)
    program.write_text("#!/bin/sh\nsleep 60\n")
    monkeypatch.setattr(pnnx, "TIMEOUT_S", 0.2)
    with pytest.raises(ToolchainError, match="did not finish"):
        convert(data)
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ToolchainError, match="networks"):
        pnnx.find_pnnx()
    with pytest.raises(ToolchainError, match="compiler-ncnn"):
        trial.try_out(b"")
