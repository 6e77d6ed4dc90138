"""The table of kernels: a newcomer is one file and one line, the rule and the search choose, a fat bundle fits all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import xgboost

from outrider.compiler import compile_model
from outrider.compiler.backends import Candidate
from outrider.compiler.frontends import read_model
from outrider.compiler.trees import select
from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.kernels import BASELINE, ISA_LEVELS, KERNELS, kernel
from outrider.compiler.trees.select import Part, Plan
from outrider.runtime import load
from outrider.runtime.bundle import open_bundle
from outrider.runtime.golden import check_golden
from outrider.runtime.probe import host_target
from outrider.runtime.target import Target
from outrider.targets import get_target

NAMED = {"name": "fraud", "version": "1"}

# A kernel in one file: forests of stumps.
STUMPS = '''
import numpy as np
from outrider.compiler.trees.emit import array, header, sums
from outrider.compiler.trees.kernels import BASELINE, KernelSource

TEMPLATE = """
#pragma once
#include "finish.h"
#include "keys.h"
#include "stumps_tables.h"
static size_t stumps_workspace(int64_t batch) { (void)batch; return 0; }
static void stumps_run(const float *rows, float *results, int64_t batch, void *workspace) {
    const uint32_t *bits = (const uint32_t *)rows;
    (void)workspace;
    for (int64_t row = 0; row < batch; row++) {
        sum_t sum = START[0];
        for (int tree = 0; tree < TREES; tree++) {
            uint32_t x = bits[row * FEATURES + STUMPS_FEATURE[tree]];
            int right = is_missing(x) ? (int)STUMPS_MISSING[tree] : sort_key(x) >= STUMPS_BOUND[tree];
            sum += STUMPS_VALUES[2 * tree + right];
        }
        finish(&sum, results + row);
    }
}
"""


def values(tree):
    return tree.values[tree.payload[[tree.left[0], tree.right[0]]], 0]


class Stumps:
    name = "stumps"
    serves = frozenset(("row", "batch"))
    isa = BASELINE
    block = 1

    def refuses(self, forest):
        if any(tree.nodes != 3 or tree.categories for tree in forest.trees) or forest.columns_out != 1:
            return "it takes stumps only"
        return None

    def cost(self, forest):
        cycles = 2.0 * len(forest.trees)
        return {"row": cycles, "batch": cycles}

    def variants(self, forest, target):
        return [{}]

    def emit(self, forest, options):
        tables = header(
            "Stumps.",
            '#include "forest.h"',
            array("uint32_t", "STUMPS_FEATURE", np.array([tree.feature[0] for tree in forest.trees])),
            array("int32_t", "STUMPS_BOUND", np.array([tree.bound[0] for tree in forest.trees])),
            array("uint8_t", "STUMPS_MISSING", np.array([tree.missing_right[0] for tree in forest.trees])),
            sums("STUMPS_VALUES", np.array([values(tree) for tree in forest.trees]), forest),
        )
        files = {"stumps.h": TEMPLATE, "stumps_tables.h": tables}
        return KernelSource(files, "stumps.h", "stumps", 0, portable=self.isa == BASELINE)
'''


@pytest.fixture
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """One file, for a level, and one line in the table; of the others only the last, so that the test is quick."""
    monkeypatch.syspath_prepend(tmp_path)
    saved = dict(KERNELS)

    def add(level: str) -> None:
        module = f"newcomer_{level.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(STUMPS.replace("isa = BASELINE", f"isa = {level!r}"))
        KERNELS.clear()
        KERNELS.update({"stumps": f"{module}:Stumps", "k2": saved["k2"]})

    yield add
    KERNELS.clear()
    KERNELS.update(saved)


def boosted(table: Any, depth: int) -> xgboost.Booster:
    rows, target = table
    data = xgboost.DMatrix(rows, label=target > 0)
    return xgboost.train({"objective": "binary:logistic", "max_depth": depth}, data, 5)


@pytest.mark.parametrize("target", ["host", "aarch64"])
def test_a_kernel_is_one_file_and_one_line(table, newcomer, tmp_path, target):
    newcomer(BASELINE)
    report = compile_model(boosted(table, 1), target=target, out=tmp_path / "x.orb", **NAMED)
    assert "native-stumps" in {record.id for record in report.candidates}
    chosen = report.candidates[0]
    assert (chosen.outcome, chosen.rank) == ("chosen", 1)
    if target != "host":  # by the rule, not by a measurement
        assert chosen.id == "native-stumps"
    deeper = compile_model(boosted(table, 3), target=target, out=tmp_path / "y.orb", **NAMED)
    assert "stumps" not in deeper.candidates[0].id
    assert "k2" in deeper.candidates[0].id


def small(level: str) -> Target:
    """This machine with no more than a level's features."""
    host = host_target()
    features = (*get_target("x86-64").features, *ISA_LEVELS[level].features)
    return msgspec.structs.replace(host, features=tuple(f for f in host.features if f in features))


@pytest.mark.skipif(host_target().arch != "x86_64", reason="a bundle for x86-64 runs on x86-64 only")
def test_a_fat_bundle_gives_each_machine_the_first_artifact_that_it_can_run(table, tmp_path):
    rows, _ = table
    report = compile_model(boosted(table, 4), target="x86-64", out=tmp_path / "x.orb", calibration=rows, **NAMED)
    ranked = [record for record in report.candidates if record.rank is not None]
    assert [record.rank for record in ranked] == list(range(1, len(ranked) + 1))
    assert [record.outcome for record in ranked] == ["chosen"] + ["shipped"] * (len(ranked) - 1)
    manifest = open_bundle(report.path).manifest
    assert [artifact.candidate for artifact in manifest.artifacts] == [record.id for record in ranked]
    shipped = {record.options.get("isa", BASELINE): record.id for record in ranked}
    order = [name for name, level in ISA_LEVELS.items() if level.arch == "x86_64"]
    assert list(shipped) == order[: len(shipped)][::-1]
    for level in order:
        if not set(ISA_LEVELS[level].features) <= set(host_target().features):
            continue
        with load(report.path, target=small(level)) as session:
            best = next(isa for isa in shipped if order.index(isa) <= order.index(level))
            assert session.artifact.candidate == shipped[best]
            assert check_golden(session, repeats=1).passed
    again = compile_model(
        boosted(table, 4), target="x86-64", out=tmp_path / "y.orb", calibration=rows, replay_from=report.path, **NAMED
    )
    assert again.sha256 == report.sha256


def test_what_this_machine_cannot_verify_is_not_shipped(table, tmp_path, monkeypatch):
    from outrider.compiler import pipeline

    host = host_target()
    poor = msgspec.structs.replace(host, features=tuple(f for f in host.features if "avx" not in f and "v4" not in f))
    monkeypatch.setattr(pipeline, "_targets", lambda target: (get_target(target), poor))
    report = compile_model(boosted(table, 4), target="x86-64", out=tmp_path / "x.orb", **NAMED)
    for record in report.candidates:
        assert (record.rank is None) == ("avx512vbmi" in record.reason or record.outcome == "not eligible"), record


def test_a_level_of_wasm_is_verified_by_the_engine_or_left_out(table, newcomer, tmp_path, monkeypatch):
    newcomer("wasm32-simd128")
    booster = boosted(table, 1)
    report = compile_model(booster, target="wasm32-wasi", out=tmp_path / "x.orb", **NAMED)
    assert [(record.id, record.rank) for record in report.candidates if record.rank] == [
        ("native-stumps-wasm32-simd128", 1),
        ("native-k2-lanes8", 2),
    ]
    with load(report.path) as session:
        assert session.artifact.needs.features == ("lime1", "simd128")
        assert check_golden(session, repeats=1).passed
    monkeypatch.setattr("outrider.compiler.making.available", lambda kind: kind != "wasm")
    report = compile_model(booster, target="wasm32-wasi", out=tmp_path / "y.orb", **NAMED)
    reasons = {record.id: record.reason for record in report.candidates}
    assert "cannot be verified (engine: needs wasmtime, found not installed)" in reasons["native-stumps-wasm32-simd128"]
    assert "verified on the same sources" in reasons["native-k2-lanes8"]


class _Fake:
    """A kernel for the tests of the selection: no C, only what the rules look at."""

    def __init__(
        self,
        name: str,
        serves: str,
        isa: str,
        cycles: float,
        n: int = 1,
        *,
        block: int = 1,
        refused: bool = False,
    ) -> None:
        self.name, self.serves, self.isa, self.block = name, frozenset(serves.split()), isa, block
        self._cycles, self._options, self._refused = cycles, n, refused

    def refuses(self, forest: Forest) -> str | None:
        return "not this one" if self._refused else None

    def cost(self, forest: Forest) -> dict[str, float]:
        return dict.fromkeys(self.serves, self._cycles)

    def variants(self, forest: Forest, target: Target) -> list[dict[str, str]]:
        return [{"n": str(i)} for i in range(self._options)]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(*made: _Fake) -> Any:
        monkeypatch.setattr(select, "KERNELS", {one.name: "" for one in made})
        return {one.name: one for one in made}.__getitem__

    return use


@pytest.fixture
def payload(table: Any) -> Forest:
    found = read_model(boosted(table, 2)).payload
    assert isinstance(found, Forest)
    return found


V3, V4 = "x86-64-v3", "x86-64-v4-vbmi"


def test_the_rule_takes_the_cheapest_that_each_level_runs(fakes, payload):
    kernels = fakes(
        _Fake("refusing", "row batch", V4, 1, refused=True),
        _Fake("wide", "batch", V4, 10, 2, block=64),
        _Fake("half", "batch", V3, 30, block=32),
        _Fake("dear", "batch", V3, 31),
        _Fake("row", "row", V4, 40),
        _Fake("any", "row batch", "baseline", 100),
    )
    plans = select.rule(payload, get_target("x86-64"), kernels)
    assert [(plan.row.kernel, plan.batch.kernel, plan.isa, plan.crossover) for plan in plans] == [
        ("row", "wide", V4, 16),  # 64 rows of 10 cycles are 16 of 40
        ("any", "half", V3, 10),
        ("any", "any", "baseline", 0),
    ]
    assert plans[0].batch.options == (("n", "0"),)
    assert [plan.isa for plan in select.rule(payload, get_target("armv7"), kernels)] == ["baseline"]


def test_a_level_that_needs_nothing_takes_the_place_of_the_baseline(fakes, payload):
    kernels = fakes(
        _Fake("half", "batch", V3, 1),
        _Fake("quarter", "batch", "x86-64-v2", 2),
        _Fake("any", "row batch", "baseline", 9),
    )
    plans = select.rule(payload, get_target("x86-64"), kernels)
    assert [(plan.batch.kernel, plan.isa) for plan in plans] == [("half", V3), ("quarter", "x86-64-v2")]
    assert [plan.isa for plan in select.rule(payload, get_target("aarch64"), kernels)] == ["baseline"]


def test_the_rule_ships_no_kernel_to_another_architecture(fakes, payload):
    kernels = fakes(
        _Fake("rvv", "batch", "riscv64-v", 1),
        _Fake("neon", "row batch", "armv7-neon", 1),
        _Fake("wide", "batch", V4, 1),
        _Fake("simd", "batch", "wasm32-simd128", 1),
        _Fake("any", "row batch", "baseline", 9),
    )
    shipped = {
        name: [
            (plan.row.kernel, plan.batch.kernel, plan.isa) for plan in select.rule(payload, get_target(name), kernels)
        ]
        for name in ("aarch64", "armv7", "riscv64", "wasm32-wasi", "x86-64")
    }
    plain = ("any", "any", "baseline")
    assert shipped == {
        "aarch64": [plain],
        "armv7": [("neon", "neon", "armv7-neon"), plain],
        "riscv64": [("any", "rvv", "riscv64-v"), plain],
        "wasm32-wasi": [("any", "simd", "wasm32-simd128"), plain],
        "x86-64": [("any", "wide", V4), plain],
    }


def names(plans: Iterable[Plan]) -> list[tuple[str, str]]:
    return [(plan.row.kernel, plan.batch.kernel) for plan in plans]


def test_measured_is_what_costs_little_more_than_the_cheapest(fakes, payload):
    host = with_all(get_target("x86-64"))
    wide, row = _Fake("wide", "batch", V4, 100, 2, block=64), _Fake("row", "row", V4, 500)
    last = _Fake("any", "row batch", "baseline", 1000)
    close, far = _Fake("close", "batch", V3, 124), _Fake("far", "batch", V3, 130)
    (pair,) = select.first(payload, host, fakes(wide, row, far, last))
    assert (names([pair]), pair.crossover) == ([("row", "wide")], 13)
    alone = select.first(payload, host, fakes(wide, row, close, far, last))
    assert names(alone) == [("row", "row"), ("wide", "wide"), ("close", "close")]
    assert names(select.first(payload, get_target("x86-64"), fakes(wide, row, last))) == [("any", "any")]
    both = _Fake("both", "row batch", V4, 90, 3)
    assert names(select.first(payload, host, fakes(both, row, last))) == [("both", "both")]
    assert names(select.first(payload, host, fakes(both, wide, last))) == [("both", "both"), ("wide", "wide")]


def times(kernels: Callable[[str], Any], found: Mapping[str, Mapping[int, float]]) -> dict[Plan, Mapping[int, float]]:
    parts = {name: Part(name, (("n", "0"),)) for name in found}
    return {Plan(parts[name], parts[name], kernels(name).isa): value for name, value in found.items()}


def test_the_best_two_go_together_and_are_known_again(fakes, payload):
    kernels = fakes(
        _Fake("wide", "batch", V4, 1, 2),
        _Fake("slow", "batch", "baseline", 1, 3),
        _Fake("any", "row batch", "baseline", 1),
    )
    rich, sizes = with_all(get_target("x86-64")), (8, 16, 32, 64)
    found = {
        "wide": {**dict.fromkeys(sizes, 5.0), 8: 12.0, 1024: 5.0},
        "slow": dict.fromkeys((*sizes, 1024), 50.0),
        "any": dict.fromkeys((1, *sizes, 1024), 10.0),
    }
    pair = select.together(kernels, times(kernels, found))
    assert (pair.row.kernel, pair.batch.kernel, pair.batch.options) == ("any", "wide", (("n", "0"),))
    assert (pair.isa, pair.crossover) == (V4, 16)
    (other,) = select.variants(pair, payload, rich, kernels)
    assert (other.row, other.batch.options, other.crossover) == (pair.row, (("n", "1"),), 16)
    assert select.read_plan(pair.options()) == pair
    stored = dict(sorted(pair.options().items()))  # as a manifest keeps them
    assert select.recognise(stored, payload, rich, kernels) == pair
    changes = (
        {"crossover": "1"},
        {"crossover": "65"},
        {"crossover": ""},
        {"isa": "other"},
        {"batch": "other"},
        {"batch.n": "9"},
    )
    for change in changes:
        assert select.recognise({**stored, **change}, payload, rich, kernels) is None
    assert select.recognise(stored, payload, get_target("aarch64"), kernels) is None
    assert Candidate("native", options=pair.options()).id == f"native-any-n0-wide-n0-crossover16-{V4}"


def test_one_kernel_that_is_best_at_both_stays_alone(fakes, payload):
    kernels = fakes(_Fake("wide", "batch", V4, 1), _Fake("any", "row batch", "baseline", 1, 2))
    found = {"any": dict.fromkeys((1, 64, 1024), 9.5), "wide": dict.fromkeys((64, 1024), 9.9)}
    best = select.together(kernels, times(kernels, found))
    assert names([best]) == [("any", "any")]
    assert [plan.options() for plan in select.variants(best, payload, get_target("x86-64"), kernels)] == [
        {"kernel": "any", "n": "1"}
    ]


def with_all(target: Target) -> Target:
    return msgspec.structs.replace(
        target, features=(*target.features, *ISA_LEVELS[V3].features, *ISA_LEVELS[V4].features)
    )


def test_every_kernel_of_the_table_says_what_it_is():
    for name in KERNELS:
        made = kernel(name)
        assert made.name == name
        assert made.serves
        assert made.serves <= {"row", "batch"}
        assert made.isa in ISA_LEVELS
        assert made.block >= 1
    last = kernel(list(KERNELS)[-1])
    assert last.isa == "baseline"
    assert last.serves == {"row", "batch"}
