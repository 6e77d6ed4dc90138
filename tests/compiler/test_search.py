"""The search: what fails is one candidate less, quality decides by goals, and the best so far is kept."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from outrider.compiler import compile_model, making, measure
from outrider.compiler import search as search_module
from outrider.compiler.backends import BACKENDS, Candidate
from outrider.compiler.report import Report
from outrider.compiler.workshop import Workshop
from outrider.runtime import load
from outrider.runtime.bundle import CandidateRecord
from outrider.runtime.errors import (
    BadDataError,
    BadInputError,
    EngineFault,
    GoalUnmetError,
    ParityError,
    ToolchainError,
    UnsupportedError,
    UsageError,
)
from outrider.runtime.golden import check_golden

ROWS = np.random.default_rng(1).normal(size=(64, 4)).astype(np.float32)
Compile = Callable[..., Report]


def onnx_net() -> onnx.ModelProto:
    weights = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    made = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    return model


NET = onnx_net()
LABELS = (ROWS @ numpy_helper.to_array(NET.graph.initializer[0])).argmax(axis=1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few repetitions: these tests look at what is measured, not at how well."""
    monkeypatch.setattr(measure, "_ROUNDS", 3)
    monkeypatch.setattr(measure, "_MOST_ROUNDS", 3)
    monkeypatch.setattr(measure, "_LOOP_NS", 20_000)
    monkeypatch.setattr(measure, "_CALLS", 20)


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of backends that tests add, on the path of processes too."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import search_backends

    yield search_backends
    sys.modules.pop("search_backends", None)


@pytest.fixture
def compiled(backends: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compile:
    """Compile the net by a backend added to the table that offers these candidates; in this process unless isolated."""

    def run(*offers: Candidate, isolated: bool = False, **options: Any) -> Report:
        kind = "Wild" if isolated else "Tame"
        monkeypatch.setitem(BACKENDS, "wild", f"search_backends:{kind}")
        monkeypatch.setattr(backends.Wild, "offers", offers)
        wanted: dict[str, Any] = {"backends": ["wild"], "calibration": ROWS, "name": "m", "version": "1"}
        return compile_model(NET, out=tmp_path / "m.orb", **(wanted | options))

    return run


def outcomes(report: Report) -> dict[str, str]:
    """Of all but the precisions that were not asked for."""
    asked = [record for record in report.candidates if not record.reason.startswith("no goal says")]
    return {record.id.removeprefix("wild-"): record.outcome for record in asked}


def reason(report: Report, key: str) -> str:
    (found,) = [record.reason for record in report.candidates if record.id == f"wild-{key}"]
    return found


# Failing candidates --------------------------------------------------------------------------------------------


def test_whatever_a_candidate_does_the_others_go_on(backends, compiled, monkeypatch):
    monkeypatch.setattr(making, "Workshop", lambda: Workshop(memory_bytes=4 << 30))
    wrong = {
        "raise": "RuntimeError: internal compiler error",
        "abort": "died of SIGABRT",
        "kill": "died of SIGKILL",
        "exit": "ended with 0",
        "eat": "out of memory",
        "unsupported": "no operator Foo",
        "toolchain": "the linker failed",
        "bad": "the model is strange",
        "garbage": "cannot load",
    }
    offers = [backends.does(deed) for deed in ("print", *wrong, "last")]
    report = compiled(*offers, isolated=True, goals=["size<=1MB"])
    found = outcomes(report)
    assert [found[deed] for deed in wrong] == ["failed"] * len(wrong)
    for deed, message in wrong.items():
        assert message in reason(report, deed)
    assert {found["print"], found["last"]} == {"chosen", "rejected"}
    with load(report.path) as session:
        assert check_golden(session, repeats=1).passed


def test_a_candidate_that_hangs_uses_up_the_budget_and_no_more(backends, compiled, monkeypatch):
    monkeypatch.setattr(making, "_LEAST_S", 3.0)
    report = compiled(*map(backends.does, ("hang", "print", "last")), isolated=True, budget_s=3)
    assert outcomes(report) == {"print": "chosen", "hang": "failed", "last": "not eligible"}
    assert "took more than 3 s" in reason(report, "hang")
    assert reason(report, "last") == "not tried: the time budget of 3 s was used up"
    assert "last" in report.table()


@pytest.mark.parametrize(
    ("deeds", "error", "message"),
    [
        (["unsupported"], UnsupportedError, "^there is no operator Foo$"),
        (["toolchain"], ToolchainError, "^the linker failed$"),
        (["toolchain", "unsupported"], UnsupportedError, "Foo"),
        (["toolchain", "garbage"], ToolchainError, "no candidate could be built for .*linker failed.*cannot load"),
    ],
)
def test_why_nothing_is_left(backends, compiled, tmp_path, deeds, error, message):
    with pytest.raises(error, match=message):
        compiled(*map(backends.does, deeds))
    assert not (tmp_path / "m.orb").exists()


def test_a_backend_that_disagrees_does_not_end_the_search(backends, compiled):
    wrong = backends.does("wrong", scale="1.1")
    for target in ("host", "aarch64"):
        report = compiled(wrong, backends=["ort", "wild"], target=target)
        assert outcomes(report)["wrong-scale1.1"] == "rejected"
        assert "disagrees with the source model" in reason(report, "wrong-scale1.1")
        assert outcomes(report)["ort"] == "chosen"
    with pytest.raises(ParityError) as raised:
        compiled(wrong)
    assert raised.value.exit_code == 6


def test_one_that_fails_as_it_is_measured(backends, compiled, monkeypatch):
    offers = [backends.does("good"), Candidate("wild", options={"method": "good", "preset": "x"})]
    monkeypatch.setattr(search_module, "measure_rss", lambda entry, *_: some_or_fail(entry.candidate))
    report = compiled(*offers, goals=["rss<=1GB"])
    assert outcomes(report) == {"good": "chosen", "good-x": "failed"}
    with pytest.raises(EngineFault, match="process of its own"):
        compiled(offers[1], goals=["rss<=1GB"])


def some_or_fail(candidate: str) -> int:
    if candidate == "wild-good-x":
        raise EngineFault("it does not run in a process of its own")
    return 1 << 20


# Ctrl-C --------------------------------------------------------------------------------------------------------


def test_ctrl_c_gives_the_best_so_far(backends, compiled, tmp_path):
    stages: list[str] = []
    report = compiled(*map(backends.does, ("good", "interrupt", "last")), settle=True, progress=stages.append)
    assert report.interrupted
    assert outcomes(report) == {"good": "chosen"}
    assert "interrupted: measuring the best so far" in stages
    with load(report.path) as session:
        assert check_golden(session, repeats=1).passed
    assert not compiled(backends.does("good")).interrupted
    (tmp_path / "m.orb").unlink()
    with pytest.raises(KeyboardInterrupt):
        compiled(*map(backends.does, ("interrupt", "good")), settle=True)
    with pytest.raises(KeyboardInterrupt):  # a caller who does not settle for it
        compiled(*map(backends.does, ("good", "interrupt", "last")))
    assert not (tmp_path / "m.orb").exists()


def test_ctrl_c_while_measuring_leaves_the_choice_to_the_rule(backends, compiled, monkeypatch):
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(search_module, "measure", interrupted)
    report = compiled(backends.does("good"), backends=["ort", "wild"], settle=True)
    assert report.interrupted
    assert outcomes(report) | {"ort": "chosen", "good": "rejected"} == outcomes(report)
    assert "not measured, since Ctrl-C ended it" in report.table()
    assert reason(report, "good") == "not measured; the rule prefers ort"
    with pytest.raises(KeyboardInterrupt):
        compiled(backends.does("good"), goals=["p99<=1s"], settle=True)


# What is tried -------------------------------------------------------------------------------------------------


def test_restricting_the_search(backends, compiled):
    offers = [backends.does("p", precision) for precision in ("fp32", "fp16", "int8")]
    report = compiled(*offers, backends=["wild", "native"])
    assert outcomes(report) | {"native": "not eligible"} == outcomes(report)
    assert {record.backend for record in report.candidates} == {"wild", "native"}
    (report,) = [compiled(*offers, precisions=["int8"])]
    assert {record.precision for record in report.candidates} == {"int8"}
    for options, message in (
        ({"backends": ["tensorflow"]}, "no backend 'tensorflow' .*native, ort"),
        ({"precisions": ["int4"]}, "no precision 'int4' .*fp32, fp16, int8, mixed"),
        ({"threads": 0}, "0 threads"),
    ):
        with pytest.raises(UsageError, match=message) as raised:
            compiled(*offers, **options)
        assert raised.value.exit_code == 2
    with pytest.raises(UnsupportedError, match=r"no backend compiles this model.*native: "):
        compiled(*offers, backends=["native"])
    with pytest.raises(UnsupportedError, match="it compiles in fp32, fp16 only"):
        compiled(*offers, backends=["ncnn"], precisions=["int8"])


def test_reduced_precisions_are_tried_where_a_goal_says_what_may_be_lost(backends, compiled):
    offers = [backends.does("p", precision) for precision in ("fp32", "fp16", "int8", "mixed")]
    for goals in ([], ["size<=1MB", "p99<=10s"]):
        report = compiled(*offers, goals=goals)
        tried = [record.precision for record in report.candidates if record.outcome != "not eligible"]
        assert tried == ["fp32"]
        refused = [record for record in report.candidates if record.outcome == "not eligible"]
        assert [record.precision for record in refused] == ["fp16", "int8", "mixed"]
        assert all("no goal says how much quality may be lost" in record.reason for record in refused)
    report = compiled(*offers, goals=["cosine>=0.9"])
    assert {record.precision for record in report.candidates if record.outcome != "not eligible"} == {
        "fp32",
        "fp16",
        "int8",
        "mixed",
    }


# Quality -------------------------------------------------------------------------------------------------------

SCALED = ("1", "1.05", "1.2", "-1")


def scaled(backends: Any, *factors: str) -> list[Candidate]:
    return [backends.does("p", "int8", scale=factor) for factor in factors]


@pytest.mark.parametrize(
    ("goals", "fit"),
    [
        (["l2<=0.1"], ("1", "1.05")),
        (["l2<=1e-6"], ("1",)),
        (["cosine>=0.99"], ("1", "1.05", "1.2")),
        (["accuracy>=base-0.01"], ("1", "1.05", "1.2")),
        (["top2>=base", "l2<=30%"], ("1", "1.05", "1.2")),
        (["mae<=0.5"], ("1", "1.05", "1.2")),
    ],
)
def test_goals_on_quality(backends, compiled, goals, fit):
    targets = ROWS @ numpy_helper.to_array(NET.graph.initializer[0])
    calibration = {"x": ROWS, "label": targets if "mae" in goals[0] else LABELS}
    report = compiled(*scaled(backends, *SCALED), goals=goals, calibration=calibration, precisions=["int8"])
    records = {record.options["scale"]: record for record in report.candidates}
    missed = {scale for scale, record in records.items() if record.reason.startswith("misses ")}
    assert missed | {"-1"} == set(SCALED) - set(fit)
    assert records["-1"].outcome == "rejected"  # nothing is left of the source model, whatever the goals
    assert all(goal.met for goal in report.manifest.goals)


def test_goals_that_nothing_meets(backends, compiled, tmp_path):
    offers = scaled(backends, "1.05", "1.2")
    closest = r"closest, wild-int8-p-scale1.05, misses l2<=0.01 \(measured 0.05\)"
    with pytest.raises(GoalUnmetError, match=closest) as raised:
        compiled(*offers, goals=["l2<=0.01", "size<=1MB"])
    assert raised.value.exit_code == 3
    for goal in ("rss<=1B", "size<=1B", "p99<=1ns"):
        with pytest.raises(GoalUnmetError, match=f"misses {goal} .measured"):
            compiled(backends.does("p"), goals=[goal])
    assert not (tmp_path / "m.orb").exists()


def test_resident_memory(backends, compiled):
    report = compiled(backends.does("p"), goals=["rss<=1GB"])
    (goal,) = report.manifest.goals
    assert goal.measured is not None
    assert 1 << 16 < goal.measured < 1 << 30


def test_the_callers_own_function(backends, compiled):
    asked: list[int] = []

    def bias(predict: Any, inputs: Any, labels: Any) -> dict[str, float]:
        assert labels is None
        asked.append(len(inputs["x"]))
        return {"Bias@1": float(abs(predict({"x": inputs["x"][:5]})["y"]).mean())}

    report = compiled(*scaled(backends, "1.2", "1"), goals=["Bias@1<=base+1%"], evaluate=bias, precisions=["int8"])
    records = {record.options["scale"]: record.outcome for record in report.candidates}
    assert records == {"1": "chosen", "1.2": "rejected"}
    assert asked == [64] * 3
    assert report.manifest.goals[0].measured == pytest.approx(report.manifest.goals[0].bound - 0.01)


def raising(*_: Any) -> float:
    raise ZeroDivisionError("no positives")


@pytest.mark.parametrize(
    ("evaluate", "error", "message"),
    [
        (raising, BadInputError, "the evaluation raised ZeroDivisionError: no positives"),
        (lambda *_: float("nan"), BadInputError, "gives nan for 'metric'"),
        (lambda *_: {"precision": 1.0}, BadInputError, "gives no 'metric' .*it gives precision"),
        (None, UsageError, "unknown metric"),
    ],
)
def test_a_function_of_the_callers_that_does_not_work_is_told_before_anything_is_built(
    backends, compiled, evaluate, error, message
):
    stages: list[str] = []
    with pytest.raises(error, match=message):
        compiled(backends.does("p"), goals=["metric>=0.5"], evaluate=evaluate, progress=stages.append)
    assert not any("building" in stage for stage in stages)


def test_mixed_precision_where_int8_misses(compiled):
    """By ONNX Runtime's backend: nothing but the source's own precision meets a goal that allows no error."""
    report = compiled(backends=["ort"], goals=["l2<=1e-6"], precisions=["fp32", "int8", "mixed"])
    found = {record.id: record for record in report.candidates}
    assert found["ort"].outcome == "chosen"
    tried = [record for record in report.candidates if record.precision in ("int8", "mixed")]
    assert {record.precision for record in tried} == {"int8", "mixed"}
    assert all(record.reason.startswith("misses l2<=1e-6") or record.outcome == "failed" for record in tried)
    report = compiled(backends=["ort"], goals=["l2<=0.2"], precisions=["fp32", "int8", "mixed"])
    assert not any(record.precision == "mixed" for record in report.candidates)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [(np.full((8, 4), np.nan), "holds NaN"), (ROWS[:2], "at least 4 are needed"), (ROWS[:, :3], "expected")],
)
def test_calibration_that_int8_cannot_use(compiled, calibration, message):
    with pytest.raises(BadDataError, match=message):
        compiled(backends=["ort"], precisions=["int8"], calibration=calibration)


def test_such_calibration_leaves_the_sources_own_precision(compiled):
    report = compiled(backends=["ort"], precisions=["fp32", "int8"], calibration=ROWS[:2])
    assert [record.outcome for record in report.candidates] == ["chosen", "failed", "failed", "failed"]


def test_a_device_allows_reduced_precisions_what_they_need(backends, compiled):
    """Also where the largest outputs are not among the golden vectors, which are every so many rows."""
    rows = np.random.default_rng(2).normal(size=(640, 4)).astype(np.float32)
    rows[1] *= 1000
    for zeros in (False, True):
        if zeros:
            rows[np.arange(640) != 1] = 0
        report = compiled(backends.does("p", "int8", shift="0.5"), precisions=["int8"], calibration=rows)
        with load(report.path) as session:
            found = check_golden(session, repeats=1)
        assert found.passed, found.detail
        assert found.max_abs_error == pytest.approx(0.5)
    report = compiled(*scaled(backends, "1"), precisions=["int8"], calibration=rows)
    assert report.candidates[0].parity is not None
    assert report.candidates[0].parity.of_max == 0.01  # another machine may compute in another way


def test_replaying_a_choice_of_a_backend_that_was_added(backends, compiled, tmp_path):
    offers = [backends.does("p"), backends.does("p", "int8")]
    first = compiled(*offers, goals=["l2<=0.1"])
    (tmp_path / "m.orb").rename(tmp_path / "first.orb")
    again = compiled(*offers, goals=["l2<=0.1"], replay_from=tmp_path / "first.orb")
    assert again.sha256 == first.sha256
    assert isinstance(again.candidates[0], CandidateRecord)
