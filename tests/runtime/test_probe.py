"""The present machine as a target."""

from __future__ import annotations

from pathlib import Path

import msgspec
import psutil
import pytest

from outrider.runtime import probe
from outrider.runtime.errors import UnsupportedError
from outrider.runtime.target import Libc, Target


def test_this_machine() -> None:
    target = probe.host_target()
    assert target.name == "host"
    assert target.libc is not None
    assert target.memory_bytes is not None
    assert 0 < target.memory_bytes <= psutil.virtual_memory().total
    assert target.triple.startswith({"armv7": "arm"}.get(target.arch, target.arch))


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert probe.main([]) == 0
    assert msgspec.json.decode(capsys.readouterr().out, type=Target) == probe.host_target()


def test_x86_features() -> None:
    shared = "sse sse2 pni ssse3 sse4_1 sse4_2 cx16 popcnt avx avx2 bmi1 bmi2 f16c fma abm movbe avx512_vnni avx512vbmi"
    one_core = f"processor : 0\nflags\t\t: fpu {shared} avx512f avx512_vbmi2 amx_tile avx_vnni\n"
    text = f"{one_core}vmx flags : vnmi\nprocessor : 1\nflags : {shared}\n"
    found = probe.cpu_features("x86_64", text)
    assert {"sse3", "lzcnt", "avx512vnni", "avx512vbmi", "x86-64-v2", "x86-64-v3"} <= set(found)
    assert not {"avx512f", "fpu", "x86-64-v4", "pni"} & set(found), "only what every core has"
    one = probe.cpu_features("x86_64", one_core)
    assert {"avx512vbmi2", "amxtile", "avxvnni"} <= set(one)
    assert probe.cpu_features("x86_64", "flags : sse sse2 avx2") == ("avx2", "sse", "sse2")


def test_other_features() -> None:
    assert probe.cpu_features("aarch64", "Features\t: fp asimd asimddp atomics i8mm\n") == (
        "dotprod", "fp", "i8mm", "lse", "neon",
    )  # fmt: skip
    assert "neon" in probe.cpu_features("armv7", "Features : half thumb vfpv3 neon vfpv4\n")
    assert probe.cpu_features("riscv64", "isa : rv64imafdcv_zba_zicsr\n") == (
        "a", "c", "d", "f", "i", "m", "v", "zba", "zicsr",
    )  # fmt: skip
    assert probe.cpu_features("x86_64", "") == ()


@pytest.mark.parametrize(
    ("machine", "bits", "arch"),
    [
        ("x86_64", 64, "x86_64"),
        ("AMD64", 64, "x86_64"),
        ("aarch64", 64, "aarch64"),
        ("aarch64", 32, "armv7"),
        ("armv7l", 32, "armv7"),
        ("armv8l", 32, "armv7"),
        ("riscv64", 64, "riscv64"),
    ],
)
def test_architectures(machine: str, bits: int, arch: str) -> None:
    assert probe._arch(machine, bits) == arch


@pytest.mark.parametrize(("machine", "bits"), [("x86_64", 32), ("s390x", 64), ("armv6l", 32)])
def test_unknown_architectures(machine: str, bits: int) -> None:
    with pytest.raises(UnsupportedError, match=machine):
        probe._arch(machine, bits)


@pytest.mark.parametrize("name", ["ld-musl-x86_64.so.1", "libc.so"])
def test_a_machine_with_musl(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = tmp_path / name
    loader.write_text(
        "#!/bin/sh\nprintf 'musl libc (x86_64)\\nVersion 1.2.3\\nDynamic Program Loader\\n' >&2; exit 1\n"
    )
    loader.chmod(0o755)
    maps = tmp_path / "maps"
    maps.write_text(
        f"7f-7f r-xp 0 fd:0 1  /usr/bin/python3\n7f-7f r-xp 0 fd:0 2  {loader}\n7f-7f rw-p 0 0:0 0  [stack]\n"
    )
    monkeypatch.setattr(probe, "MAPS", maps)
    monkeypatch.setattr("os.confstr", lambda name: None)
    target = probe.host_target.__wrapped__()
    assert target.libc == Libc(kind="musl", version=(1, 2))
    assert "-linux-musl" in target.triple
    loader.write_text("#!/bin/sh\necho another libc >&2\n")
    assert probe.host_target.__wrapped__().libc is None
    maps.write_text("7f-7f r-xp 0 fd:0 2  /lib/libc.so.6\n")
    assert probe.host_target.__wrapped__().libc is None


def test_limits_and_files_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "CGROUP_LIMIT", tmp_path / "memory.max")
    monkeypatch.setattr(probe, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "memory.max").write_text("1048576\n")
    target = probe.host_target.__wrapped__()
    assert (target.memory_bytes, target.features) == (1048576, ())
    (tmp_path / "memory.max").write_text("max\n")
    assert probe.host_target.__wrapped__().memory_bytes == psutil.virtual_memory().total
