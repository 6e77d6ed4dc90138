"""ONNX's conformance suite: a sample of it on every backend, and the document that is made of all of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from outrider.compiler.conformance import PLAIN, CaseResult, Results, Verdict, case_names, examine, find_case, groups
from outrider.compiler.conformance.__main__ import main
from outrider.compiler.conformance.page import make_page
from outrider.compiler.conformance.results import read_results, write_results
from outrider.compiler.conformance.survey import sample_names, survey
from outrider.compiler.conformance.trial import brief
from outrider.compiler.workshop import Workshop
from outrider.runtime.errors import BadInputError, NotFoundError, ToolchainError, UsageError

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "benchmarks/results/onnx-conformance.json", ROOT / "docs/operators.md"
SAMPLES = {"ort": 60, "openvino": 60, "ncnn": 20, "tvm": 2}  # tests, fewer where each takes longer
PACKAGES = {"ort": ("onnxruntime",), "openvino": ("openvino",), "ncnn": ("ncnn", "pnnx"), "tvm": ("tvm", "ziglang")}


@pytest.mark.parametrize("backend", SAMPLES)
def test_a_sample(backend: str, require_package: Callable[[str], None]) -> None:
    """Nothing is wrong unnoticed, or ends otherwise than with a reason, and what the document says passes, does."""
    for package in PACKAGES[backend]:
        require_package(package)
    found = survey(sample_names(SAMPLES[backend], seed=7), [backend], whole=False)
    stored = {case.name: case for case in read_results(RESULTS).cases}
    for case in found.cases:
        told = case.name, case.verdicts
        if case.outcome(PLAIN) == "passed":
            assert case.outcome(backend) in ("passed", "refused", "differs"), told
            assert case.outcome(backend) == "passed" or backend != "ort" or "not a tensor" in str(told), told
        if case.name in stored and backend in read_results(RESULTS).backends:
            expected = stored[case.name].outcome(backend)
            assert expected != "passed" or case.outcome(backend) == "passed", (told, "make conformance makes it anew")


def test_the_document_is_made_of_the_results() -> None:
    assert PAGE.read_text(encoding="utf-8") == make_page(read_results(RESULTS))


def test_the_results_hold_the_whole_suite() -> None:
    """At the floor: what ONNX Runtime itself passes passes by `ort`, but for what no bundle can hold."""
    results = read_results(RESULTS)
    assert len(results.cases) > 2000
    assert {case.group for case in results.cases if not case.operator} == {
        group for group in groups() if "/" not in group
    }
    below = [one for one in results.cases if one.outcome(PLAIN) == "passed" != one.outcome("ort")]
    assert below
    for case in below:
        assert case.verdicts["ort"].outcome == "refused", case
        reason = case.verdicts["ort"].reason
        assert "not a tensor" in reason or "no inputs" in reason, case


@pytest.mark.parametrize("group", ["node/relu", "node/ai_onnx_ml.binarizer", "simple"])
def test_cases_of_a_group(group: str) -> None:
    names = case_names(group)
    assert names == tuple(sorted(names))
    case = find_case(group, names[0])
    assert case.model.graph.node
    assert case.data
    assert case.operator == {"node/relu": "Relu", "node/ai_onnx_ml.binarizer": "ai.onnx.ml.Binarizer"}.get(group, "")


def test_a_function_in_the_place_of_an_operator_counts_for_it() -> None:
    assert find_case("node/relu", "test_relu_expanded_ver18").operator == "Relu"


def test_cases_that_there_are_not() -> None:
    for group, name in (("node/relu", "test_other"), ("node/other", "x"), ("other", "x"), ("simple", "../simple")):
        with pytest.raises(NotFoundError):
            find_case(group, name)


@pytest.mark.parametrize("backend", [PLAIN, "ort"])
def test_wrong_numbers_are_found(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = find_case("node/relu", "test_relu")
    wanted = case.data[0].outputs[0]

    def trial(expected: Any) -> Verdict:
        data = (type(case.data[0])(case.data[0].inputs, (expected,)),)
        changed = type(case)(case.name, case.group, case.operator, case.model, data, case.rtol, case.atol)
        monkeypatch.setattr("outrider.compiler.conformance.trial.find_case", lambda group, name: changed)
        return examine(case.group, case.name, backend, whole=False)

    assert trial(wanted).outcome == "passed"
    off = wanted.copy()
    off.flat[0] += 1
    assert trial(off) == Verdict(outcome="wrong", reason=f"output 0 is off in 1 of {off.size} values")
    assert "shape" in trial(wanted[:1]).reason
    assert trial(wanted.astype(np.float64)).reason == "output 0 is float32, not float64"


def test_by_compile_and_load() -> None:
    assert examine("node/relu", "test_relu", "ort", whole=True) == Verdict(outcome="passed")
    refused = examine("node/identity", "test_identity_sequence", "ort", whole=True)
    assert refused.outcome == "refused"
    assert "not a tensor" in refused.reason


def test_a_crash_is_one_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Workshop.call

    def crashing(self: Workshop, function: str, *arguments: Any, seconds: float) -> Any:
        if "ort" in arguments and "test_relu" in arguments:
            raise ToolchainError("its process died of SIGSEGV: /some/where/file.cc gave up")
        return call(self, function, *arguments, seconds=seconds)

    monkeypatch.setattr(Workshop, "call", crashing)
    found = survey([("node/relu", name) for name in case_names("node/relu")], ["ort"], whole=False)
    assert found.cases[0].verdicts == {
        "ort": Verdict(outcome="failed", reason="its process died of SIGSEGV: file.cc gave up")
    }
    assert found.cases[1].verdicts == {}


def test_a_survey_goes_on(tmp_path: Path) -> None:
    journal, lines = tmp_path / "deep" / "x.journal", []
    names = [("node/relu", "test_relu")]
    survey(names, ["ort"], whole=False, journal=journal, progress=lines.append)
    assert lines == ["1 of 1: test_relu"]
    journal.write_bytes(journal.read_bytes() + b'{"name":"cut sho')
    again = survey(names, ["ort"], whole=False, journal=journal, progress=lines.append)
    assert again.cases == (CaseResult(name="test_relu", group="node/relu", operator="Relu"),)
    assert len(lines) == 1


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, page = tmp_path / "r.json", tmp_path / "page.md"
    arguments = ["--results", str(results), "--page", str(page), "--direct", "--sample", "1", "--backends", "ort"]
    assert main(arguments) == 0
    first = read_results(results)
    assert "| ort |" in page.read_text()
    assert "1 of 1" in capsys.readouterr().err
    page.unlink()
    assert main([*arguments[:4], "--page-only"]) == 0
    assert page.read_text() == make_page(first)
    assert main([*arguments, "--keep"]) == 0
    assert read_results(results) == msgspec.structs.replace(first, date=read_results(results).date)
    with pytest.raises(UsageError, match="no backend 'native'"):
        main([*arguments[:-1], "native"])


def test_results_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_results(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"date": 1}')
    with pytest.raises(BadInputError, match="no results"):
        read_results(tmp_path / "x.json")


def test_a_page_of_everything(tmp_path: Path) -> None:
    def case(name: str, operator: str, **verdicts: Verdict) -> CaseResult:
        return CaseResult(name=name, group="node/x" if operator else "simple", operator=operator, verdicts=verdicts)

    refused = Verdict(outcome="refused", reason="'q' is | odd")
    results = Results(
        date="2026-01-02",
        versions={"onnx": "9"},
        backends=("ort", "ncnn"),
        whole=True,
        cases=(
            case("test_a", "Add"),
            case("test_b", "Add", ort=refused, ncnn=Verdict(outcome="wrong", reason="off")),
            case("test_c", "ai.onnx.ml.Scaler", onnxruntime=Verdict(outcome="failed"), ort=refused, ncnn=refused),
            case("test_d", ""),
        ),
    )
    page = make_page(results)
    for line in (
        "| of 4 tests | onnxruntime | ort | ncnn |",
        "| Add | 2/2 | 1/2 | 1/2 |",
        "| ai.onnx.ml.Scaler | - | - | - |",
        "| simple | 1/1 | 1/1 | 1/1 |",
        "| refused: … is \\| odd | 1 | test_b |",
        "| test_b | ncnn | wrong: off | passed |",
    ):
        assert line in page.splitlines()
    write_results(tmp_path / "r.json", results)
    assert read_results(tmp_path / "r.json") == results


def test_reasons_are_the_same_on_every_machine() -> None:
    assert brief("pnnx failed on /a/b/tmp12ab34cd/m.onnx:\nSum_12345678") == "pnnx failed on m.onnx"
    assert brief("cannot run Sum_12345678 (float_16)") == "cannot run Sum (float_16)"
    assert len(brief("x" * 500)) == 140
