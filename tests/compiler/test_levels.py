"""Levels of instruction sets: a loop that the compiler turns into vectors runs where they are, and only there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outrider.compiler.trees.kernels import BASELINE, ISA_LEVELS, IsaLevel
from outrider.runtime.bundle import ArtifactEntry, Signature, TensorSpec
from outrider.runtime.engines import ENGINES, open_engine
from outrider.runtime.errors import EngineFault
from outrider.runtime.probe import cpu_features
from outrider.runtime.target import Requirements, Target
from outrider.targets import Board, boards, get_target
from outrider.targets.emulate import run_native
from outrider.targets.toolchain import build_shared

Array = np.ndarray

# y = x > 3 ? x ^ 5 : x + 7, and z = w + w in vectors of four floats.
SOURCE = """
#include "native_abi.h"
typedef float four __attribute__((vector_size(16), aligned(4)));
uint32_t outrider_abi(void) { return OUTRIDER_ABI; }
size_t outrider_workspace(int64_t batch) { return 0; }
int32_t outrider_run(const void *const *inputs, void *const *outputs, int64_t batch, void *workspace) {
    const int32_t *restrict x = inputs[0];
    const four *w = inputs[1];
    int32_t *restrict y = outputs[0];
    four *z = outputs[1];
    for (int64_t i = 0; i < batch; i++) y[i] = x[i] > 3 ? x[i] ^ 5 : x[i] + 7;
    for (int64_t i = 0; i < batch; i++) z[i] = w[i] + w[i];
    return 0;
}
"""
SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="x", dtype="int32", shape=(None,)),
        TensorSpec(name="w", dtype="float32", shape=(None, 4)),
    ),
    outputs=(
        TensorSpec(name="y", dtype="int32", shape=(None,)),
        TensorSpec(name="z", dtype="float32", shape=(None, 4)),
    ),
    predict="y",
)
X = np.arange(-50, 51, dtype=np.int32)
W = np.full((len(X), 4), 1e-40, np.float32)
INPUTS = {"x": X, "w": W}
Y = np.where(X > 3, X ^ 5, X + 7)


def board_for(level: IsaLevel) -> Board:
    return next(board for board in boards().values() if board.arch == level.arch)


def build(board: Board, level: IsaLevel, folder: Path) -> bytes:
    return build_shared({"x.c": SOURCE}, folder / "x", get_target(board.name), level.flags)


def entry(kind: str, *features: str) -> ArtifactEntry:
    return ArtifactEntry(
        **{"path": "artifacts/x/model", "size": 0, "sha256": "0" * 64, "candidate": "x"},
        **{"format": kind, "abi": 1, "engine": kind, "package": None, "triple": None},
        needs=Requirements(features=features),
        inputs=("x", "w"),
        outputs=("y", "z"),
    )


@pytest.fixture
def emulated(require_tool: Callable[[str], str]) -> Callable[[IsaLevel], tuple[Board, Target]]:
    def find(level: IsaLevel) -> tuple[Board, Target]:
        board = board_for(level)
        assert board.emulator is not None
        require_tool(f"{board.emulator.program}-static")
        return board, get_target(board.name)

    return find


FOREIGN = [
    name
    for name, level in ISA_LEVELS.items()
    if level.arch not in (None, "wasm32", get_target("host").arch)
    and (emulator := board_for(level).emulator) is not None
    and set(level.features) & set(emulator.cpus)
]


@pytest.mark.system
@pytest.mark.parametrize("name", FOREIGN)
def test_a_level_runs_where_its_instructions_are_and_the_baseline_has_none_of_them(
    name: str, emulated: Any, tmp_path: Path
) -> None:
    level = ISA_LEVELS[name]
    board, target = emulated(level)
    high, low = (build(board, one, tmp_path) for one in (level, ISA_LEVELS[BASELINE]))
    everywhere, there = entry("native", *board.features), entry("native", *board.features, *level.features)
    for library, needs in ((high, there), (low, there), (low, everywhere)):
        found = run_native(needs, library, INPUTS, target, SIGNATURE)
        assert found["y"].tolist() == Y.tolist()
        assert library is high or np.array_equal(found["z"], W + W)
    with pytest.raises(EngineFault, match="status -4"):  # SIGILL
        run_native(everywhere, high, INPUTS, target, SIGNATURE)


@pytest.mark.system
@pytest.mark.parametrize("name", FOREIGN)
def test_only_vectors_of_32_bit_arm_flush_subnormals(name: str, emulated: Any, tmp_path: Path) -> None:
    """Why a kernel must not add floats in vectors there: elsewhere twice 1e-40 is 2e-40."""
    level = ISA_LEVELS[name]
    board, target = emulated(level)
    library = build(board, level, tmp_path)
    needs = entry("native", *board.features, *level.features)
    found = run_native(needs, library, INPUTS, target, SIGNATURE)["z"]
    assert np.array_equal(found, np.zeros_like(W) if name == "armv7-neon" else W + W)


def test_wasm_without_and_with_simd(tmp_path: Path) -> None:
    import wasmtime

    level = ISA_LEVELS["wasm32-simd128"]
    board = board_for(level)
    modules = [build(board, one, tmp_path) for one in (ISA_LEVELS[BASELINE], level)]
    for module in modules:
        with closing(open_engine(entry("wasm"), module, SIGNATURE)) as engine:
            found = engine.run(INPUTS)
            assert found["y"].tolist() == Y.tolist()
            assert np.array_equal(found["z"], W + W)
    config = wasmtime.Config()
    config.wasm_simd = config.wasm_relaxed_simd = False
    bare = wasmtime.Engine(config)
    wasmtime.Module(bare, modules[0])
    with pytest.raises(wasmtime.WasmtimeError, match="SIMD support is not enabled"):
        wasmtime.Module(bare, modules[1])


CPUINFO = {
    "x86_64": "flags : avx avx2 bmi1 bmi2 f16c fma abm movbe avx512f avx512bw avx512cd avx512dq avx512vl avx512vbmi "
    "avx512_vbmi2 cx16 popcnt pni ssse3 sse4_1 sse4_2 avx512_vnni avx512_bitalg avx512_vpopcntdq gfni\n",
    "aarch64": "Features : fp asimd evtstrm aes atomics asimddp sve sve2\n",
    "armv7": "Features : half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm\n",
    "riscv64": "isa : rv64imafdcv_zicsr_zifencei_zba_zbb\n",
}


def test_levels_and_boards_are_named_as_machines_name_their_features() -> None:
    known = {arch: set(cpu_features(arch, text)) for arch, text in CPUINFO.items()}  # type: ignore[arg-type]
    known["wasm32"] = set(ENGINES["wasm"].features)
    for level in ISA_LEVELS.values():
        assert level.arch is None or set(level.features) <= known[level.arch]
    for board in boards().values():
        assert set(board.features) - {"sse", "sse2"} <= known[board.arch]
