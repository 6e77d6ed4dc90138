"""The engine of TVM's libraries, beyond the contract of all engines."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from outrider.runtime import engines
from outrider.runtime.bundle import ArtifactEntry, Manifest, Signature, TensorSpec
from outrider.runtime.engines import tvm as engine_module
from outrider.runtime.engines.tvm import TvmEngine, find_runtime
from outrider.runtime.errors import BadBundleError, EngineFault, EngineMissingError
from outrider.targets import get_target
from outrider.targets.toolchain import build_shared

Parts = tuple[Manifest, dict[str, bytes]]
replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def library(require_package: Callable[[str], None]) -> bytes:
    """y = x + 1 and z = x, of [4, 33] each."""
    require_package("tvm")
    require_package("onnx")
    from onnx import TensorProto, helper, numpy_helper

    from outrider.compiler.backends.tvm.build import compile_network

    tensor = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 33]) for name in "xyz"]
    nodes = [helper.make_node("Add", ["x", "one"], ["y"]), helper.make_node("Identity", ["x"], ["z"])]
    one = numpy_helper.from_array(np.ones((4, 33), np.float32), "one")
    graph = helper.make_graph(nodes, "net", tensor[:1], tensor[1:], [one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return compile_network(model.SerializeToString(), get_target("host"))


@pytest.fixture
def entry(make_parts: Callable[..., Parts]) -> ArtifactEntry:
    return replace(make_parts()[0].artifacts[0], format="tvm", inputs=("x",), outputs=("y", "z"))


@pytest.fixture
def signature() -> Signature:
    x, y, z = (TensorSpec(name=name, dtype="float32", shape=(4, 33)) for name in "xyz")
    return Signature(inputs=(x,), outputs=(y, z), predict="y")


def rows(seed: int = 0) -> Any:
    return np.random.default_rng(seed).random((4, 33), np.float32)


@pytest.mark.parametrize("offset", [0, 1, 4, 16, 60])
def test_inputs_may_lie_anywhere(offset: int, library: bytes, entry: ArtifactEntry, signature: Signature) -> None:
    raw = np.zeros(4 * 33 * 4 + 256, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    x = raw[start : start + 4 * 33 * 4].view(np.float32).reshape(4, 33)
    x[...] = rows()
    engine = TvmEngine.open(entry, library, signature)
    assert np.array_equal(engine.run({"x": x})["y"], rows() + 1)
    x.flags.writeable = False
    assert np.array_equal(engine.run({"x": x})["y"], rows() + 1)


def test_outputs_are_new_arrays(library: bytes, entry: ArtifactEntry, signature: Signature) -> None:
    engine = TvmEngine.open(entry, library, signature)
    x = rows()
    first = engine.run({"x": x})
    x[...] = 0
    assert np.array_equal(first["z"], rows())
    first["y"][...] = 7
    assert (engine.run({"x": x})["y"] == 1).all()


def test_calls_from_threads_run_side_by_side(library: bytes, entry: ArtifactEntry, signature: Signature) -> None:
    engine = TvmEngine.open(entry, library, signature)
    wrong: list[int] = []

    def work(seed: int) -> None:
        x = rows(seed)
        wrong.extend(seed for _ in range(200) if not np.array_equal(engine.run({"x": x})["y"], x + 1))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_opening_again_keeps_no_descriptor_and_mixes_no_libraries(
    library: bytes, entry: ArtifactEntry, signature: Signature
) -> None:
    opened = [TvmEngine.open(entry, library, signature) for _ in range(2)]
    before = len(list(Path("/proc/self/fd").iterdir()))
    opened += [TvmEngine.open(entry, library, signature) for _ in range(3)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert all(np.array_equal(one.run({"x": rows()})["y"], rows() + 1) for one in opened)


def test_from_a_file_where_memory_is_sealed(
    library: bytes, entry: ArtifactEntry, signature: Signature, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def forbidden(name: str, flags: int) -> int:
        raise PermissionError(13, "memory files are sealed")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("os.memfd_create", forbidden)
    engine = TvmEngine.open(entry, library, signature)
    assert not list(tmp_path.iterdir())
    assert np.array_equal(engine.run({"x": rows()})["y"], rows() + 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(EngineFault, match="cannot be loaded"):
        TvmEngine.open(entry, library, signature)


def test_what_is_no_such_library(library: bytes, entry: ArtifactEntry, signature: Signature, tmp_path: Path) -> None:
    for data in (b"", b"no library" * 100, library[: len(library) // 2], library[:-1]):
        with pytest.raises(EngineFault, match="cut short"):
            TvmEngine.open(entry, data, signature)
    with pytest.raises(EngineFault, match="cannot be loaded"):
        TvmEngine.open(entry, library[:64] + b"\0" * (len(library) - 64), signature)
    other = build_shared(
        {"x.c": '__attribute__((visibility("default"))) int f(void) { return 1; }'},
        tmp_path / "x.so",
        get_target("host"),
    )
    with pytest.raises(EngineFault, match="no library of TVM's"):
        TvmEngine.open(entry, other, signature)


def test_a_manifest_that_says_otherwise(library: bytes, entry: ArtifactEntry, signature: Signature) -> None:
    w = TensorSpec(name="w", dtype="float32", shape=(4, 33))
    with pytest.raises(BadBundleError, match="1 inputs"):
        TvmEngine.open(replace(entry, inputs=("x", "w")), library, replace(signature, inputs=(*signature.inputs, w)))
    with pytest.raises(BadBundleError, match="lacks"):
        TvmEngine.open(replace(entry, inputs=("v",)), library, signature)
    engine = TvmEngine.open(replace(entry, outputs=("y",)), library, signature)
    with pytest.raises(EngineFault, match="2 outputs"):
        engine.run({"x": rows()})


def test_a_failing_run_is_told_and_harms_no_other(library: bytes, entry: ArtifactEntry, signature: Signature) -> None:
    engine = TvmEngine.open(entry, library, signature)
    with pytest.raises(EngineFault, match="shape"):
        engine.run({"x": np.zeros((4, 34), np.float32)})
    assert np.array_equal(engine.run({"x": rows()})["y"], rows() + 1)
    engine.close()
    with pytest.raises(EngineFault, match="closed"):
        engine.run({"x": rows()})


def test_missing_packages(
    entry: ArtifactEntry, signature: Signature, monkeypatch: pytest.MonkeyPatch, require_package: Callable[[str], None]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(EngineMissingError, match="pip install apache-tvm"):
            engines.open_engine(entry, b"", signature)
        assert find_runtime() == "libtvm_runtime.so"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tvm_ffi", None)
        with pytest.raises(EngineMissingError, match="apache-tvm-ffi"):
            TvmEngine.open(entry, b"", signature)
    require_package("tvm_ffi")

    def absent(path: str, mode: int) -> None:
        raise OSError(f"{path}: cannot open shared object file")

    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "_loaded", [])
        patch.setattr(ctypes, "CDLL", absent)
        with pytest.raises(EngineMissingError, match=r"libtvm_runtime\.so") as caught:
            TvmEngine.open(entry, b"", signature)
    assert caught.value.reason == "engine"


def test_neither_the_compiler_nor_torch_is_imported(library: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.so").write_bytes(library)
    code = (
        "import sys\n"
        "from outrider.runtime.bundle import ArtifactEntry, Signature, TensorSpec\n"
        "from outrider.runtime.engines.tvm import TvmEngine\n"
        "from outrider.runtime.target import Requirements\n"
        "import numpy as np\n"
        "x, y, z = (TensorSpec(name=n, dtype='float32', shape=(4, 33)) for n in 'xyz')\n"
        "entry = ArtifactEntry(path='m.so', size=1, sha256='0' * 64, format='tvm', abi=1, engine='tvm', package=None,\n"
        "                      triple=None, needs=Requirements(), inputs=('x',), outputs=('y', 'z'), candidate='tvm')\n"
        "data = open(sys.argv[1], 'rb').read()\n"
        "engine = TvmEngine.open(entry, data, Signature(inputs=(x,), outputs=(y, z), predict='y'))\n"
        "assert (engine.run({'x': np.ones((4, 33), np.float32)})['y'] == 2).all()\n"
        "assert 'tvm' not in sys.modules\n"
        "assert 'torch' not in sys.modules\n"
        "assert not any('libtvm_compiler' in line for line in open('/proc/self/maps'))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.so")], check=True)
