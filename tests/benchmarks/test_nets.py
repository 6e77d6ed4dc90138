"""The nets of the benchmark: the same each time, sane, and their operations counted right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from benchmarks.networks.flops import count_flops
from benchmarks.networks.nets import NETS, Net
from benchmarks.networks.nets.base import pictures
from benchmarks.networks.run import relative_error

from outrider.runtime.errors import BadModelError, UnavailableError

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -e '.[compiler]'")
_SMALL = ("tiny", "digits", "lstm", "rnet")


def _graph(nodes: list[Any], inputs: dict[str, list[Any]], weights: dict[str, tuple[int, ...]]) -> bytes:
    """An ONNX file of these nodes with one output, `y`."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", kind, None)],
        [onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    return bytes(model.SerializeToString())


def _node(kind: str, *inputs: str, **attributes: Any) -> Any:
    return onnx.helper.make_node(kind, list(inputs), ["y"], **attributes)


@pytest.mark.parametrize(
    ("node", "x", "weights", "flops"),
    [
        (_node("Conv", "x", "w", pads=[1, 1, 1, 1]), (1, 3, 8, 8), (16, 3, 3, 3), 2 * 64 * 16 * 27),
        (_node("Conv", "x", "w", group=4, strides=[2, 2]), (1, 4, 8, 8), (4, 1, 2, 2), 2 * 16 * 4 * 4),
        (_node("ConvTranspose", "x", "w", strides=[2, 2]), (1, 4, 8, 8), (4, 6, 2, 2), 2 * 64 * 4 * 6 * 4),
        (_node("Gemm", "x", "w", transB=1), (5, 7), (3, 7), 2 * 5 * 7 * 3),
        (_node("Gemm", "x", "w", transA=1), (7, 5), (7, 3), 2 * 5 * 7 * 3),
        (_node("MatMul", "x", "w"), (2, 4, 5, 7), (7, 3), 2 * 8 * 5 * 7 * 3),
        (_node("Relu", "x"), (1, 3, 8, 8), (1,), 0),
    ],
)
def test_operations_are_counted(node: Any, x: tuple[int, ...], weights: tuple[int, ...], flops: int) -> None:
    assert count_flops(_graph([node], {"x": list(x)}, {"w": weights}), {}) == flops


def test_operations_of_a_recurrent_layer() -> None:
    node = onnx.helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=6)
    data = _graph([node], {"x": [9, 1, 5]}, {"w": (1, 24, 5), "r": (1, 24, 6)})
    assert count_flops(data, {}) == 2 * 9 * 24 * (5 + 6)


def test_free_sizes_must_be_bound() -> None:
    data = _graph([_node("Conv", "x", "w")], {"x": ["n", 3, "h", "w"]}, {"w": (16, 3, 1, 1)})
    assert count_flops(data, {"x": (1, 3, 4, 4)}) == 2 * 16 * 16 * 3
    with pytest.raises(BadModelError, match="shape of 'y' cannot be inferred"):
        count_flops(data, {})


@pytest.mark.parametrize("name", _SMALL)
def test_a_net_is_whole_and_its_file_does_as_its_module(name: str, require_net: Callable[[str], Net]) -> None:
    import onnxruntime

    net = require_net(name)
    assert net is require_net(name)
    onnx.checker.check_model(onnx.load_from_string(net.onnx))
    assert count_flops(net.onnx, net.shapes) > 10**6
    calls = net.calls()
    assert [{key: array.shape for key, array in call.items()} for call in calls] == [dict(net.shapes)] * len(calls)
    assert net.calibration.keys() == net.held_out.keys()
    for key, array in net.calibration.items():
        assert not np.array_equal(array[:8], net.held_out[key][:8])
    session = onnxruntime.InferenceSession(net.onnx)
    found = [session.run(None, call) for call in calls]
    columns = [[np.concatenate(one) for one in zip(*side, strict=True)] for side in (found, net.reference())]
    assert relative_error(*columns) < 1e-5
    assert all(0.01 < np.abs(one).max() < 100 for one in columns[1])


def test_digits_are_read_well(require_net: Callable[[str], Net]) -> None:
    net = require_net("digits")
    assert net.labels is not None
    scores = np.concatenate([outputs[0] for outputs in net.reference()])
    assert np.mean(scores.argmax(axis=1) == net.labels) > 0.97
    assert net.calibration_labels is not None
    assert len(net.calibration_labels) == len(net.calibration["x"])


def test_a_net_that_is_only_a_file_says_so() -> None:
    net = Net("x", "a file", b"", {}, {}, {})
    with pytest.raises(UnavailableError, match="comes as an ONNX file only"):
        net.torch_module()


def test_pictures_are_the_same_each_time() -> None:
    a, b = pictures(2, 3, 32, 1), pictures(2, 3, 32, 1)
    assert np.array_equal(a, b)
    assert a.shape == (2, 3, 32, 32)
    assert abs(float(a.mean())) < 1e-5
    assert not np.array_equal(a, pictures(2, 3, 32, 2))


def test_the_table_names_what_there_is() -> None:
    import importlib.util

    assert {importlib.util.find_spec(path.partition(":")[0]) is not None for path in NETS.values()} == {True}
