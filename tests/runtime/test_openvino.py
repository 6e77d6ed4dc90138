"""The engine of OpenVINO artifacts: against ONNX Runtime, what it refuses, and its files."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from outrider.compiler.backends.openvino import convert_onnx
from outrider.runtime.bundle import ArtifactEntry, Signature, TensorSpec
from outrider.runtime.engines import open_engine, openvino_files
from outrider.runtime.engines import openvino as engines_openvino
from outrider.runtime.engines.base import Engine
from outrider.runtime.engines.openvino import OpenVinoEngine
from outrider.runtime.engines.openvino_files import OpenVinoFiles, Settings, pack_files, unpack_files
from outrider.runtime.errors import BadBundleError, EngineFault, EngineMissingError
from outrider.runtime.target import Requirements

Array = np.ndarray
Shape = tuple[int | str, ...]
FLOATS = ["float16", "float32", "float64"]
DTYPES = [*FLOATS, *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "bool"]


def value(name: str, dtype: str, shape: Shape) -> Any:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def graph(nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, Array] | None = None) -> bytes:
    held = [
        helper.make_tensor(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array.tobytes(), raw=True)
        for name, array in (constants or {}).items()
    ]
    made = helper.make_graph(nodes, "graph", inputs, outputs, held)
    data: bytes = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    return data


def entry_and_signature(source: bytes) -> tuple[ArtifactEntry, Signature]:
    """Of the ONNX file's own tensors, under names that its artifact does not know."""
    import onnx

    def spec(tensor: Any) -> TensorSpec:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.type.tensor_type.elem_type)).name
        dims = tensor.type.tensor_type.shape.dim
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
        return TensorSpec(name=f"my-{tensor.name}", dtype=dtype, shape=shape)  # type: ignore[arg-type]

    made = onnx.load_model_from_string(source).graph
    inputs, outputs = tuple(map(spec, made.input)), tuple(map(spec, made.output))
    entry = ArtifactEntry(
        path="artifacts/ov/model.openvino",
        size=1,
        sha256="0" * 64,
        format="openvino",
        abi=1,
        engine="openvino",
        package="openvino",
        triple=None,
        needs=Requirements(),
        inputs=tuple(one.name for one in inputs),
        outputs=tuple(one.name for one in outputs),
        candidate="ov",
    )
    return entry, Signature(inputs=inputs, outputs=outputs, predict=outputs[0].name)


def opened(source: bytes, **options: Any) -> Engine:
    entry, signature = entry_and_signature(source)
    return open_engine(entry, convert_onnx(source), signature, **options)


def agree(source: bytes, engine: Engine, feed: dict[str, Array], **tolerance: float) -> dict[str, Array]:
    """Run both, and compare what comes out: number, order, dtypes, shapes and values."""
    wanted = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, feed)
    found = engine.run({f"my-{name}": array for name, array in feed.items()})
    assert len(found) == len(wanted)
    for mine, theirs in zip(found.values(), wanted, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, **tolerance)
    return found


@pytest.fixture(scope="module")
def relu() -> bytes:
    return graph(
        [helper.make_node("Relu", ["x"], ["y"])], [value("x", "float32", ("n", 3))], [value("y", "float32", ("n", 3))]
    )


@pytest.fixture(scope="module")
def net() -> bytes:
    """A convolution over images of any number and size, and its mean."""
    weights = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    return graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("ReduceMean", ["r", "axes"], ["y"], keepdims=0),
        ],
        [value("x", "float32", ("n", 3, "h", "w_"))],
        [value("y", "float32", ("n", 4)), value("r", "float32", ("n", 4, "h", "w_"))],
        {"w": weights, "axes": np.array([2, 3])},
    )


# Against ONNX Runtime ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (2,), (2, 3, 1, 2)], ids=str)
def test_every_dtype(dtype: str, shape: tuple[int, ...]) -> None:
    source = graph(
        [helper.make_node("Concat", ["x", "x"], ["y"], axis=0)]
        if shape
        else [helper.make_node("Unsqueeze", ["x", "axes"], ["y"])],
        [value("x", dtype, shape)],
        [value("y", dtype, (2 * shape[0], *shape[1:]) if shape else (1,))],
        {} if shape else {"axes": np.array([0])},
    )
    engine = opened(source)
    given = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, shape)
    agree(source, engine, {"x": np.asarray(given, dtype)})
    engine.close()


def test_a_scalar_comes_out() -> None:
    source = graph(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
        [value("x", "float32", ("n",))],
        [value("y", "float32", ())],
    )
    engine = opened(source)
    assert agree(source, engine, {"x": np.arange(5, dtype=np.float32)})["my-y"].shape == ()
    engine.close()


def test_free_dimensions(net: bytes) -> None:
    engine = opened(net)
    rng = np.random.default_rng(1)
    for shape in ((1, 3, 8, 8), (5, 3, 7, 9), (2, 3, 16, 4), (1, 3, 8, 8)):
        agree(net, engine, {"x": rng.standard_normal(shape).astype(np.float32)}, rtol=1e-4, atol=1e-5)
    engine.close()


def test_several_inputs_and_outputs_one_of_them_unread() -> None:
    source = graph(
        [
            helper.make_node("Sub", ["b", "a"], ["d"]),
            helper.make_node("Cast", ["d"], ["i"], to=TensorProto.INT64),
            helper.make_node("Identity", ["a"], ["e"]),
        ],
        [value("unread", "int32", ("k",)), value("b", "float32", ("n",)), value("a", "float32", ("n",))],
        [value("i", "int64", ("n",)), value("d", "float32", ("n",)), value("e", "float32", ("n",))],
    )
    engine = opened(source)
    feed = {
        "unread": np.zeros(4, np.int32),
        "b": np.array([5, 6, 7], np.float32),
        "a": np.array([1, 2, -3], np.float32),
    }
    assert list(agree(source, engine, feed)) == ["my-i", "my-d", "my-e"]
    engine.close()


def test_branches_and_loops() -> None:
    """An If and a Loop, whose bodies are graphs of their own."""
    branches = {
        name: helper.make_graph([helper.make_node(kind, ["x"], [out])], name, [], [value(out, "float32", ("n",))])
        for name, kind, out in (("then_branch", "Abs", "t"), ("else_branch", "Neg", "f"))
    }
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "s"], ["s2"]), helper.make_node("Identity", ["c"], ["c2"])],
        "body",
        [value("k", "int64", ()), value("c", "bool", ()), value("s", "float32", ("n",))],
        [value("c2", "bool", ()), value("s2", "float32", ("n",))],
    )
    source = graph(
        [
            helper.make_node("If", ["flag"], ["b"], **branches),
            helper.make_node("Loop", ["times", "", "b"], ["y"], body=body),
        ],
        [value("x", "float32", ("n",)), value("flag", "bool", ()), value("times", "int64", ())],
        [value("y", "float32", ("n",))],
    )
    assert convert_onnx(source) == convert_onnx(source)
    engine = opened(source)
    for flag, times in ((True, 2), (False, 3)):
        feed = {"x": np.array([1, -2], np.float32), "flag": np.array(flag), "times": np.array(times)}
        agree(source, engine, feed)
    engine.close()


# Arrays -----------------------------------------------------------------------------------------------------------


def test_inputs_are_left_alone_and_outputs_are_new(relu: bytes) -> None:
    engine = opened(relu)
    given = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    rows = given.copy()
    first = engine.run({"my-x": rows})["my-y"]
    kept = first.copy()
    second = engine.run({"my-x": np.ones((5, 3), np.float32)})["my-y"]
    assert np.array_equal(rows, given)
    assert np.array_equal(first, kept)
    assert first.flags.owndata
    assert first.flags.writeable
    assert not np.shares_memory(first, second)
    rows.flags.writeable = False
    assert np.array_equal(engine.run({"my-x": rows})["my-y"], kept), "what cannot be written to is taken too"
    assert np.array_equal(engine.run({"my-x": given[1:]})["my-y"], kept[1:]), "and what is not aligned"
    engine.close()


def test_integers_beyond_32_bits_are_refused() -> None:
    source = graph(
        [helper.make_node("Identity", ["x"], ["y"])], [value("x", "int64", ("n",))], [value("y", "int64", ("n",))]
    )
    engine = opened(source)
    limits = np.array([2**31 - 1, -(2**31)])
    agree(source, engine, {"x": limits})
    agree(source, engine, {"x": limits[:0]})
    for beyond in (limits + 1, limits - 1):
        with pytest.raises(EngineFault, match="32-bit integers"):
            engine.run({"my-x": beyond})
    engine.close()


def test_a_failing_run_is_a_fault_and_the_next_one_works(relu: bytes) -> None:
    engine = opened(relu)
    for wrong in (np.zeros((2, 3)), np.zeros((2, 4), np.float32), np.zeros(3, np.float32)):
        with pytest.raises(EngineFault, match="OpenVINO failed on"):
            engine.run({"my-x": wrong})
    agree(relu, engine, {"x": np.ones((2, 3), np.float32)})
    engine.close()


# Threads ----------------------------------------------------------------------------------------------------------


def test_calls_from_many_threads(net: bytes) -> None:
    engine = opened(net)
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        images = [rng.standard_normal((int(rng.integers(1, 4)), 3, 5, 5)).astype(np.float32) for _ in range(3)]
        once = [engine.run({"my-x": batch})["my-y"] for batch in images]
        for _ in range(20):
            for batch, first in zip(images, once, strict=True):
                if not np.array_equal(engine.run({"my-x": batch})["my-y"], first):
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close()
    assert not wrong


def test_the_plugin_is_told_everything_that_matters(net: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    config = engines_openvino.plugin_config
    told = []

    def noted(arithmetic: Any, threads: int) -> dict[str, Any]:
        told.append((arithmetic, threads))
        return config(arithmetic, threads)

    entry, signature = entry_and_signature(net)
    data = convert_onnx(net, arithmetic="bf16")
    monkeypatch.setattr(engines_openvino, "plugin_config", noted)
    exact, rough = opened(net, threads=2), open_engine(entry, data, signature)
    assert told == [("f32", 2), ("bf16", 1)]
    assert isinstance(exact, OpenVinoEngine)
    compiled = exact._request.get_compiled_model()
    assert compiled.get_property("NUM_STREAMS") == 1
    assert compiled.get_property("ENABLE_CPU_PINNING") is False
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    images = np.random.default_rng(0).standard_normal((2, 3, 9, 9)).astype(np.float32)
    agree(net, exact, {"x": images}, rtol=1e-4, atol=1e-5)
    agree(net, rough, {"x": images}, rtol=0.05, atol=0.2)
    exact.close()
    rough.close()


# Artifacts --------------------------------------------------------------------------------------------------------


def test_files_come_back_and_lie_aligned() -> None:
    files = OpenVinoFiles("<net/>", memoryview(b"12345"), Settings(arithmetic="bf16"))
    data = pack_files(files)
    assert data == pack_files(files)
    back = unpack_files(data)
    assert (back.graph, bytes(back.weights), back.settings) == ("<net/>", b"12345", files.settings)
    assert np.frombuffer(back.weights, np.uint8).ctypes.data % engines_openvino.ALIGNMENT == 0


def test_weights_are_read_where_they_lie(net: bytes) -> None:
    data = convert_onnx(net)
    whole = np.frombuffer(data, np.uint8)
    weights = engines_openvino._writeable(unpack_files(data).weights)
    assert np.shares_memory(weights, whole)
    shifted = memoryview(b"x" + data)[1:]
    copied = engines_openvino._writeable(unpack_files(bytes(data)).weights[1:])
    assert copied.ctypes.data % engines_openvino.ALIGNMENT == 0
    entry, signature = entry_and_signature(net)
    engine = open_engine(entry, shifted, signature)  # type: ignore[arg-type]
    agree(net, engine, {"x": np.ones((1, 3, 4, 4), np.float32)}, rtol=1e-4, atol=1e-5)
    engine.close()


def test_corrupt_artifacts(net: bytes) -> None:
    entry, signature = entry_and_signature(net)
    data = convert_onnx(net)
    files = unpack_files(data)
    for wrong in (b"", b"PK", b"hello" * 50, data[:-1], data[:200], data + b"x"):
        with pytest.raises(BadBundleError):
            open_engine(entry, wrong, signature)
    for place in (60, data.index(b"<net") + 30):
        with pytest.raises(BadBundleError, match="checksum"):
            open_engine(entry, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], signature)
    with pytest.raises(BadBundleError, match="not an OpenVINO artifact"):
        unpack_files(b"".join(openvino_files.pack({"x": b""})))
    parts = {openvino_files.WEIGHTS: b"", openvino_files.GRAPH: b"", openvino_files.SETTINGS: b'{"arithmetic":"f8"}'}
    with pytest.raises(BadBundleError, match="cannot be read"):
        unpack_files(b"".join(openvino_files.pack(parts)))
    for graph_, weights in (
        ("<net/>", files.weights),
        (files.graph[:500], files.weights),
        (files.graph, memoryview(b"")),
    ):
        with pytest.raises(EngineFault, match="cannot load"):
            open_engine(entry, pack_files(OpenVinoFiles(graph_, weights, Settings())), signature)


def test_a_manifest_of_another_model(net: bytes) -> None:
    entry, signature = entry_and_signature(net)
    data = convert_onnx(net)
    with pytest.raises(BadBundleError, match="1 inputs and 2 outputs"):
        open_engine(msgspec.structs.replace(entry, outputs=entry.outputs[:1]), data, signature)
    text = msgspec.structs.replace(signature.outputs[0], dtype="string")
    with pytest.raises(BadBundleError, match="no tensors of text"):
        open_engine(entry, data, msgspec.structs.replace(signature, outputs=(text, *signature.outputs[1:])))


def test_closing(relu: bytes) -> None:
    engine = opened(relu)
    engine.close()
    engine.close()
    with pytest.raises(EngineFault, match="was closed"):
        engine.run({"my-x": np.zeros((1, 3), np.float32)})


# The package ------------------------------------------------------------------------------------------------------


def test_a_package_that_cannot_be_imported(relu: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, signature = entry_and_signature(relu)
    data = convert_onnx(relu)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineMissingError, match="package openvino, which cannot be imported here") as caught:
        OpenVinoEngine.open(entry, data, signature)
    assert caught.value.hint == "pip install openvino"


QUIETLY = """
import socket, sys
def refused(*given): raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refused
from outrider.runtime.engines.openvino_files import import_openvino
openvino = import_openvino()
import openvino.tools.ovc.convert_impl as converter
assert converter.tm.__name__ == "openvino.tools.ovc.telemetry_stub", converter.tm
import openvino_telemetry
"""


def test_nothing_is_reported_and_nothing_written_at_home(tmp_path: Any) -> None:
    import os

    home = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", QUIETLY], env=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_what_was_imported_before_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = object()
    monkeypatch.setitem(sys.modules, "openvino_telemetry", module)
    seen: list[Callable[[], Any]] = []
    with openvino_files.without_telemetry():
        seen.append(sys.modules["openvino_telemetry"])  # type: ignore[arg-type]
    assert seen == [None]
    assert sys.modules["openvino_telemetry"] is module
