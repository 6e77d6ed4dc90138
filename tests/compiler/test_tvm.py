"""Networks by TVM: what graphs become, and that artifacts agree with ONNX Runtime."""

from __future__ import annotations

import dataclasses
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from outrider.compiler.backends.tvm.machine import MACHINES, Machine, machine_for
from outrider.compiler.backends.tvm.operators import panel_width
from outrider.compiler.backends.tvm.records import Found, Records
from outrider.compiler.backends.tvm.schedules import Choice, Shape, choices, combine
from outrider.runtime.bundle import ArtifactEntry, Signature, TensorSpec
from outrider.runtime.engines.tvm import TvmEngine
from outrider.runtime.errors import BadInputError, BadModelError, UnsupportedError
from outrider.runtime.target import Requirements
from outrider.targets import get_target

Array = np.ndarray[Any, Any]
Size = int | str
RNG = np.random.default_rng(5)


@pytest.fixture(scope="module", autouse=True)
def _tvm(require_package: Callable[[str], None]) -> None:
    require_package("tvm")
    require_package("onnx")
    import tvm

    assert tvm.__version__  # imported once, which takes seconds


def weights(*shape: int) -> Array:
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def model_of(
    nodes: Sequence[Any], constants: dict[str, Array], shape: Sequence[Size], opset: int = 18, out: int = 0
) -> bytes:
    """A model from `x` to `y`; `out` is the rank of `y`, 0 for that of `x`."""
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"d{i}" for i in range(out or len(shape))])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    data: bytes = made.SerializeToString()
    return data


def residual_net(channels: int = 24, size: int = 14) -> bytes:
    """Expand, depthwise, project and add, with ReLU6 as exporters write it: the bounds are casts of constants."""
    from onnx import TensorProto, helper

    node, wide = helper.make_node, 4 * channels
    constants = {
        "we": weights(wide, channels, 1, 1), "be": weights(wide), "wd": weights(wide, 1, 3, 3), "bd": weights(wide),
        "wp": weights(channels, wide, 1, 1), "bp": weights(channels),
        "zero": np.array(0, np.float32), "six": np.array(0.75, np.float64),
    }  # fmt: skip
    nodes = [
        node("Cast", ["six"], ["high"], to=TensorProto.FLOAT),
        node("Conv", ["x", "we", "be"], ["e"]),
        node("Clip", ["e", "zero", "high"], ["e6"]),
        node("Conv", ["e6", "wd", "bd"], ["d"], pads=[1, 1, 1, 1], group=wide),
        node("Clip", ["d", "zero", "high"], ["d6"]),
        node("Conv", ["d6", "wp", "bp"], ["p"]),
        node("Add", ["x", "p"], ["y"]),
    ]
    return model_of(nodes, constants, (1, channels, size, size))


NETS = (
    "residual",
    "strided 5x5 with uneven borders",
    "dilated depthwise, strided",
    "groups",
    "pooled head",
    "stacked product",
    "bounds one side, by position",
)


def small_nets() -> dict[str, tuple[bytes, tuple[int, ...]]]:
    from onnx import helper

    node = helper.make_node
    return {
        "residual": (residual_net(), (1, 24, 14, 14)),
        "strided 5x5 with uneven borders": (
            model_of(
                [node("Conv", ["x", "w"], ["y"], strides=[2, 2], pads=[1, 2, 2, 1])],
                {"w": weights(17, 3, 5, 5)},
                (2, 3, 13, 11),
            ),
            (2, 3, 13, 11),
        ),
        "dilated depthwise, strided": (
            model_of(
                [node("Conv", ["x", "w"], ["y"], strides=[2, 1], dilations=[2, 2], pads=[2, 2, 2, 2], group=16)],
                {"w": weights(16, 1, 3, 3)},
                (1, 16, 9, 7),
            ),
            (1, 16, 9, 7),
        ),
        "groups": (
            model_of([node("Conv", ["x", "w"], ["y"], group=4)], {"w": weights(8, 2, 3, 3)}, (1, 8, 6, 6)),
            (1, 8, 6, 6),
        ),
        "pooled head": (
            model_of(
                [
                    node("MaxPool", ["x"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
                    node("Conv", ["m", "w"], ["c"], pads=[1, 1, 1, 1]),
                    node("Relu", ["c"], ["r"]),
                    node("GlobalAveragePool", ["r"], ["g"]),
                    node("Flatten", ["g"], ["f"]),
                    node("Gemm", ["f", "v", "b"], ["y"], transB=1),
                ],
                {"w": weights(32, 4, 3, 3), "v": weights(10, 32), "b": weights(10)},
                (1, 4, 8, 8),
                out=2,
            ),
            (1, 4, 8, 8),
        ),
        "stacked product": (
            model_of(
                [node("MatMul", ["x", "w"], ["p"]), node("Softmax", ["p"], ["y"], axis=-1)],
                {"w": weights(20, 48)},
                (2, 5, 20),
            ),
            (2, 5, 20),
        ),
        "bounds one side, by position": (
            model_of([node("Clip", ["x", "", "b"], ["y"])], {"b": np.array(0.1, np.float32)}, (3, 5)),
            (3, 5),
        ),
    }


def reference(data: bytes, x: Array) -> Array:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    found: Array = session.run(None, {"x": x})[0]
    return found


def open_engine(data: bytes, given: Sequence[int | None], result: Sequence[int | None]) -> TvmEngine:
    entry = ArtifactEntry(
        path="artifacts/tvm/model.so", size=len(data), sha256="0" * 64, format="tvm", abi=1, engine="tvm",
        package="apache-tvm", triple=None, needs=Requirements(), inputs=("x",), outputs=("y",), candidate="tvm",
    )  # fmt: skip
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=tuple(given)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=tuple(result)),),
        predict="y",
    )
    return TvmEngine.open(entry, data, signature)


def built(data: bytes, **options: Any) -> bytes:
    from outrider.compiler.backends.tvm.build import compile_network

    return compile_network(data, get_target("host"), **options)


@pytest.mark.parametrize("name", NETS)
def test_artifacts_agree_with_onnx_runtime(name: str) -> None:
    nets = small_nets()
    assert tuple(nets) == NETS
    data, shape = nets[name]
    x = RNG.standard_normal(shape).astype(np.float32)
    wanted = reference(data, x)
    engine = open_engine(built(data), shape, wanted.shape)
    found = engine.run({"x": x})["y"]
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)
    assert np.array_equal(engine.run({"x": x})["y"], found)


def test_clips_fuse_and_leave_nothing_behind() -> None:
    from outrider.compiler.backends.tvm.imports import import_onnx
    from outrider.compiler.backends.tvm.lower import loops, lower

    mod = lower(import_onnx(residual_net()), machine_for(get_target("host")))
    text = mod.script(show_meta=False)
    assert "isnan" not in text
    assert "where" not in text
    names = sorted(one.name for one in loops(mod))
    assert len(names) == 5, names  # three fused convolutions, and the channels of the input and output are moved
    assert sum("maximum" in name and "minimum" in name for name in names) == 2
    assert sum("transpose" in name for name in names) == 2
    assert len(re.findall(r"R\.call_tir", text)) == 5


def test_a_bound_that_is_nan_bounds_nothing() -> None:
    from onnx import helper

    data = model_of(
        [helper.make_node("Clip", ["x", "a", "b"], ["y"])],
        {"a": np.array(np.nan, np.float32), "b": np.array(1, np.float32)},
        (4,),
    )
    x = np.array([-5, 0.5, 3, np.nan], np.float32)
    found = open_engine(built(data), (4,), (4,)).run({"x": x})["y"]
    assert found[:3].tolist() == [-5, 0.5, 1]
    assert np.isnan(found[3]), "as in ONNX Runtime"


def test_a_free_batch_stays_free() -> None:
    from onnx import helper

    data = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])],
        {"w": weights(12, 32)},
        ("n", 12),
    )
    engine = open_engine(built(data), (None, 12), (None, 32))
    for rows in (0, 1, 7):
        x = RNG.standard_normal((rows, 12)).astype(np.float32)
        found = engine.run({"x": x})["y"]
        np.testing.assert_allclose(found, reference(data, x), rtol=1e-5, atol=1e-6)
    bound = open_engine(built(data, shapes={"x": (3, 12)}), (3, 12), (3, 32))
    x = RNG.standard_normal((3, 12)).astype(np.float32)
    np.testing.assert_allclose(bound.run({"x": x})["y"], reference(data, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("border", ["whole", "band", "read"])
def test_code_for_several_cores(border: Any) -> None:
    from outrider.compiler.backends.tvm.build import _compiled, _export
    from outrider.compiler.backends.tvm.imports import import_onnx
    from outrider.compiler.backends.tvm.lower import loops, lower
    from outrider.compiler.backends.tvm.schedules import apply, favourite, shape_of

    data, host = small_nets()["pooled head"][0], get_target("host")
    machine = dataclasses.replace(machine_for(host), cores=2)
    mod = lower(import_onnx(data), machine)
    for one in loops(mod):
        shape = shape_of(one.function)
        choice = None if shape is None else favourite(shape, machine)
        if choice is not None and shape is not None and shape.bordered:
            choice = msgspec.structs.replace(choice, border=border, band=2)
        mod.update_func(mod.get_global_var(one.name), apply(one.function, shape, choice, machine))
    assert "T.parallel" in mod.script(show_meta=False)
    x = RNG.standard_normal((1, 4, 8, 8)).astype(np.float32)
    found = open_engine(_export(_compiled(mod, machine), host), x.shape, (1, 10)).run({"x": x})["y"]
    np.testing.assert_allclose(found, reference(data, x), rtol=2e-5, atol=2e-6)


# Records ---------------------------------------------------------------------------------------------------------


def test_records_replay_to_the_same_bytes() -> None:
    from outrider.compiler.backends.tvm.build import build_network, tune_network
    from outrider.compiler.backends.tvm.tune import Budget, Step

    host, data, steps = get_target("host"), residual_net(16, 8), list[Step]()
    tuned = tune_network(data, host, budget=Budget(seconds=60, trials=7), progress=steps.append)
    assert tuned.trials == 7
    assert not tuned.interrupted
    assert len(tuned.records.found) == 3
    assert steps[-1].fraction == 1.0
    assert [one.calls for one in tuned.spent] == [1, 1, 1]
    again = Records.decode(tuned.records.encode())
    assert again == tuned.records
    first = built(data, records=tuned.records)
    assert built(data, records=again) == first
    other = Records().merged({"0" * 64: Found(Choice(), 1.0)}).merged(again.found)
    assert build_network(data, host, other)[1] == again
    code = (
        "import sys\n"
        "from outrider.compiler.backends.tvm.build import compile_network\n"
        "from outrider.compiler.backends.tvm.records import Records\n"
        "from outrider.targets import get_target\n"
        "size = int(sys.argv[1])\n"
        "data = sys.stdin.buffer.read()\n"
        "made = compile_network(data[size:], get_target('host'), records=Records.decode(data[:size]))\n"
        "sys.stdout.buffer.write(made)\n"
    )
    packed = again.encode()
    done = subprocess.run(
        [sys.executable, "-c", code, str(len(packed))], input=packed + data, capture_output=True, check=True
    )
    assert done.stdout == first, "another process gives the same bytes"
    x = RNG.standard_normal((1, 16, 8, 8)).astype(np.float32)
    found = open_engine(first, x.shape, x.shape).run({"x": x})["y"]
    np.testing.assert_allclose(found, reference(data, x), rtol=2e-5, atol=2e-6)


def test_what_is_on_record_is_not_tried_again_and_ctrl_c_keeps_what_was_found() -> None:
    from outrider.compiler.backends.tvm.build import tune_network
    from outrider.compiler.backends.tvm.tune import Budget, Step

    def stop(step: Step) -> None:
        raise KeyboardInterrupt

    host, data = get_target("host"), residual_net(16, 8)
    tuned = tune_network(data, host, budget=Budget(trials=7), progress=stop)
    assert tuned.interrupted
    assert len(tuned.records.found) == 1
    rest = tune_network(data, host, records=tuned.records, budget=Budget(trials=2))
    assert not rest.interrupted
    assert len(rest.records.found) == 3
    assert tune_network(data, host, records=rest.records).trials == 0


def test_records_that_cannot_be_read() -> None:
    assert Records.decode(Records(version=0, found={"a": Found(Choice(), 1.0)}).encode()) == Records()
    with pytest.raises(BadInputError, match="records"):
        Records.decode(b'{"found": 3}')


def test_a_choice_that_does_not_fit_is_not_taken() -> None:
    from outrider.compiler.backends.tvm.build import schedule
    from outrider.compiler.backends.tvm.imports import import_onnx
    from outrider.compiler.backends.tvm.lower import loops, lower
    from outrider.compiler.backends.tvm.records import key_of

    machine, data = machine_for(get_target("host")), residual_net(16, 8)
    mod = lower(import_onnx(data), machine)
    odd = Records().merged({key_of(one.function, machine): Found(Choice(x=5, k=3), 1.0) for one in loops(mod)})
    assert schedule(mod, machine, odd) is not None
    x = RNG.standard_normal((1, 16, 8, 8)).astype(np.float32)
    found = open_engine(built(data, records=odd), x.shape, x.shape).run({"x": x})["y"]
    np.testing.assert_allclose(found, reference(data, x), rtol=2e-5, atol=2e-6)


# Machines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("board", "size_class", "machine"), [("x86-64", 2, 62), ("aarch64", 2, 183), ("armv7", 1, 40), ("riscv64", 2, 243)]
)
def test_cross_builds(board: str, size_class: int, machine: int) -> None:
    from outrider.compiler.backends.tvm.build import compile_network, requirements

    target = get_target(board)
    made = compile_network(residual_net(16, 8), target)
    assert made[:5] == b"\x7fELF" + bytes([size_class])
    assert struct.unpack_from("<HH", made, 16) == (3, machine), "a shared object of the architecture"
    needs = requirements(target, len(made))
    assert needs.arch == target.arch
    assert set(needs.features) <= set(target.features)
    assert needs.libc == target.libc


def test_machines_are_in_order_and_fit_boards() -> None:
    assert machine_for(get_target("armv7")).name == "armv7-vfp"
    assert machine_for(get_target("x86-64")).lanes == 4
    with pytest.raises(UnsupportedError, match="wasm32"):
        machine_for(get_target("wasm32-wasi"))
    assert len({machine.name for machine in MACHINES}) == len(MACHINES)


@pytest.mark.parametrize(
    ("channels", "lanes", "width"),
    [(32, 16, 32), (16, 16, 16), (24, 16, 24), (144, 16, 48), (1000, 16, 40), (10, 16, 10), (97, 16, 1), (12, 4, 12)],
)
def test_panels_divide_the_channels(channels: int, lanes: int, width: int) -> None:
    assert panel_width(channels, lanes) == width
    assert channels % width == 0


@pytest.mark.parametrize("machine", MACHINES, ids=lambda one: one.name)
@pytest.mark.parametrize("kind", ["convolution", "depthwise", "product"])
def test_tiles_fit_the_registers(kind: str, machine: Machine) -> None:
    panel = 0 if kind == "depthwise" else 32
    shape = Shape(kind, rows=14, columns=14, channels=96, depth=3, panel=panel, bordered=kind != "product")
    options = choices(shape, machine)
    for tile in options["tile"]:
        choice = combine({**{name: values[0] for name, values in options.items()}, "tile": tile})
        assert choice.y * choice.x * choice.vectors <= machine.registers
        assert shape.rows % choice.y == 0
        assert shape.columns % choice.x == 0


# Bad input --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_imported() -> None:
    from onnx import helper

    with pytest.raises(BadModelError):
        built(residual_net()[:200])
    with pytest.raises(BadModelError):
        built(b"no model")
    with pytest.raises(BadModelError, match="no input 'z'"):
        built(residual_net(), shapes={"z": (1,)})
    foreign = model_of([helper.make_node("Det", ["x"], ["y"])], {}, (1, 4, 4), out=1)
    with pytest.raises(UnsupportedError, match="Det"):
        built(foreign)
