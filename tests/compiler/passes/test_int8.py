"""int8 by calibration: close to float32, the same bytes each time, quiet, and clear where it cannot be."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from outrider.compiler.passes.int8 import calibrate, int8, prepare, quantise
from outrider.compiler.passes.ranges import MOST_CUT, find_ranges, see
from outrider.runtime.errors import BadDataError, BadInputError, UnsupportedError

METHODS = ("minmax", "entropy", "percentile")


@pytest.fixture(scope="module")
def net(graphs: ModuleType) -> onnx.ModelProto:
    return graphs.convnet()


@pytest.fixture(scope="module")
def feeds(graphs: ModuleType) -> list[dict[str, np.ndarray]]:
    return graphs.images(12)


@pytest.mark.parametrize("method", METHODS)
def test_int8_comes_close_and_is_smaller(graphs: ModuleType, net: Any, feeds: Any, method: Any) -> None:
    made = int8(net, feeds, method=method)
    onnx.checker.check_model(made, full_check=True)
    assert [value.name for value in (*made.graph.input, *made.graph.output)] == ["x", "y"]
    assert graphs.interface(made) == graphs.interface(net)
    wanted, found = (
        np.concatenate([graphs.run(one, feed)[0] for feed in graphs.images(8, seed=9)]) for one in (net, made)
    )
    assert graphs.relative(found, wanted) < 0.05
    held = graphs.constants(made)
    large = {name: values.dtype for name, values in held.items() if values.ndim > 1}
    assert set(large.values()) == {np.dtype(np.int8)}
    scales = [values for name, values in held.items() if name.startswith("w2") and name.endswith("_scale")]
    assert [values.shape for values in scales] == [(16,)]  # one for each channel


def test_the_argument_and_the_free_batch_stay(graphs: ModuleType, net: Any, feeds: Any) -> None:
    before = net.SerializeToString()
    made = int8(net, feeds)
    assert net.SerializeToString() == before
    batch = {"x": np.concatenate([feed["x"] for feed in feeds])}
    assert graphs.run(made, batch)[0].shape == (12, 10)


def test_bytes_do_not_hang_on_the_process_or_the_order_of_feeds(graphs: ModuleType, net: Any, feeds: Any) -> None:
    script = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("g", {graphs.__file__!r})
g = importlib.util.module_from_spec(spec); sys.modules["g"] = g; spec.loader.exec_module(g)
from outrider.compiler.passes.int8 import int8
sys.stdout.buffer.write(int8(g.convnet(), g.images(12), method="entropy").SerializeToString(deterministic=True))
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "77"}
    other = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, check=True)
    assert other.stderr == b""
    mine = int8(net, feeds[::-1], method="entropy").SerializeToString(deterministic=True)
    assert hashlib.sha256(mine).hexdigest() == hashlib.sha256(other.stdout).hexdigest()


def test_nothing_is_printed_logged_or_left(net: Any, feeds: Any, capfd: Any, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    root = logging.getLogger()
    before = (list(root.handlers), list(root.filters), root.level, logging.getLogger("onnxruntime").level)
    for method in METHODS:
        int8(net, feeds, method=method)
    assert capfd.readouterr() == ("", "")
    assert (list(root.handlers), list(root.filters), root.level, logging.getLogger("onnxruntime").level) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", [9, 11])
def test_old_opsets_are_raised(graphs: ModuleType, feeds: Any, version: int) -> None:
    net = graphs.convnet(opset=version)
    made = int8(net, feeds)
    assert made.opset_import[0].version == 13
    assert graphs.relative(graphs.run(made, feeds[0])[0], graphs.run(net, feeds[0])[0]) < 0.1


def test_nodes_stay_in_float32_by_the_names_of_the_model_given(graphs: ModuleType, net: Any, feeds: Any) -> None:
    calibration = calibrate(prepare(net, feeds))
    assert len(calibration.layers) == 4
    made = quantise(calibration, exclude=["depthwise", "fc"])  # fc becomes another node when it is merged with its bias
    kept = {name for name, values in graphs.constants(made).items() if values.dtype == np.float32 and values.ndim > 1}
    assert kept == {"w2", "w4"}
    with pytest.raises(BadInputError, match=r"no node 'depthwise_' .*near it: depthwise"):
        quantise(calibration, exclude=["depthwise_"])
    only = quantise(calibration, only=["first"])
    kept = {name for name, values in graphs.constants(only).items() if values.dtype == np.float32 and values.ndim > 1}
    assert kept == {"w2", "w3", "w4"}


def test_two_layers_may_share_a_bias(graphs: ModuleType) -> None:
    rng = np.random.default_rng(0)
    nodes = [graphs.node("Conv", ["x", "v", "b"], "c"), graphs.node("Relu", ["c"], "r")]
    nodes += [graphs.node("Conv", ["r", "w", "b"], "y")]
    weights = {"v": rng.normal(size=(4, 3, 1, 1)), "w": 9 * rng.normal(size=(4, 4, 1, 1)), "b": rng.normal(size=4)}
    constants = {name: values.astype(np.float32) for name, values in weights.items()}
    made = graphs.model(nodes, {"x": ["n", 3, 8, 8]}, {"y": ["n", 4, 8, 8]}, constants)
    feeds = [{"x": rng.normal(size=(4, 3, 8, 8)).astype(np.float32)}]
    after = int8(made, feeds)
    assert graphs.relative(graphs.run(after, feeds[0])[0], graphs.run(made, feeds[0])[0]) < 0.05


def test_feeds_of_different_sizes(graphs: ModuleType) -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32)}
    made = graphs.model([graphs.node("Conv", ["x", "w"], "y")], {"x": ["n", 3, "h", "w"]}, {"y": None}, weights)
    feeds = [{"x": rng.normal(size=(1, 3, 8 + i, 9)).astype(np.float32)} for i in range(5)]
    for method in METHODS:
        after = int8(made, feeds, method=method)
        assert graphs.relative(graphs.run(after, feeds[4])[0], graphs.run(made, feeds[4])[0]) < 0.05


# Ranges --------------------------------------------------------------------------------------------------------------


def outliers(graphs: ModuleType, count: int = 4) -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    """A layer whose inputs are normal numbers, but for one of them."""
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.normal(size=(1, 1, 100, 100)).astype(np.float32)} for _ in range(count)]
    feeds[0]["x"][0, 0, 50, 50] = 100
    return graphs.model([graphs.node("Relu", ["x"], "y")], {"x": [1, 1, 100, 100]}, {"y": None}), feeds


def test_entropy_and_percentile_leave_outliers_out(graphs: ModuleType) -> None:
    made, feeds = outliers(graphs)
    everything = np.concatenate([feed["x"].ravel() for feed in feeds])
    low, high = everything.min(), np.sort(everything)[-2]
    assert find_ranges(see(made, feeds), "minmax") == {"x": (low, 100), "y": (0, 100)}
    for method in ("entropy", "percentile"):
        found = find_ranges(see(made, feeds), method)  # type: ignore[arg-type]
        for name in ("x", "y"):
            assert found[name][1] < 3 * high, (method, name)
            kept = (everything <= found[name][1]) & (everything >= (low if name == "y" else found[name][0]))
            assert kept.mean() >= 1 - MOST_CUT - 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_constant_empty_and_few_values_have_ranges(graphs: ModuleType, method: Any) -> None:
    nodes = [graphs.node("Relu", ["x"], "r"), graphs.node("Relu", ["e"], "y")]
    made = graphs.model(nodes, {"x": [3], "e": ["n"]}, {"r": [3], "y": ["n"]})
    feeds = [{"x": -np.ones(3, np.float32), "e": np.zeros(0, np.float32)}]
    found = find_ranges(see(made, feeds), method)
    assert found["r"] == (0, 0)
    assert found["y"] == (0, 0)
    assert found["x"] == (-1, -1)


# What cannot be ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda feeds: feeds[:2], "there are 2 calibration samples, at least 4 are needed"),
        (lambda feeds: [], "there are 0 calibration samples"),
        (lambda feeds: [*feeds, {}], "calibration feed 12 lacks the input 'x'"),
        (lambda feeds: [{**feeds[0], "z": feeds[0]["x"]}], "calibration feed 0 has 'z', which is no input"),
        (lambda feeds: [{"x": feeds[0]["x"].astype(np.float64)}], "input 'x' of calibration feed 0 is float64"),
        (lambda feeds: [{"x": feeds[0]["x"][:, :2]}], r"has the shape \(1, 2, 16, 16\), the model takes \?x3x16x16"),
        (lambda feeds: [*feeds, {"x": feeds[0]["x"] * np.nan}], "input 'x' of calibration feed 12 holds NaN"),
        (lambda feeds: [*feeds, {"x": feeds[0]["x"] / np.float32(0)}], "calibration feed 12 holds infinity"),
    ],
)
def test_feeds_that_do_not_fit(net: Any, feeds: Any, change: Any, message: str) -> None:
    with np.errstate(all="ignore"), pytest.raises(BadDataError, match=message):
        prepare(net, change(feeds))


def test_a_model_that_makes_nan_is_told_where(graphs: ModuleType) -> None:
    nodes = [graphs.node("Log", ["x"], "logs"), graphs.node("MatMul", ["logs", "w"], "y")]
    made = graphs.model(nodes, {"x": ["n", 2]}, {"y": ["n", 2]}, {"w": np.eye(2, dtype=np.float32)})
    with pytest.raises(BadDataError, match="the value 'logs' becomes NaN or infinite"):
        prepare(made, [{"x": -np.ones((4, 2), np.float32)}])


def test_a_model_with_nothing_to_quantise(graphs: ModuleType) -> None:
    made = graphs.model([graphs.node("Relu", ["x"], "y")], {"x": ["n", 2]}, {"y": ["n", 2]})
    feeds = [{"x": np.ones((4, 2), np.float32)}]
    with pytest.raises(UnsupportedError, match="nothing to quantise: no Conv, ConvTranspose, Gemm or MatMul"):
        prepare(made, feeds)


def test_keeping_everything_is_no_int8(net: Any, feeds: Any) -> None:
    calibration = calibrate(prepare(net, feeds))
    with pytest.raises(UnsupportedError, match="nothing of the model can be quantised"):
        quantise(calibration, only=[])
    with pytest.raises(BadInputError, match=r"no calibration method 'mse' \(there are minmax, entropy, percentile\)"):
        calibrate(prepare(net, feeds), method="mse")  # type: ignore[arg-type]


def test_a_model_that_cannot_be_run(graphs: ModuleType) -> None:
    nodes = [graphs.node("Conv", ["x", "w"], "c"), graphs.node("Frobnicate", ["c"], "y", domain="mine")]
    made = graphs.model(nodes, {"x": [1, 3, 4, 4]}, {"y": None}, {"w": np.ones((4, 3, 3, 3), np.float32)})
    made.opset_import.add(domain="mine", version=1)
    with pytest.raises(UnsupportedError, match=r"ONNX Runtime cannot .* the model"):
        prepare(made, [{"x": np.ones((1, 3, 4, 4), np.float32)}] * 4)
