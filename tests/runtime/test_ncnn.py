"""The engine of ncnn: how rows, threads, shapes and bad artifacts meet it. Its graphs are written by hand."""

from __future__ import annotations

import gc
import io
import sys
import threading
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from outrider.runtime.bundle import ArtifactEntry, Signature, TensorSpec
from outrider.runtime.engines import open_engine
from outrider.runtime.engines.base import Engine
from outrider.runtime.engines.ncnn_file import NcnnFile, NcnnPlan, NcnnPrecision, NcnnTensor
from outrider.runtime.errors import BadBundleError, BadDataError, EngineFault, EngineMissingError, UsageError
from outrider.runtime.target import Requirements

SUM_AND_PRODUCT = b"""7767517
6 8
Input in0 0 1 in0
Input in1 0 1 in1
Split a 1 2 in0 a0 a1
Split b 1 2 in1 b0 b1
BinaryOp sum 2 1 a0 b0 out0 0=0
BinaryOp product 2 1 a1 b1 out1 0=2
"""
RELU = b"7767517\n2 2\nInput in0 0 1 in0\nReLU relu 1 1 in0 out0\n"
DENSE = b"7767517\n2 2\nInput in0 0 1 in0\nInnerProduct dense 1 1 in0 out0 0=2 1=0 2=6\n"
Shape = tuple[int | None, ...]


@pytest.fixture(autouse=True)
def ncnn_is_there(require_package: Callable[[str], None]) -> None:
    require_package("ncnn")


def entry_of(inputs: tuple[str, ...], outputs: tuple[str, ...]) -> ArtifactEntry:
    return ArtifactEntry(
        path="artifacts/ncnn/model.ncnn",
        size=0,
        sha256="0" * 64,
        format="ncnn",
        abi=1,
        engine="ncnn",
        package="ncnn",
        triple=None,
        needs=Requirements(),
        inputs=inputs,
        outputs=outputs,
        candidate="ncnn",
    )


def opened(file: NcnnFile | bytes, inputs: dict[str, Shape], outputs: dict[str, Shape], **options: Any) -> Engine:
    """The engine, with names of the signature for its tensors."""
    signature = Signature(
        inputs=tuple(TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in inputs.items()),
        outputs=tuple(TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in outputs.items()),
        predict=next(iter(outputs)),
    )
    data = file if isinstance(file, bytes) else file.pack()
    return open_engine(entry_of(tuple(inputs), tuple(outputs)), data, signature, **options)


def relu(shape: tuple[int, ...], *, batch_axis: bool = False) -> NcnnFile:
    plan = NcnnPlan(
        inputs=(NcnnTensor(blob="in0", shape=shape, batch_axis=batch_axis),),
        outputs=(NcnnTensor(blob="out0", shape=shape, batch_axis=batch_axis),),
    )
    return NcnnFile(plan=plan, graph=RELU, weights=b"")


def dense(weights: np.ndarray, precision: NcnnPrecision = "float32") -> NcnnFile:
    """A dense layer of three inputs and two outputs."""
    plan = NcnnPlan(
        inputs=(NcnnTensor(blob="in0", shape=(3,)),),
        outputs=(NcnnTensor(blob="out0", shape=(2,)),),
        precision=precision,
    )
    flag = np.uint32(0).tobytes()  # weights as they are
    return NcnnFile(plan=plan, graph=DENSE, weights=flag + weights.astype("<f4").tobytes())


def test_several_inputs_and_outputs_by_position() -> None:
    plan = NcnnPlan(
        inputs=(NcnnTensor(blob="in0", shape=(2, 3)), NcnnTensor(blob="in1", shape=(2, 3))),
        outputs=(NcnnTensor(blob="out1", shape=(2, 3)), NcnnTensor(blob="out0", shape=(2, 3))),
    )
    file = NcnnFile(plan=plan, graph=SUM_AND_PRODUCT, weights=b"")
    shape = (None, 2, 3)
    engine = opened(file, {"x": shape, "y": shape}, {"product": shape, "sum": shape})
    x, y = np.random.default_rng(0).normal(size=(2, 4, 2, 3)).astype(np.float32)
    found = engine.run({"y": y, "x": x})
    assert list(found) == ["product", "sum"]
    np.testing.assert_array_equal(found["product"], x * y)
    np.testing.assert_array_equal(found["sum"], x + y)
    with pytest.raises(BadDataError, match="4 and 3 rows"):
        engine.run({"x": x, "y": y[:3]})


RANKS = [(shape, axis) for shape in ((), (5,), (3, 5), (3, 5, 7)) for axis in (True, False)]


@pytest.mark.parametrize(("shape", "batch_axis"), [*RANKS, ((2, 3, 5, 7), False)])
def test_rows_of_every_rank(shape: tuple[int, ...], *, batch_axis: bool) -> None:
    engine = opened(relu(shape, batch_axis=batch_axis), {"x": (None, *shape)}, {"y": (None, *shape)})
    x = np.random.default_rng(1).normal(size=(3, *shape)).astype(np.float32)
    kept = x.copy()
    found = engine.run({"x": x})["y"]
    np.testing.assert_array_equal(found, np.maximum(x, 0))
    np.testing.assert_array_equal(x, kept, err_msg="a layer that works in place leaves the input alone")
    again = engine.run({"x": x[2:]})["y"]
    del engine
    gc.collect()
    np.testing.assert_array_equal(again, found[2:])


def test_a_batch_that_the_signature_fixes() -> None:
    engine = opened(relu((3,)), {"x": (2, 3)}, {"y": (2, 3)})
    assert engine.run({"x": np.full((2, 3), -1, np.float32)})["y"].shape == (2, 3)


def test_free_dimensions_are_those_of_the_artifact() -> None:
    engine = opened(relu((3, 4, 4)), {"x": (None, 3, None, None)}, {"y": (None, 3, None, None)})
    assert engine.run({"x": np.zeros((1, 3, 4, 4), np.float32)})["y"].shape == (1, 3, 4, 4)
    with pytest.raises(BadDataError, match=r"'x' has rows of \(3, 5, 4\); the artifact was made for \(3, 4, 4\)"):
        engine.run({"x": np.zeros((1, 3, 5, 4), np.float32)})


def test_half_precision_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import ncnn

    made: list[Any] = []

    class Spy(ncnn.Net):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(ncnn, "Net", Spy)
    weights = np.arange(6) / 3
    for precision in ("float32", "float16"):
        opened(dense(weights, precision), {"x": (None, 3)}, {"y": (None, 2)}, threads=3)
    options = [net.opt for net in made]
    names = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic")
    assert [[getattr(each, name) for name in names] for each in options] == [[False] * 3, [True] * 3]
    assert [each.num_threads for each in options] == [3, 3]
    assert not any(each.use_bf16_storage or each.use_vulkan_compute for each in options)


def test_many_threads_of_the_caller() -> None:
    weights = np.random.default_rng(2).normal(size=(2, 3)).astype(np.float32)
    engine = opened(dense(weights), {"x": (None, 3)}, {"y": (None, 2)}, threads=2)
    wrong: list[float] = []

    def work(seed: int) -> None:
        x = np.random.default_rng(seed).normal(size=(200, 3)).astype(np.float32)
        wrong.append(float(np.abs(engine.run({"x": x})["y"] - x @ weights.T).max()))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 4
    assert max(wrong) < 1e-5


def test_threads_below_one() -> None:
    with pytest.raises(UsageError, match="0 threads"):
        opened(relu((3,)), {"x": (None, 3)}, {"y": (None, 3)}, threads=0)


def test_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", None)
    from outrider.runtime.engines.ncnn import NcnnEngine

    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(None, 3)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(None, 3)),),
        predict="y",
    )
    with pytest.raises(EngineMissingError, match="pip install ncnn"):
        NcnnEngine.open(entry_of(("x",), ("y",)), relu((3,)).pack(), signature)


def test_without_files_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    def forbidden(name: str, flags: int) -> int:
        raise PermissionError(13, "memory files are sealed")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("os.memfd_create", forbidden)
    weights = np.array([[1, 2, 3], [4, 5, 6]])
    engine = opened(dense(weights), {"x": (None, 3)}, {"y": (None, 2)})
    assert not list(tmp_path.iterdir()), "no file is left behind"
    assert engine.run({"x": np.ones((1, 3), np.float32)})["y"].tolist() == [[6, 15]]


# Bad artifacts --------------------------------------------------------------------------------------------------


def test_no_artifact_at_all() -> None:
    text = io.BytesIO()
    with zipfile.ZipFile(text, "w") as archive:
        archive.writestr("model.param", RELU)
    whole = relu((3,)).pack()
    for data in (b"", b"\x00" * 100, text.getvalue(), whole[:-1], whole[:50], whole + b"x"):
        with pytest.raises(BadBundleError):
            opened(data, {"x": (None, 3)}, {"y": (None, 3)})


def test_a_damaged_plan() -> None:
    whole = relu((3,)).pack()
    for old, new in ((b'"float32"', b'"float23"'), (b'"winograd"', b'"winogard"'), (b"  3\n", b" -3\n")):
        assert old in whole
        with pytest.raises(BadBundleError, match=r"model\.json of an ncnn artifact cannot be read"):
            opened(whole.replace(old, new), {"x": (None, 3)}, {"y": (None, 3)})


@pytest.mark.parametrize("graph", [b"", b"7767517\n", b"1\n" + RELU, RELU[:40], RELU.replace(b"ReLU", b"Huh?")])
def test_a_damaged_graph(graph: bytes) -> None:
    file = NcnnFile(plan=relu((3,)).plan, graph=graph, weights=b"")
    with pytest.raises(EngineFault, match="cannot load the graph"):
        opened(file, {"x": (None, 3)}, {"y": (None, 3)})


@pytest.mark.parametrize("kept", [0, 3, 10, 27])
def test_weights_cut_short(kept: int) -> None:
    whole = dense(np.ones(6))
    file = NcnnFile(plan=whole.plan, graph=whole.graph, weights=whole.weights[:kept])
    with pytest.raises(EngineFault, match="cannot load the weights"):
        opened(file, {"x": (None, 3)}, {"y": (None, 2)})


def test_a_plan_that_names_other_blobs() -> None:
    plan = NcnnPlan(inputs=(NcnnTensor(blob="in1", shape=(3,)),), outputs=(NcnnTensor(blob="out0", shape=(3,)),))
    engine = opened(NcnnFile(plan=plan, graph=RELU, weights=b""), {"x": (None, 3)}, {"y": (None, 3)})
    with pytest.raises(EngineFault, match="no input 'in1'"):
        engine.run({"x": np.zeros((1, 3), np.float32)})
    plan = NcnnPlan(inputs=relu((3,)).plan.inputs, outputs=(NcnnTensor(blob="out7", shape=(3,)),))
    engine = opened(NcnnFile(plan=plan, graph=RELU, weights=b""), {"x": (None, 3)}, {"y": (None, 3)})
    with pytest.raises(EngineFault, match="ncnn failed"):
        engine.run({"x": np.zeros((1, 3), np.float32)})


def test_results_of_another_size() -> None:
    plan = NcnnPlan(inputs=relu((3,)).plan.inputs, outputs=(NcnnTensor(blob="out0", shape=(4,)),))
    engine = opened(NcnnFile(plan=plan, graph=RELU, weights=b""), {"x": (None, 3)}, {"y": (None, 4)})
    with pytest.raises(EngineFault, match=r"gives 'y' of 3 for a row, not \(4,\)"):
        engine.run({"x": np.zeros((1, 3), np.float32)})


def test_a_plan_unlike_the_manifest() -> None:
    file = relu((3,))
    with pytest.raises(BadBundleError, match="1 inputs or outputs where its manifest has 2"):
        opened(file, {"x": (None, 3), "z": (None, 3)}, {"y": (None, 3)})
    for shape in ((None, 4), (None,), (), (None, 3, 1)):
        with pytest.raises(BadBundleError, match=r"rows of \(3,\) for 'y'"):
            opened(file, {"x": (None, 3)}, {"y": shape})
