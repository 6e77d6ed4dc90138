"""Python of another architecture: it is fetched once, runs artifacts of any format, and says what it lacks."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from outrider.runtime.bundle import ArtifactEntry, Signature
from outrider.runtime.errors import EngineFault, ToolchainError, UnavailableError
from outrider.runtime.probe import host_target
from outrider.runtime.target import Target
from outrider.targets import get_target
from outrider.targets.emulation import EmulatedPython, debian, python, ready, run_artifact, wheels
from outrider.targets.emulation.__main__ import main

Array = np.ndarray
PYTHON = Path("/usr/bin/python3.11")


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache."""
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Target:
    """A target that is foreign on whatever machine."""
    monkeypatch.setattr(python, "host_target", lambda: get_target("riscv64"))
    monkeypatch.setattr(python, "find_emulator", lambda emulator: f"/usr/bin/{emulator.program}")
    return get_target("aarch64")


@pytest.mark.system
@pytest.mark.parametrize("name", ["host", "aarch64", "armv7"])
def test_an_artifact_runs_in_the_runtime_itself(
    name: str,
    build: Callable[[Target], bytes],
    entry: ArtifactEntry,
    signature: Signature,
    inputs: dict[str, Array],
    expected: Array,
    emulated_python: Callable[..., EmulatedPython],
) -> None:
    target = emulated_python(name).target
    outputs = run_artifact(entry, build(target), signature, inputs, target)
    assert list(outputs) == ["y"]
    np.testing.assert_allclose(outputs["y"], expected, rtol=1e-15)


def test_what_the_engine_says_comes_back(entry: ArtifactEntry, signature: Signature, inputs: dict[str, Array]) -> None:
    with pytest.raises(EngineFault, match=r"EngineFault: .*cannot be loaded"):
        run_artifact(entry, b"no library", signature, inputs, get_target("host"))


@pytest.mark.system
@pytest.mark.parametrize(("name", "machine"), [("aarch64", "aarch64"), ("armv7", "armv7l")])
def test_it_is_another_machine(name: str, machine: str, emulated_python: Callable[..., EmulatedPython]) -> None:
    said = emulated_python(name).run(["-c", "import platform, outrider.runtime.session; print(platform.machine())"])
    assert said == f"{machine}\n"


@pytest.mark.system
def test_programs_that_fail(emulated_python: Callable[..., EmulatedPython]) -> None:
    emulated = emulated_python("aarch64")
    with pytest.raises(EngineFault, match="status 3: oh dear"):
        emulated.run(["-c", "import sys; sys.stderr.write('oh dear'); sys.exit(3)"])
    with pytest.raises(EngineFault, match="did not finish within"):
        emulated.run(["-c", "import time; time.sleep(60)"], timeout_s=0.5)


def test_what_can_be_made_ready() -> None:
    if host_target().arch != "riscv64":
        with pytest.raises(ToolchainError, match=r"no emulated Python for riscv64|qemu-riscv64 is not installed"):
            ready(get_target("riscv64"))
    with pytest.raises(ToolchainError, match="no programs for wasm32-wasi"):
        ready(get_target("wasm32-wasi"))


def test_without_qemu(monkeypatch: pytest.MonkeyPatch, foreign: Target, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(python, "find_emulator", lambda emulator: None)
    with pytest.raises(ToolchainError, match="qemu-user-static"):
        ready(foreign)
    assert main(["aarch64"]) == 70
    assert capsys.readouterr().err.startswith("aarch64: qemu-aarch64 is not installed")


def test_without_apt(monkeypatch: pytest.MonkeyPatch, foreign: Target, cache: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ToolchainError, match="apt-get is not installed"):
        ready(foreign)
    assert not list((cache / "emulation").iterdir()), "nothing half made is left behind"


def test_a_mirror_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, foreign: Target, cache: Path) -> None:
    calls: list[Sequence[str]] = []

    def fails(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return subprocess.CompletedProcess(command, 100, "", "E: no route")

    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("subprocess.run", fails)
    with pytest.raises(UnavailableError, match="apt-get failed with status 100: E: no route"):
        ready(foreign)
    assert ["update" in command for command in calls] == [True, False], "of many indexes one may fail"


def test_a_registry_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def fails(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "looking\nERROR: No matching distribution")

    monkeypatch.setattr("subprocess.run", fails)
    with pytest.raises(UnavailableError, match="for aarch64: ERROR: No matching distribution"):
        wheels.wheel_folder("surely-not", "aarch64", PYTHON)
    with pytest.raises(ToolchainError, match="no wheels for riscv64"):
        wheels.wheel_folder("surely-not", "riscv64", PYTHON)


def test_a_wheel_is_fetched_once_in_the_version_that_is_here(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    calls: list[list[str]] = []

    def download(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        import zipfile

        calls.append(command)
        wheel = Path(command[command.index("--dest") + 1], "numpy.whl")
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("numpy/__init__.py", "")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("subprocess.run", download)
    folders = {wheels.wheel_folder("numpy", "aarch64", PYTHON) for _ in range(2)}
    assert len(calls) == len(folders) == 1
    assert calls[0][-1] == f"numpy=={np.__version__}"
    assert folders.pop().joinpath("numpy/__init__.py").is_file()


def test_what_two_processes_make_at_once(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "thing"

    def make(folder: Path) -> None:
        (folder / "made").mkdir()
        (folder / "made" / "mine").touch()
        if not target.exists():
            target.mkdir()
            (target / "theirs").touch()

    debian.publish(target, make, "made")
    assert [path.name for path in target.iterdir()] == ["theirs"]
    assert list(target.parent.iterdir()) == [target]


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match="set OUTRIDER_CACHE"):
        debian.publish(tmp_path / "file" / "thing", lambda folder: None, "made")


def test_a_format_that_needs_no_package(entry: ArtifactEntry) -> None:
    """Unknown formats fail in the runtime, which says so."""
    signature = Signature(inputs=(), outputs=(), predict="y")
    unknown = msgspec.structs.replace(entry, format="other", inputs=(), outputs=())
    with pytest.raises(EngineFault, match="EngineMissingError: no engine runs"):
        run_artifact(unknown, b"", signature, {}, get_target("host"))
