"""The benchmark of compiled forests: what its figures are made of, and one tiny run of it."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from benchmarks.shared.begin import Tell
from benchmarks.shared.machine import describe, file_name
from benchmarks.shared.report import table
from benchmarks.shared.rounds import MIN_ROUNDS
from benchmarks.trees import run
from benchmarks.trees.models import SHAPES, Spec, random_spec, specs
from benchmarks.trees.peers import PEERS, is_ours, peer
from benchmarks.trees.plot import plot
from benchmarks.trees.ratios import GOALS, GOALS_AVX2, best_rival, goal, ratios, worst
from benchmarks.trees.records import CaseInfo, Cell, Entry, Machine, PeerInfo, Result
from benchmarks.trees.report import markdown
from benchmarks.trees.run import Plan, compare
from benchmarks.trees.timing import race

ROOT = Path(__file__).parents[2]
_CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8488C @ 2.40GHz
flags\t\t: fpu avx2 avx512f avx512vbmi hypervisor

processor\t: 1
"""


def _result(**times: dict[int, float]) -> Result:
    """A result of one case, `a`, with these times by peer (underscores for dashes) and batch."""
    names = [name.replace("_", "-") for name in times]
    return Result(
        date="2026-01-31",
        quick=False,
        interrupted=False,
        minutes=1.0,
        machine=Machine(cpu="A CPU", cores=2, memory_gb=8, features=("avx2",), system="Linux", python="3.11"),
        peers=tuple(PeerInfo(name=name, version="1.0", call="f(x)") for name in names),
        cases=(CaseInfo(name="a", shape="a", description="a model"),),
        entries=tuple(Entry(case="a", peer=name, status="measured", error=0.0) for name in names),
        cells=tuple(
            Cell(case="a", peer=name, batch=batch, ns_min=ns, ns_median=ns * 1.1, rounds=5)
            for name, cells in zip(names, times.values(), strict=True)
            for batch, ns in cells.items()
        ),
    )


class _Clock:
    """A clock that a contender sets forward: its cost in ns for each call, in turn."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def contender(self, *costs: int) -> Any:
        turns = itertools.cycle(costs)

        def predict(rows: Any) -> None:
            self.now += next(turns) * len(rows)

        return predict


def test_a_race_gives_the_time_of_a_row() -> None:
    clock = _Clock()
    rows = np.zeros((256, 3), np.float32)
    found = race({"x": clock.contender(50), "y": clock.contender(200)}, rows, 64, limit_s=1, clock=clock)
    assert found["x"].ns_min == pytest.approx(50)
    assert found["y"].ns_median == pytest.approx(200)
    assert found["x"].rounds == found["y"].rounds > MIN_ROUNDS


def test_a_slow_contender_sits_out_and_the_others_go_on() -> None:
    clock = _Clock()
    rows = np.zeros((4, 3), np.float32)
    slow, quick = clock.contender(2_000_000_000), clock.contender(1000)
    found = race({"slow": slow, "quick": quick}, rows, 1, limit_s=1, clock=clock)
    assert found["slow"].rounds == MIN_ROUNDS
    assert found["quick"].rounds > MIN_ROUNDS


def test_a_noisy_contender_is_timed_until_its_share_is_spent() -> None:
    clock = _Clock()
    rows = np.zeros((1, 3), np.float32)
    falling = clock.contender(*range(400_000_000, 4_000_000, -9_000_000))
    found = race({"x": falling}, rows, 1, limit_s=2, clock=clock)
    assert MIN_ROUNDS < found["x"].rounds < 40
    assert found["x"].ns_min < found["x"].ns_median


def test_batches_are_of_different_rows_of_the_right_number() -> None:
    seen: set[float] = set()
    rows = np.arange(1000, dtype=np.float32).reshape(-1, 1)
    clock = _Clock()

    def predict(batch: Any) -> None:
        clock.now += 1_000_000
        assert batch.shape == (64, 1)
        assert batch.flags.c_contiguous
        seen.add(float(batch[0, 0]))

    race({"x": predict}, rows, 64, limit_s=1, clock=clock)
    assert seen == {float(64 * i) for i in range(15)}


def test_a_goal_holds_from_its_batch_size_on() -> None:
    assert [goal(GOALS, "c", batch) for batch in (1, 63, 64, 1024, 65_536)] == [18, 18, 10, 9.5, 9.5]
    assert [goal(GOALS_AVX2, "a", batch) for batch in (1, 1024)] == [None, 4]
    assert goal(GOALS, "large", 1) is None


def test_the_ratio_is_to_the_fastest_peer_of_the_cell() -> None:
    result = _result(outrider={1: 10, 64: 2}, outrider_avx2={1: 1, 64: 1}, x={1: 300, 64: 30}, y={1: 200, 64: 40})
    found = ratios(result)
    assert [(ratio.batch, ratio.value, ratio.rival, ratio.met) for ratio in found] == [
        (1, 20.0, "y", False),
        (64, 15.0, "x", True),
    ]


def test_a_peer_with_wrong_results_is_no_rival() -> None:
    result = _result(outrider={1: 10}, x={1: 100}, y={1: 200})
    wrong = tuple(
        msgspec.structs.replace(entry, status="differs", error=0.5) if entry.peer == "x" else entry
        for entry in result.entries
    )
    result = msgspec.structs.replace(result, entries=wrong)
    rival = best_rival(result, "a", 1)
    assert rival is not None
    assert rival.peer == "y"
    assert "wrong, so no rival: off by 0.5" in markdown(result)


def test_wrong_results_of_our_own_count_for_nothing() -> None:
    result = _result(outrider={1: 10}, x={1: 100})
    wrong = tuple(msgspec.structs.replace(entry, status="differs") for entry in result.entries)
    result = msgspec.structs.replace(result, entries=wrong)
    assert ratios(result) == []
    assert "Outrider failed, and its goals are not met, on: a (outrider: wrong results)" in markdown(result)


def test_no_rival_no_ratio() -> None:
    result = _result(outrider={1: 10})
    assert ratios(result) == []
    assert plot(result) is None
    assert "Model a" in markdown(result)


def test_the_worst_of_a_shape() -> None:
    found = ratios(_result(outrider={1: 10, 64: 10}, x={1: 300, 64: 200}))
    assert [ratio.value for ratio in worst([*found, *found])] == [30, 20]


@pytest.mark.parametrize(
    ("found", "wanted", "error", "close"),
    [
        ([[0.25, 0.75]], [0.75], 0.0, True),
        ([[[0.75]]], [[0.25, 0.75]], 0.0, True),
        ([0.1] * 200, [0.1] * 199 + [0.9], 0.8, True),
        ([0.1] * 10, [0.1] * 9 + [0.9], 0.8, False),
        ([float("nan")], [0.5], float("nan"), False),
    ],
)
def test_results_are_compared_in_any_form(found: Any, wanted: Any, error: float, close: bool) -> None:
    assert compare(found, wanted) == (pytest.approx(error, nan_ok=True), close)


def test_the_report_says_goals_and_figures() -> None:
    text = markdown(_result(outrider={1: 10, 1024: 1.5}, xgboost={1: 300, 1024: 15}))
    assert "30.0x (xgboost), meets 25x" in text
    assert "10.0x (xgboost), **misses** 14x" in text
    assert "1 of 2 goals met." in text
    assert "Not all peers took part: without lightgbm, onnxruntime" in text
    assert "1.5 (1.7)" in text


def test_an_interrupted_run_and_a_skipped_case_say_so() -> None:
    result = _result(outrider={1: 10}, xgboost={1: 300})
    skipped = CaseInfo(name="card", shape="real", description="", skipped="no registry answers")
    result = msgspec.structs.replace(result, interrupted=True, cases=(*result.cases, skipped))
    assert "interrupted" in markdown(result)
    assert "Skipped: no registry answers" in markdown(result)


def test_tables_are_aligned() -> None:
    assert table(["a", "b"], [["xx", "1"], ["y", "22"]]).splitlines() == [
        "| a  |  b |",
        "| -- | -: |",
        "| xx |  1 |",
        "| y  | 22 |",
    ]


@pytest.mark.parametrize("path", sorted(ROOT.glob("benchmarks/results/*.md")), ids=lambda path: path.stem)
def test_the_tables_of_stored_reports_come_out_the_same(path: Path) -> None:
    blocks = [block.splitlines() for block in path.read_text("utf-8").split("\n\n") if block.startswith("| ")]
    assert blocks
    for lines in blocks:
        head, _, *rows = ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines)
        assert table(head, rows).splitlines() == lines


def test_the_plot_is_a_png() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install -e '.[bench]'")
    image = plot(_result(outrider={1: 10, 64: 1}, x={1: 300, 64: 20}))
    assert image is not None
    assert image.startswith(b"\x89PNG")


def test_a_machine_is_described_without_its_name() -> None:
    machine = describe(_CPUINFO, memory_bytes=8 << 30, cores=2)
    assert machine.cpu == "Intel(R) Xeon(R) Platinum 8488C @ 2.40GHz (family 6, model 143)"
    assert machine.features == ("avx2", "avx512f", "avx512vbmi")
    assert file_name(machine, "2026-01-31") == "2026-01-31-intel-r-xeon-r-platinum-8488c"
    assert os.uname().nodename not in msgspec.json.encode(machine).decode() or len(os.uname().nodename) < 4


def test_random_models_vary_and_repeat() -> None:
    for shape in SHAPES:
        made = [random_spec(shape, seed) for seed in range(1, 11)]
        assert made == [random_spec(shape, seed) for seed in range(1, 11)]
        assert len({spec.recipe for spec in made}) == 10
        assert {spec.trees for spec in made} == {SHAPES[shape].trees}
    assert [spec.name for spec in specs(["b", "card"], 2)] == ["b", "b1", "b2", "card"]
    assert specs(["e3"], 2) == [random_spec("e", 3)]
    for wrong in ("f", "b0x", "x3", ""):
        with pytest.raises(KeyError):
            specs([wrong], 0)


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_says_what_it_is(name: str) -> None:
    rival = peer(name)
    assert rival.call
    assert rival.modules
    assert rival.version() is None or rival.packages[0] in str(rival.version())
    assert is_ours(name) == ("outrider" in rival.packages)


@pytest.mark.system
def test_a_tiny_run(tmp_path: Path) -> None:
    """Two contenders and one that is not installed or does not take the model, end to end, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.trees", "--models", "a", "--random", "0", "--batches", "1", "64"]
    command += ["--limit", "0.2", "--peers", "outrider", "xgboost", "lightgbm"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "a.json"), "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = msgspec.convert(json.loads((tmp_path / "a.json").read_text()), Result)
    assert {(cell.peer, cell.batch) for cell in result.cells} == {
        (name, batch) for name in ("outrider", "xgboost") for batch in (1, 64)
    }
    entries = {entry.peer: entry for entry in result.entries}
    assert entries["outrider"].status == entries["xgboost"].status == "measured"
    assert entries["lightgbm"].status in ("unsupported", "absent")
    ours = entries["outrider"]
    assert ours.artifact_bytes
    assert ours.compile_peak_mb
    assert ours.import_mb
    assert "Times as fast as the best peer" in done.stdout
    assert [path.suffix for path in tmp_path.glob("*.md")] == [".md"]


def test_a_run_goes_on_where_it_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Result] = []

    def measured(spec: Spec, plan: Plan, tell: Tell) -> run._Found:
        if spec.name == "b" and not saved[-1].minutes:
            raise KeyboardInterrupt
        info = CaseInfo(name=spec.name, shape=spec.shape, description="")
        cell = Cell(case=spec.name, peer="x", batch=1, ns_min=1, ns_median=1, rounds=3)
        return run._Found(cases=[info], cells=[cell])

    monkeypatch.setattr(run, "_run_case", measured)
    plan = Plan(specs=specs(["a", "b"], 1), peers=[], batches=[1], limit_s=1, patience_s=1)
    stopped = run.run(plan, lambda what, races: None, saved.append)
    assert stopped.interrupted
    assert [case.name for case in stopped.cases] == ["a", "a1"] == [cell.case for cell in stopped.cells]
    saved.append(msgspec.structs.replace(stopped, minutes=5.0))
    whole = run.run(plan, lambda what, races: None, saved.append, saved[-1])
    assert not whole.interrupted
    assert [case.name for case in whole.cases] == ["a", "a1", "b", "b1"]
    assert whole.minutes == 5.0


def test_spec_words() -> None:
    assert SHAPES["d"].description.endswith("10 categorical")
    assert isinstance(SHAPES["a"], Spec)
