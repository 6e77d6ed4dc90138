"""Artifacts for foreign targets give, under emulation, what they give at home."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from outrider.runtime.bundle import ArtifactEntry, Signature
from outrider.runtime.errors import BadDataError, EngineFault, ToolchainError
from outrider.runtime.probe import host_target
from outrider.runtime.target import Target
from outrider.targets import boards, emulate, get_target
from outrider.targets.emulate import run_native
from outrider.targets.toolchain import build_shared

Build = Callable[[Target], bytes]
INPUTS = {
    "a": np.array([[100_000_000_007, 3], [-(10**15), 7], [5, -2]], np.int64),
    "x": np.array([0.5, 1.0, -700.0]),
}


@pytest.fixture
def require_board(require_tool: Callable[[str], str]) -> Callable[[str], Target]:
    """A target that can be run here; skips where QEMU or the C library is missing (see `require_tool`)."""

    def find(name: str) -> Target:
        target = get_target(name)
        if target.arch != host_target().arch:
            emulator = boards()[name].emulator
            if emulate.find_emulator(emulator) is None:
                require_tool(f"{emulator.program}-static")
            if not Path(emulator.sysroot).is_dir():
                require_tool(emulator.package)
        return target

    return find


@pytest.mark.system
@pytest.mark.parametrize("name", ["host", *boards()])
def test_an_artifact_runs(
    name: str, build: Build, entry: ArtifactEntry, signature: Signature, require_board: Callable[[str], Target]
) -> None:
    target = require_board(name)
    outputs = run_native(entry, build(target), INPUTS, target, signature)
    assert list(outputs) == ["y"]
    expected = np.array([33333333335.0, -142857142857142.0, -2.0]) + np.exp(INPUTS["x"])
    np.testing.assert_allclose(outputs["y"], expected, rtol=1e-15)


@pytest.mark.system
def test_failures_are_engine_faults(
    build: Build,
    entry: ArtifactEntry,
    signature: Signature,
    require_board: Callable[[str], Target],
    tmp_path: Path,
) -> None:
    target = require_board("host")
    with pytest.raises(EngineFault, match="outrider_run returned 3"):
        run_native(entry, build(target), INPUTS | {"a": np.zeros((3, 2), np.int64)}, target, signature)
    with pytest.raises(EngineFault, match="dlopen"):
        run_native(entry, b"no library", INPUTS, target, signature)
    crash = (
        '#include "native_abi.h"\nuint32_t outrider_abi(void) { return 1; }\n'
        "size_t outrider_workspace(int64_t n) { return 0; }\n"
        "int32_t outrider_run(const void *const *i, void *const *o, int64_t n, void *w) { __builtin_trap(); }"
    )
    with pytest.raises(EngineFault, match="status -"):
        run_native(entry, build_shared({"x.c": crash}, tmp_path / "x.so", target), INPUTS, target, signature)
    with pytest.raises(BadDataError):
        run_native(entry, b"", {name: array[:0] for name, array in INPUTS.items()}, target, signature)


def test_a_missing_emulator_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = "riscv64" if host_target().arch != "riscv64" else "aarch64"
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ToolchainError, match="apt install qemu-user-static libc6-"):
        emulate.emulator_command(get_target(foreign))
    assert emulate.emulator_command(msgspec.structs.replace(get_target("host"), name="here")) == ()
