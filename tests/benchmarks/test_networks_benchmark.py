"""The benchmark of compiled networks: what its figures are made of, and one tiny run of it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from benchmarks.networks import peaks, run
from benchmarks.networks.children import Child, Failed
from benchmarks.networks.goals import OURS, OURS_FP32, best_peer, goals
from benchmarks.networks.peaks import measure_peaks
from benchmarks.networks.peers import PEERS, NotSupported, installed_bytes, is_ours, peer
from benchmarks.networks.plot import plot
from benchmarks.networks.records import Candidate, Cell, Entry, Machine, NetInfo, Peak, PeerInfo, Result
from benchmarks.networks.report import markdown
from benchmarks.networks.run import Plan, close_enough, relative_error
from benchmarks.networks.timing import Contender, race
from benchmarks.shared.rounds import MIN_ROUNDS

ROOT = Path(__file__).parents[2]


def _result(net: str = "tiny", base: float | None = None, **times: float) -> Result:
    """A result of one net with these CPU times, ms, by contender (underscores for dashes)."""
    names = [name.replace("_", "-") for name in times]
    return Result(
        date="2026-01-31",
        quick=False,
        interrupted=False,
        minutes=1.0,
        machine=Machine(cpu="A CPU", cores=2, memory_gb=8, features=("avx2",), system="Linux", python="3.11"),
        peaks=(Peak(name="fp32", gops=100.0), Peak(name="int8", gops=None, reason="the CPU has no instruction for it")),
        peers=tuple(PeerInfo(name=name, version="1.0", call="f(x)") for name in names),
        nets=(NetInfo(name=net, description="a net", flops=10_000_000, onnx_bytes=1000, base_accuracy=base),),
        entries=tuple(
            Entry(net=net, peer=name, precision="int8" if "int8" in name else "fp32", status="measured", error=0.0)
            for name in names
        ),
        cells=tuple(
            Cell(net=net, peer=name, cpu_min=ms, cpu_p50=ms, rounds=5, wall_p50=ms, wall_p99=ms, calls=100)
            for name, ms in zip(names, times.values(), strict=True)
        ),
    )


def _with(result: Result, name: str, **changes: Any) -> Result:
    """The result with one contender's entry changed."""
    entries = (msgspec.structs.replace(one, **changes) if one.peer == name else one for one in result.entries)
    return msgspec.structs.replace(result, entries=tuple(entries))


def _goals(result: Result) -> dict[str, tuple[str, bool | None]]:
    return {one.text: (one.measured, one.met) for one in goals(result)}


def _contender(*costs_ms: float) -> Contender:
    turns = itertools.cycle(int(cost * 1e6) for cost in costs_ms)
    return Contender(
        loop=lambda count: next(turns) * count,
        calls=lambda count: [next(turns) for _ in range(count)],
    )


# Racing --------------------------------------------------------------------------------------------------------


def test_a_race_gives_the_times_of_a_call() -> None:
    found, lost = race({"x": _contender(0.5), "y": _contender(2)}, limit_s=5)
    assert found["x"].cpu_min == found["x"].wall_p99 == pytest.approx(0.5)
    assert found["y"].cpu_p50 == found["y"].wall_p50 == pytest.approx(2)
    assert found["x"].rounds > MIN_ROUNDS
    assert found["x"].calls >= 500
    assert lost == {}


def test_a_slow_contender_sits_out_and_the_others_go_on() -> None:
    found, _ = race({"slow": _contender(3000), "quick": _contender(0.1)}, limit_s=1)
    assert found["slow"].rounds == found["slow"].calls == MIN_ROUNDS
    assert found["quick"].rounds > MIN_ROUNDS


def test_a_contender_that_crashes_on_the_way_leaves_the_others_alone() -> None:
    left = iter(range(4))

    def loop(count: int) -> int:
        if next(left, None) is None:
            raise Failed("it was ended by SIGSEGV")
        return 1_000_000 * count

    found, lost = race({"x": Contender(loop=loop, calls=lambda count: []), "y": _contender(1)}, limit_s=1)
    assert set(found) == {"y"}
    assert lost == {"x": "it was ended by SIGSEGV"}


def test_a_worker_that_dies_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    with Child(["race", "no-such-peer"], 60) as child, pytest.raises(Failed, match="TypeError: _race"):
        child.answer()
    with Child(["make"], 0.01) as child, pytest.raises(Failed, match="no answer within"):
        child.answer()


# Peaks and peers -----------------------------------------------------------------------------------------------


@pytest.mark.system
def test_the_peaks_are_measured_or_say_why_not() -> None:
    found = {one.name: one for one in measure_peaks(("fp32", "int8", "no-such"))}
    assert found["no-such"].reason == "the CPU has no instruction for it"
    for one in found.values():
        assert (one.gops is None) == bool(one.reason)
    rates = [found[kind].gops for kind in ("fp32", "int8")]
    if None not in rates:
        assert 0 < (rates[0] or 0) < (rates[1] or 0)


def test_without_a_compiler_there_is_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "_compiler", lambda: None)
    assert [one.gops for one in measure_peaks()] == [None, None, None]


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_says_what_it_is(name: str) -> None:
    rival = peer(name)
    assert rival.call
    assert rival.modules
    assert rival.version() is None or rival.packages[0] in str(rival.version())
    assert is_ours(name) == ("outrider" in rival.packages)
    assert ("int8" in name) == (rival.precision == "int8")


def test_litert_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.networks.peers import Order

    monkeypatch.delenv("OUTRIDER_LITERT_PYTHON", raising=False)
    monkeypatch.setattr("benchmarks.networks.peers.litert.find_spec", lambda name: None)
    order = Order(net="x", onnx="", calibration="", shapes={}, folder="", has_module=False, has_labels=False)
    with pytest.raises(NotSupported, match="ONNX file only"):
        peer("litert").export(order)
    with pytest.raises(NotSupported, match="OUTRIDER_LITERT_PYTHON names no Python"):
        peer("litert").export(msgspec.structs.replace(order, has_module=True))


def test_the_size_of_a_distribution() -> None:
    assert (installed_bytes("onnx") or 0) > 2**20
    assert installed_bytes("no-such-distribution") is None


# Outputs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "wanted", "error"),
    [
        ([[1.0, 2.0]], [[1.0, 2.0]], 0.0),
        ([[1.0, 2.5]], [[1.0, -2.0]], 2.25),
        ([[[1.0], [2.0]]], [[1.0, 2.0]], 0.0),
        ([[1.0, float("nan")]], [[1.0, 2.0]], float("inf")),
        ([[1.0]], [[1.0, 2.0]], float("inf")),
        ([], [[1.0]], float("inf")),
    ],
)
def test_the_error_is_by_the_largest_output(found: Any, wanted: Any, error: float) -> None:
    arrays = [[np.array(one) for one in side] for side in (found, wanted)]
    assert relative_error(*arrays) == pytest.approx(error)


def test_int8_may_lose_one_point_of_accuracy() -> None:
    entry = Entry(net="digits", peer="x", precision="int8", status="measured", error=0.3, accuracy=0.985)
    assert close_enough(entry, 0.99)
    assert not close_enough(msgspec.structs.replace(entry, accuracy=0.97), 0.99)
    assert close_enough(msgspec.structs.replace(entry, accuracy=None), None)
    assert not close_enough(msgspec.structs.replace(entry, precision="fp32"), 0.99)


# Goals ---------------------------------------------------------------------------------------------------------


def test_the_fp32_goal_is_against_the_best_backend() -> None:
    result = _result(outrider_fp32=1.0, onnxruntime=0.98, litert=0.5, openvino_int8=0.2)
    assert _goals(result)["tiny: fp32 at least 0.97 of the best backend run by hand"] == ("0.98x onnxruntime", True)
    slow = _result(outrider_fp32=1.0, openvino=0.9)
    assert _goals(slow)["tiny: fp32 at least 0.97 of the best backend run by hand"] == ("0.90x openvino", False)


def test_a_peer_that_is_wrong_is_no_rival_and_ours_misses() -> None:
    result = _with(_result(outrider_fp32=1.0, onnxruntime=2.0, openvino=0.5), "openvino", status="differs")
    rival = best_peer(result, "tiny")
    assert rival is not None
    assert rival.peer == "onnxruntime"
    assert "Too far from torch to be of use, so no rivals: openvino" in markdown(result)
    failed = _with(result, OURS_FP32, status="failed", detail="it was ended by SIGSEGV")
    measured, met = _goals(failed)["tiny: fp32 at least 0.97 of the best backend run by hand"]
    assert (measured, met) == ("failed: it was ended by SIGSEGV", False)


def test_the_int8_goals() -> None:
    wanted = "mbv2: int8 at least 2 times as fast as the best fp32"
    assert _goals(_result("mbv2", outrider=2.5, litert=5.0))[wanted] == ("2.00x litert", True)
    assert _goals(_result("mbv2", outrider=2.6, litert=5.0))[wanted] == ("1.92x litert", False)
    digits = "digits: within one point of accuracy, at least as fast as the best peer's int8"
    result = _result("digits", 0.99, outrider=1.0, openvino_int8=0.9, onnxruntime_int8=1.1, onnxruntime=0.1)
    assert _goals(result)[digits] == ("0.90x openvino-int8", False)
    assert _goals(_with(result, "openvino-int8", status="differs"))[digits] == ("1.10x onnxruntime-int8", True)
    assert digits not in _goals(_result(outrider=1.0))


def _candidate(backend: str, ms: float | None, precision: str = "fp32") -> Candidate:
    return Candidate(
        id=f"{backend}-{precision}",
        backend=backend,
        precision=precision,
        outcome="rejected",
        reason="untuned, not eligible",
        size=1,
        ms_min=ms,
        error=None,
    )


def test_the_goals_of_tvm_are_of_the_compile_s_own_measurements() -> None:
    result = _result(outrider_fp32=1.0, onnxruntime=1.0)
    wanted = "tiny: tuned TVM within 1.2 times of ONNX Runtime fp32"
    assert _goals(result)[wanted] == ("no TVM candidate was measured", None)
    untuned = (_candidate("tvm", None), _candidate("ort", 1.0))
    assert _goals(_with(result, OURS_FP32, candidates=untuned))[wanted] == ("untuned, not eligible", None)
    tuned = (_candidate("tvm", 1.25), _candidate("ort", 1.0), _candidate("ort", 0.5, "int8"))
    assert _goals(_with(result, OURS_FP32, candidates=tuned))[wanted] == ("1.25x", False)


def test_the_goals_of_costs() -> None:
    result = _with(_result(outrider=1.0), OURS, make_s=61.0, cached_s=1.9, overhead_us=5.04)
    found = _goals(result)
    assert found["tiny: a compile in at most 60 s"] == ("61.0 s", False)
    assert found["tiny: the same again in at most 2 s"] == ("1.9 s", True)
    assert found["a session adds at most 5 us to its engine's own call"] == ("5.0 us at most, on tiny", True)


# The report ----------------------------------------------------------------------------------------------------


def test_the_report_says_goals_figures_and_every_candidate() -> None:
    result = _result(outrider=0.2, outrider_fp32=0.25, onnxruntime=0.5, ncnn=1.0)
    result = _with(result, OURS, candidates=(_candidate("ort", 0.2), _candidate("tvm", None)), make_s=3.0)
    result = _with(result, "ncnn", status="unsupported", detail="ncnn lacks aten::x")
    text = markdown(result, image="x.png")
    assert "![Ratio to the best peer](x.png)" in text
    assert "2.50x (onnxruntime)" in text
    assert "| tvm-fp32  |" in text
    assert "compiled in 3.0 s" in text
    assert "Not in it: ncnn: ncnn lacks aten::x." in text
    assert "10.0 million operations" in text
    assert "40%" in text  # 10 million operations in 0.25 ms are 40 billion a second, of 100
    assert "fp32 100; int8: the CPU has no instruction for it" in text
    assert "Not all peers took part: without onnxruntime-int8, openvino" in text


def test_an_interrupted_run_and_a_skipped_net_say_so() -> None:
    result = _result(outrider=1.0)
    skipped = NetInfo(name="pnet", description="", skipped="no registry answers")
    text = markdown(msgspec.structs.replace(result, interrupted=True, nets=(*result.nets, skipped)))
    assert "interrupted" in text
    assert "Skipped: no registry answers" in text


def test_the_plot_is_a_png() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install -e '.[bench]'")
    image = plot(_result(outrider=1.0, outrider_fp32=1.2, onnxruntime=2.0))
    assert image is not None
    assert image.startswith(b"\x89PNG")
    assert plot(_result(outrider=1.0)) is None


# Runs ----------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Result] = []
    peak = (Peak(name="fp32", gops=1.0),)

    def measured(name: str, plan: Plan, tell: Any) -> run._Found:
        if name == "mbv2" and not saved[-1].minutes:
            raise KeyboardInterrupt
        return run._Found(nets=[NetInfo(name=name, description="")])

    monkeypatch.setattr(run, "_run_net", measured)
    monkeypatch.setattr(run, "measure_peaks", lambda: peak)
    plan = Plan(nets=["tiny", "digits", "mbv2"], peers=[], limit_s=1, patience_s=1)
    stopped = run.run(plan, lambda what, over: None, saved.append)
    assert stopped.interrupted
    assert [info.name for info in stopped.nets] == ["tiny", "digits"]
    monkeypatch.setattr(run, "measure_peaks", lambda: pytest.fail("the peaks are known"))
    saved.append(msgspec.structs.replace(stopped, minutes=5.0))
    whole = run.run(plan, lambda what, over: None, saved.append, saved[-1])
    assert not whole.interrupted
    assert [info.name for info in whole.nets] == ["tiny", "digits", "mbv2"]
    assert whole.peaks == peak
    assert whole.minutes == 5.0


@pytest.mark.system
def test_a_tiny_run(tmp_path: Path, require_net: Any) -> None:
    """Two contenders and one that does not take the net or is not there, end to end, in processes of their own."""
    require_net("tiny")
    command = [sys.executable, "-m", "benchmarks.networks", "--quick", "--nets", "tiny", "--limit", "0.2"]
    command += ["--peers", "outrider-fp32", "onnxruntime", "litert"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "a.json"), "--out", str(tmp_path)],
        cwd=ROOT,
        env={**_environment(), "OUTRIDER_LITERT_PYTHON": "/no/such/python"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = msgspec.convert(json.loads((tmp_path / "a.json").read_text()), Result)
    assert {one.peer for one in result.cells} == {"outrider-fp32", "onnxruntime"}
    entries = {one.peer: one for one in result.entries}
    assert entries["litert"].status in ("unsupported", "failed", "absent")
    assert entries["litert"].detail
    ours = entries["outrider-fp32"]
    assert ours.error is not None
    assert ours.error < 1e-5
    assert ours.rss_mb
    assert ours.overhead_us is not None
    assert any(one.outcome == "chosen" for one in ours.candidates)
    assert "## Goals" in done.stdout
    assert [path.suffix for path in tmp_path.glob("*.md")] == [".md"]


def _environment() -> dict[str, str]:
    import os

    return dict(os.environ)
