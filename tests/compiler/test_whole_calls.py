"""Models that are not batched, from file to device: compiled, loaded, called, checked, served."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from outrider.compiler import compile_model, measure
from outrider.runtime import load
from outrider.runtime.errors import BadDataError
from outrider.runtime.golden import check_golden
from outrider.runtime.models import Array, Live, Models
from outrider.runtime.server import Routes
from outrider.runtime.server.wire import Request

FLOAT = TensorProto.FLOAT
node = helper.make_node


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def net(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    weights: Mapping[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    values = [
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in side.items()]
        for side in (inputs, outputs)
    ]
    stored = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    made = helper.make_graph(list(nodes), "net", *values, stored)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    return model


LSTM = net(
    [node("LSTM", ["x", "w", "r"], ["y", "h"], hidden_size=4)],
    {"x": ["t", 1, 3]},
    {"y": ["t", 1, 1, 4], "h": [1, 1, 4]},
    {"w": floats(1, 16, 3), "r": floats(1, 16, 4)},
)
SUM = net([node("Add", ["a", "b"], ["y"])], {"a": [], "b": []}, {"y": []})
SCALE = net([node("Mul", ["x", "w"], ["y"])], {"x": []}, {"y": []}, {"w": np.float32(2)})
PAIRS = net([node("Softmax", ["x"], ["y"])], {"x": [2, 3]}, {"y": [2, 3]})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few repetitions: these tests look at what is measured, not at how well."""
    monkeypatch.setattr(measure, "_ROUNDS", 3)
    monkeypatch.setattr(measure, "_MOST_ROUNDS", 3)
    monkeypatch.setattr(measure, "_LOOP_NS", 20_000)
    monkeypatch.setattr(measure, "_CALLS", 20)


class Seen:
    """What the server told its observer."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def served(self, live: Live, ids: Sequence[str], outputs: Mapping[str, Array]) -> None:
        self.ids.extend(ids)

    def failed(self, live: Live, error: Exception) -> None:
        raise AssertionError(error)


def ask(path: Path, inputs: Mapping[str, np.ndarray], **more: Any) -> tuple[int, Any, list[str]]:
    """One inference by the API: the status, the answer, and the ids that the observer saw."""
    models, seen = Models(), Seen()
    models.put(Live("main", "0" * 64, load(path)))
    given = [
        {"name": name, "shape": list(array.shape), "datatype": "FP32", "data": array.ravel().tolist()}
        for name, array in inputs.items()
    ]
    body = msgspec.json.encode({"inputs": given, **more})
    request = Request(
        method="POST",
        path="/v2/models/main/infer",
        headers={},
        body=body,
        keep_alive=True,
        deadline=time.monotonic() + 5,
    )
    response = Routes(models, observer=seen)(request)
    models.close()
    return response.status, msgspec.json.decode(response.body), seen.ids


def compiled(tmp_path: Path, model: onnx.ModelProto, **options: Any) -> Path:
    path = tmp_path / "m.orb"
    compile_model(model, out=path, **{"name": "m", "backends": ["ort"], **options})
    return path


def test_a_sequence_of_any_length(tmp_path):
    path = compiled(tmp_path, LSTM, calibration=floats(9, 5, 1, 3))
    with load(path) as session:
        result = check_golden(session, repeats=3)
        assert (result.passed, result.rows) == (True, 9)
        for length in (1, 5, 8):
            steps = floats(length, 1, 3)
            found = session.run({"x": steps})
            assert found["y"].shape == (length, 1, 1, 4)
            assert np.array_equal(session.predict(steps), found["y"])
            assert np.allclose(found["y"][-1], found["h"])
        for wrong in (floats(5, 3), floats(5, 2, 3), floats(9, 5, 1, 3)):
            with pytest.raises(BadDataError, match="shape"):
                session.predict(wrong)
    status, answer, ids = ask(path, {"x": floats(5, 1, 3)}, id="r1")
    assert status == 200
    assert [output["shape"] for output in answer["outputs"]] == [[5, 1, 1, 4], [1, 1, 4]]
    assert ids == ["r1"]


def test_images_of_any_size(tmp_path):
    model = net(
        [node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        {"x": ["n", 3, "h", "w"]},
        {"y": ["n", 2, "h", "w"]},
        {"w": floats(2, 3, 3, 3)},
    )
    path = compiled(tmp_path, model, calibration=floats(6, 3, 8, 10))
    with load(path) as session:
        assert check_golden(session, repeats=3).passed
        for shape in ((1, 3, 8, 10), (2, 3, 16, 12)):
            assert session.predict(floats(*shape)).shape == (shape[0], 2, *shape[2:])
    status, answer, _ = ask(path, {"x": floats(1, 3, 4, 4)})
    assert (status, answer["outputs"][0]["shape"]) == (200, [1, 2, 4, 4])


def test_sizes_that_depend_on_data(tmp_path):
    model = net([node("NonZero", ["x"], ["i"]), node("Cast", ["i"], ["y"], to=FLOAT)], {"x": [4]}, {"y": [1, "k"]})
    path = compiled(tmp_path, model, calibration=(floats(40, 4) > 0).astype(np.float32))
    with load(path) as session:
        assert check_golden(session, repeats=3).passed
        for row in ([0, 0, 0, 0], [1, 0, 0, 1], [1, 1, 1, 1]):
            assert session.predict(np.array(row, np.float32)).shape == (1, sum(row))


def test_scalars(tmp_path):
    path = compiled(tmp_path, SUM, calibration={"a": floats(6), "b": floats(6)})
    with load(path) as session:
        assert check_golden(session, repeats=3).passed
        found = session.run({"a": np.float32(1)[...], "b": np.array(2, np.float32)})["y"]
        assert (found.shape, found.item()) == ((), 3.0)
        with pytest.raises(BadDataError, match="2 inputs"):
            session.predict(np.array(1, np.float32))
    status, answer, ids = ask(path, {"a": np.array(1.5), "b": np.array(2)}, id="r1")
    assert (status, answer["outputs"][0]["data"], answer["outputs"][0]["shape"], ids) == (200, [3.5], [], ["r1"])
    path = compiled(tmp_path, SCALE)
    with load(path) as session:
        assert check_golden(session, repeats=3).passed
        assert session.predict(np.array(4, np.float32)) == 8


def test_a_fixed_batch_with_labels(tmp_path):
    rows = floats(41, 3)
    places = rows.argmax(axis=1)
    calibration = {"x": rows, "label": np.array(list("abc"))[places]}
    path = compiled(tmp_path, PAIRS, calibration=calibration, labels=list("abc"), goals=["accuracy>=1", "top2>=1"])
    with load(path) as session:
        result = check_golden(session, repeats=3)
        assert (result.passed, result.rows) == (True, 20)
        found = session.run({"x": rows[:2]})
        assert found["label"].tolist() == calibration["label"][:2].tolist()
        with pytest.raises(BadDataError, match=r"shape \(3, 3\); expected float32 of shape \(2, 3\)"):
            session.predict(rows[:3])
        with pytest.raises(BadDataError, match="expected float32"):
            session.predict(rows[:2].astype(np.float64))
    for more, wanted in (({"id": "r"}, ["r/0", "r/1"]), ({"parameters": {"ids": ["p", "q"]}}, ["p", "q"]), ({}, [])):
        status, answer, ids = ask(path, {"x": rows[:2]}, **more)
        assert (status, ids) == (200, wanted)
        assert answer["outputs"][1]["shape"] == [2]
    assert ask(path, {"x": rows[:2]}, parameters={"ids": ["p"]})[0] == 400


@pytest.mark.parametrize("inputs", [{}, {"x": np.array(1.0)}, {"x": floats(4)}, {"x": floats(1, 2, 3)}])
def test_requests_that_do_not_fit(tmp_path, inputs):
    batched = net([node("Softmax", ["x"], ["y"])], {"x": ["n", 3]}, {"y": ["n", 3]})
    for model in (PAIRS, batched):
        status, answer, _ = ask(compiled(tmp_path, model), inputs)
        assert status == 400, answer
        assert "error" in answer


@pytest.mark.parametrize("name", ["openvino", "ncnn"])
def test_other_backends_take_them_or_say_why_not(tmp_path, require_package, name):
    require_package(name)
    for model, calibration in ((LSTM, floats(5, 4, 1, 3)), (PAIRS, floats(10, 3)), (SCALE, floats(5))):
        path = tmp_path / "m.orb"
        report = compile_model(model, out=path, name="m", backends=["ort", name], calibration=calibration)
        records = {record.id: record for record in report.candidates}
        assert records["ort"].parity is not None
        assert records[name].parity is not None or records[name].outcome in ("failed", "rejected", "not eligible")
        if name == "ncnn" and model is SCALE:
            assert records[name].reason == "ncnn takes no single number, as the input 'x' is"
        with load(path) as session:
            assert check_golden(session, repeats=1).passed
