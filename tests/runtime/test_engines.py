"""Engines: one contract for all of the table, and what is particular to each."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import numpy as np
import pytest

from outrider.runtime import engines
from outrider.runtime.bundle import ArtifactEntry, Manifest, Signature
from outrider.runtime.engines import native
from outrider.runtime.engines.base import Engine
from outrider.runtime.engines.native import NativeEngine
from outrider.runtime.engines.ncnn_file import NcnnFile, NcnnPlan, NcnnTensor
from outrider.runtime.errors import BadBundleError, EngineFault, EngineMissingError, TargetMismatchError, UsageError
from outrider.targets import get_target
from outrider.targets.toolchain import build_shared

Parts = tuple[Manifest, dict[str, bytes]]
replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def mean_onnx() -> bytes:
    """The mean model as an ONNX file."""
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=0)],
        "mean",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


@pytest.fixture(scope="module")
def mean_openvino(mean_onnx: bytes) -> bytes:
    """The same for OpenVINO."""
    from outrider.compiler.backends.openvino import convert_onnx

    return convert_onnx(mean_onnx)


@pytest.fixture(scope="module")
def mean_ncnn() -> bytes:
    """The mean model as an artifact of ncnn: no weights."""
    graph = b"7767517\n2 2\nInput in0 0 1 in0\nReduction mean 1 1 in0 out0 0=3 1=1\n"
    plan = NcnnPlan(inputs=(NcnnTensor(blob="in0", shape=(3,)),), outputs=(NcnnTensor(blob="out0", shape=()),))
    return NcnnFile(plan=plan, graph=graph, weights=b"").pack()


@pytest.fixture(scope="module")
def mean_tvm(mean_onnx: bytes, require_package: Callable[[str], None]) -> bytes:
    """The mean model by TVM."""
    require_package("tvm")
    from outrider.compiler.backends.tvm.build import compile_network

    return compile_network(mean_onnx, get_target("host"))


def full(engine: Engine) -> Callable[[Any], Any]:
    """The long way to the output `score`."""
    return lambda rows: engine.run({"features": rows})["score"]


@pytest.fixture
def entry_and_signature(make_parts: Callable[..., Parts]) -> tuple[ArtifactEntry, Signature]:
    manifest, _ = make_parts()
    return manifest.artifacts[0], manifest.signature


@pytest.fixture(params=sorted(engines.ENGINES))
def engine(
    request: pytest.FixtureRequest,
    entry_and_signature: tuple[ArtifactEntry, Signature],
    require_package: Callable[[str], None],
) -> Iterator[Engine]:
    artifacts = {
        "native": "mean_library",
        "ncnn": "mean_ncnn",
        "onnx": "mean_onnx",
        "openvino": "mean_openvino",
        "tvm": "mean_tvm",
        "wasm": "mean_module",
    }
    assert set(artifacts) == set(engines.ENGINES), "every engine of the table is tested"
    require_package(engines.ENGINES[request.param].module or "outrider.runtime")
    entry, signature = entry_and_signature
    data: bytes = request.getfixturevalue(artifacts[request.param])
    opened = engines.open_engine(replace(entry, format=request.param), data, signature)
    yield opened
    opened.close()


def test_contract(engine: Engine) -> None:
    rows = np.random.default_rng(0).random((100, 3), np.float32)
    outputs = engine.run({"features": rows})
    assert list(outputs) == ["score"]
    assert outputs["score"].dtype == np.float32
    assert outputs["score"].shape == (100,)
    np.testing.assert_allclose(outputs["score"], rows.mean(axis=1), rtol=1e-6)
    again = engine.run({"features": rows[:1]})["score"]
    assert again[0] == outputs["score"][0], "outputs are new arrays, and a row's result does not depend on its batch"
    assert isinstance(engine.binding, str)


def test_an_empty_batch(engine: Engine) -> None:
    assert engine.run({"features": np.empty((0, 3), np.float32)})["score"].shape == (0,)


def test_closing(engine: Engine) -> None:
    engine.close()
    engine.close()
    with pytest.raises(EngineFault):
        engine.run({"features": np.zeros((1, 3), np.float32)})


def test_the_table_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, entry_and_signature: tuple[ArtifactEntry, Signature]
) -> None:
    entry, signature = entry_and_signature
    absent = engines.EngineEntry("outrider.absent:Engine", module="surely_not_installed", package="surely-not")
    monkeypatch.setitem(engines.ENGINES, "other", absent)
    assert engines.available("native")
    assert not engines.available("other")
    assert not engines.available("unknown")
    with pytest.raises(EngineMissingError, match="pip install surely-not"):
        engines.open_engine(replace(entry, format="other"), b"", signature)
    with pytest.raises(EngineMissingError, match="no engine"):
        engines.open_engine(replace(entry, format="unknown"), b"", signature)
    with pytest.raises(TargetMismatchError, match="ABI 2") as caught:
        engines.open_engine(replace(entry, abi=2), b"", signature)
    assert caught.value.reason == "abi"


# Native ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binding", ["cffi", "ctypes"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_every_way_to_load_and_call(
    *,
    binding: Any,
    in_memory: bool,
    mean_library: bytes,
    entry_and_signature: tuple[ArtifactEntry, Signature],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if not in_memory:

        def forbidden(name: str, flags: int) -> int:
            raise PermissionError(13, "memory files are sealed")

        monkeypatch.setattr("os.memfd_create", forbidden)
    engine = NativeEngine.open(entry_and_signature[0], mean_library, entry_and_signature[1], binding=binding)
    assert engine.binding == binding
    assert not list(tmp_path.iterdir()), "no file is left behind"
    rows = np.array([[1, 2, 6], [0, 0, 3]], np.float32)
    assert engine.run({"features": rows})["score"].tolist() == [3.0, 1.0]
    predict = engine.matrix_function("score", full(engine))
    assert predict is not None
    first, second = predict(rows[:1]), predict(rows[1:])
    assert (first.tolist(), second.tolist()) == ([3.0], [1.0])
    assert predict(rows).tolist() == [3.0, 1.0]
    engine.close()
    with pytest.raises(EngineFault, match="closed"):
        predict(rows[:1])


def test_ctypes_where_cffi_is_absent(
    mean_library: bytes, entry_and_signature: tuple[ArtifactEntry, Signature], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cffi", None)
    engine = NativeEngine.open(entry_and_signature[0], mean_library, entry_and_signature[1])
    assert engine.binding == "ctypes"
    engine.close()


def test_two_libraries_never_share_a_name(
    mean_library: bytes, entry_and_signature: tuple[ArtifactEntry, Signature], tmp_path: Path
) -> None:
    """The loader knows libraries by path: one loaded after another was closed must not be the old one."""
    entry, signature = entry_and_signature
    source = (
        '#include "native_abi.h"\nuint32_t outrider_abi(void) { return 1; }\n'
        "size_t outrider_workspace(int64_t n) { return 0; }\n"
        "int32_t outrider_run(const void *const *i, void *const *o, int64_t n, void *w) "
        "{ for (int64_t k = 0; k < n; k++) ((float *)o[0])[k] = 42; return 0; }"
    )
    other = build_shared({"x.c": source}, tmp_path / "x.so", get_target("host"))
    rows = np.ones((1, 3), np.float32)
    for _ in range(3):
        for library, expected in ((mean_library, 1.0), (other, 42.0)):
            engine = NativeEngine.open(entry, library, signature)
            assert engine.run({"features": rows})["score"][0] == expected
            engine.close()
    both = [NativeEngine.open(entry, library, signature) for library in (mean_library, other)]
    assert [float(engine.run({"features": rows})["score"][0]) for engine in both] == [1.0, 42.0]
    for engine in both:
        engine.close()


def test_a_failing_status_is_an_engine_fault(
    mean_library: bytes, entry_and_signature: tuple[ArtifactEntry, Signature]
) -> None:
    engine = NativeEngine.open(entry_and_signature[0], mean_library, entry_and_signature[1])
    row = engine.matrix_function("score", full(engine))
    assert row is not None
    bad = np.full((1, 3), np.nan, np.float32)
    with pytest.raises(EngineFault, match="status 7"):
        engine.run({"features": bad})
    with pytest.raises(EngineFault, match="status 7"):
        row(bad)
    engine.close()


@pytest.mark.parametrize("binding", ["cffi", "ctypes"])
@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"hello" * 1000])
def test_what_is_no_library(data: bytes, binding: Any, entry_and_signature: tuple[ArtifactEntry, Signature]) -> None:
    with pytest.raises(EngineFault, match="cannot be loaded"):
        NativeEngine.open(entry_and_signature[0], data, entry_and_signature[1], binding=binding)
    gc.collect()


@pytest.mark.parametrize("binding", ["cffi", "ctypes"])
def test_a_library_of_another_abi_or_of_none(
    binding: Any, entry_and_signature: tuple[ArtifactEntry, Signature], tmp_path: Path
) -> None:
    entry, signature = entry_and_signature
    body = (
        "\nsize_t outrider_workspace(int64_t n) { return 0; }\n"
        "int32_t outrider_run(const void *const *i, void *const *o, int64_t n, void *w) { return 0; }\n"
    )
    newer = '#include "native_abi.h"\nuint32_t outrider_abi(void) { return 2; }' + body
    library = build_shared({"x.c": newer}, tmp_path / "x.so", get_target("host"))
    with pytest.raises(TargetMismatchError, match="ABI 2"):
        NativeEngine.open(entry, library, signature, binding=binding)
    nothing = build_shared({"x.c": "int nothing;"}, tmp_path / "y.so", get_target("host"))
    with pytest.raises(EngineFault, match="cannot be loaded"):
        NativeEngine.open(entry, nothing, signature, binding=binding)


def test_absurd_memory_is_an_engine_fault(entry_and_signature: tuple[ArtifactEntry, Signature], tmp_path: Path) -> None:
    entry, signature = entry_and_signature
    source = (
        '#include "native_abi.h"\nuint32_t outrider_abi(void) { return 1; }\n'
        "size_t outrider_workspace(int64_t n) { return (size_t)1 << 62; }\n"
        "int32_t outrider_run(const void *const *i, void *const *o, int64_t n, void *w) { return 0; }"
    )
    library = build_shared({"x.c": source}, tmp_path / "x.so", get_target("host"))
    engine = NativeEngine.open(entry, library, signature)
    with pytest.raises(EngineFault, match="bytes of memory"):
        engine.run({"features": np.zeros((2, 3), np.float32)})
    engine.close()


def test_many_threads(mean_library: bytes, entry_and_signature: tuple[ArtifactEntry, Signature]) -> None:
    engine = NativeEngine.open(entry_and_signature[0], mean_library, entry_and_signature[1])
    row = engine.matrix_function("score", full(engine))
    assert row is not None
    wrong: list[str] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(200):
            rows = rng.random((int(rng.integers(1, 50)), 3), np.float32)
            expected = ((rows[:, 0] + rows[:, 1]) + rows[:, 2]) / np.float32(3)
            if not np.array_equal(engine.run({"features": rows})["score"], expected) or row(rows[:1]) != expected[0]:
                wrong.append("differs")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close()
    assert not wrong


# A run that says when it has begun and waits to be let go on, by two numbers whose address is in the first row.
WAITING_SOURCE = """
#include "native_abi.h"
uint32_t outrider_abi(void) { return 1; }
size_t outrider_workspace(int64_t n) { return 0; }
int32_t outrider_run(const void *const *i, void *const *o, int64_t n, void *w) {
    volatile int32_t *begun_and_go;
    __builtin_memcpy(&begun_and_go, i[0], sizeof begun_and_go);
    begun_and_go[0] = 1;
    while (!begun_and_go[1]) {}
    *(float *)o[0] = 42;
    return 0;
}
"""


@pytest.fixture(scope="module")
def waiting_library(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("native") / "waiting.so"
    return build_shared({"x.c": WAITING_SOURCE}, out, get_target("host"))


@pytest.mark.parametrize("binding", ["cffi", "ctypes"])
@pytest.mark.parametrize("way", ["a row", "a batch"])
def test_closing_while_a_call_runs(
    *, way: str, binding: Any, waiting_library: bytes, entry_and_signature: tuple[ArtifactEntry, Signature]
) -> None:
    engine = NativeEngine.open(entry_and_signature[0], waiting_library, entry_and_signature[1], binding=binding)
    library = engine._library
    assert library is not None
    predict = engine.matrix_function("score", full(engine)) if way == "a row" else full(engine)
    assert predict is not None
    begun_and_go = np.zeros(2, np.int32)
    row = np.frombuffer(begun_and_go.ctypes.data.to_bytes(8, "little") + bytes(4), np.float32)[None]
    found: list[Any] = []
    thread = threading.Thread(target=lambda predict: found.append(predict(row)), args=[predict])
    thread.start()
    while not begun_and_go[0]:
        time.sleep(0.001)
    engine.close()
    begun_and_go[1] = 1
    thread.join()
    assert found[0].tolist() == [42.0], "the call that ran was left its code"
    with pytest.raises(EngineFault, match="closed"):
        predict(row)
    del predict
    gc.collect()
    assert library._users == 0


def test_closing_as_a_call_begins(
    mean_library: bytes, entry_and_signature: tuple[ArtifactEntry, Signature], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread closes when the call has found the library open, but is no user of it yet."""
    engine = NativeEngine.open(entry_and_signature[0], mean_library, entry_and_signature[1])
    library = engine._library
    assert library is not None
    unload = Mock(side_effect=library._unload)
    monkeypatch.setattr(library, "_unload", unload)

    def found_and_closed() -> Any:
        engine.close()
        return library

    monkeypatch.setattr(engine, "_open_library", found_and_closed)
    for call in (full(engine), lambda rows: engine.matrix_function("score", full(engine))):
        with pytest.raises(EngineFault, match="was closed"):
            call(np.zeros((1, 3), np.float32))
    unload.assert_called_once_with()


def test_a_part_that_outlives_its_call(
    mean_library: bytes, entry_and_signature: tuple[ArtifactEntry, Signature], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt ends a call that waits for the other threads: what they start afterwards finds the library gone."""
    engine = NativeEngine.open(entry_and_signature[0], mean_library, entry_and_signature[1], threads=2)
    late: list[Callable[[slice], None]] = []

    def interrupted(batch: int, run: Callable[[slice], None]) -> None:
        late.append(run)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine._threads, "each", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.run({"features": np.zeros((2, 3), np.float32)})
    late[0](slice(0, 1))
    engine.close()
    with pytest.raises(EngineFault, match="was closed"):
        late[0](slice(1, 2))


def test_an_engine_that_was_not_made_unloads_once(
    mean_library: bytes, entry_and_signature: tuple[ArtifactEntry, Signature], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, signature = entry_and_signature
    library = native.load_library(mean_library, entry.path, None)
    monkeypatch.setattr(native, "load_library", lambda *given: library)
    with pytest.raises(UsageError):
        NativeEngine.open(entry, mean_library, signature, threads=0)
    assert library._users == 0


def test_the_workspace_is_aligned() -> None:
    for size in (0, 1, 63, 1000):
        scratch = native._aligned(size)
        assert scratch.nbytes == max(size, 1)
        assert scratch.ctypes.data % native.ALIGNMENT == 0


# ONNX -----------------------------------------------------------------------------------------------------------


def test_onnx_names_may_differ_but_not_their_number(
    mean_onnx: bytes, entry_and_signature: tuple[ArtifactEntry, Signature]
) -> None:
    entry, signature = entry_and_signature
    entry = replace(entry, format="onnx")
    with pytest.raises(EngineFault, match="cannot load"):
        engines.open_engine(entry, mean_onnx[:50], signature)
    with pytest.raises(BadBundleError, match="1 outputs"):
        engines.open_engine(replace(entry, outputs=("score", "label")), mean_onnx, signature)
    engine = engines.open_engine(entry, mean_onnx, signature)
    with pytest.raises(EngineFault, match="failed"):
        engine.run({"features": np.zeros((2, 5), np.float64)})
    engine.close()
