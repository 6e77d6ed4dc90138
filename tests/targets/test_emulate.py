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
from outrider.runtime.target import Libc, Target
from outrider.targets import boards, emulate, get_target
from outrider.targets.emulate import run_native
from outrider.targets.toolchain import build_shared

Array = np.ndarray
Build = Callable[[Target], bytes]
NATIVE = [name for name, board in boards().items() if board.emulator is not None]


@pytest.mark.system
@pytest.mark.parametrize("name", ["host", *NATIVE])
def test_an_artifact_runs(
    name: str,
    build: Build,
    entry: ArtifactEntry,
    signature: Signature,
    inputs: dict[str, Array],
    expected: Array,
    require_board: Callable[[str], Target],
) -> None:
    target = require_board(name)
    outputs = run_native(entry, build(target), inputs, target, signature)
    assert list(outputs) == ["y"]
    np.testing.assert_allclose(outputs["y"], expected, rtol=1e-15)


@pytest.mark.system
def test_failures_are_engine_faults(
    build: Build,
    entry: ArtifactEntry,
    signature: Signature,
    inputs: dict[str, Array],
    require_board: Callable[[str], Target],
    tmp_path: Path,
) -> None:
    target = require_board("host")
    with pytest.raises(EngineFault, match="outrider_run returned 3"):
        run_native(entry, build(target), inputs | {"a": np.zeros((3, 2), np.int64)}, target, signature)
    with pytest.raises(EngineFault, match="dlopen"):
        run_native(entry, b"no library", inputs, target, signature)
    crash = (
        '#include "native_abi.h"\nuint32_t outrider_abi(void) { return 1; }\n'
        "size_t outrider_workspace(int64_t n) { return 0; }\n"
        "int32_t outrider_run(const void *const *i, void *const *o, int64_t n, void *w) { __builtin_trap(); }"
    )
    with pytest.raises(EngineFault, match="status -"):
        run_native(entry, build_shared({"x.c": crash}, tmp_path / "x.so", target), inputs, target, signature)
    with pytest.raises(BadDataError):
        run_native(entry, b"", {name: array[:0] for name, array in inputs.items()}, target, signature)


def test_a_missing_emulator_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = "riscv64" if host_target().arch != "riscv64" else "aarch64"
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ToolchainError, match="qemu-user-static, and libc6-"):
        emulate.emulator_command(get_target(foreign))
    assert emulate.emulator_command(msgspec.structs.replace(get_target("host"), name="here")) == ()


def test_the_emulated_cpu_has_what_the_artifact_needs_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(Path, "is_dir", lambda path: True)
    monkeypatch.setattr(emulate, "host_target", lambda: get_target("wasm32-wasi"))
    for name in NATIVE:
        emulator, target = boards()[name].emulator, get_target(name)
        assert emulator is not None
        program, *options = emulate.emulator_command(target, target.features)
        assert program == f"/usr/bin/{emulator.program}-static"
        assert options == ["-cpu", emulator.cpu, "-L", emulator.glibc.path]
        for feature, cpu in emulator.cpus.items():
            assert feature not in target.features
            assert emulate.emulator_command(target, (*target.features, feature))[2] == cpu
        musl = msgspec.structs.replace(target, libc=Libc(kind="musl", version=(1, 2)))
        assert emulate.emulator_command(musl)[-1] == emulator.musl.path
        with pytest.raises(ToolchainError, match="plays no CPU that has wings"):
            emulate.emulator_command(target, (*target.features, "wings"))
    with pytest.raises(ToolchainError, match="an engine runs its artifacts"):
        emulate.emulator_command(get_target("wasm32-wasi"))


def test_a_failure_of_the_emulator_is_no_fault_of_the_artifact(tmp_path: Path) -> None:
    program = tmp_path / "qemu-arm-static"
    program.write_text(
        f"#!/bin/sh\necho '{program.name}: translate.c:213: f: Assertion `x != NULL` failed.' >&2\nexit 139\n"
    )
    program.chmod(0o755)
    with pytest.raises(ToolchainError, match="the emulator of armv7 failed"):
        emulate._run([str(program)], b"", get_target("armv7"))
