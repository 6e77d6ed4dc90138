"""What the present machine is, as a `Target`: read from the kernel and the C library."""

from __future__ import annotations

import functools
import os
import platform
import re
import struct
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from outrider.runtime.arguments import Parser
from outrider.runtime.errors import EXIT_OK, UnsupportedError
from outrider.runtime.output import as_json
from outrider.runtime.target import Arch, Libc, Target

CPUINFO = Path("/proc/cpuinfo")
MAPS = Path("/proc/self/maps")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")

_X86_RENAMED = {"pni": "sse3", "abm": "lzcnt"}
_X86_KNOWN = frozenset(
    (
        *("sse", "sse2", "sse3", "ssse3", "sse4_1", "sse4_2", "popcnt", "cx16"),
        *("avx", "avx2", "avxvnni", "bmi1", "bmi2", "f16c", "fma", "gfni", "lzcnt", "movbe"),
        *("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
        *("avx512ifma", "avx512vbmi", "avx512vbmi2", "avx512vnni", "avx512bitalg", "avx512vpopcntdq"),
        *("avx512bf16", "avx512fp16", "amxtile", "amxint8", "amxbf16"),
    )
)
_X86_LEVELS = (
    ("x86-64-v2", frozenset(("cx16", "popcnt", "sse3", "ssse3", "sse4_1", "sse4_2"))),
    ("x86-64-v3", frozenset(("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe"))),
    ("x86-64-v4", frozenset(("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"))),
)
_ARM_RENAMED = {"asimd": "neon", "asimddp": "dotprod", "asimdhp": "fp16", "atomics": "lse"}
_TRIPLES: dict[Arch, str] = {
    "x86_64": "x86_64-linux-{}",
    "aarch64": "aarch64-linux-{}",
    "armv7": "arm-linux-{}eabihf",
    "riscv64": "riscv64-linux-{}",
}


@functools.cache
def host_target() -> Target:
    """This machine. Memory is what this process may use: the machine's, or its control group's limit if lower.

    Raises UnsupportedError for an architecture that Outrider does not know.
    """
    import psutil

    arch = _arch(platform.machine(), struct.calcsize("P") * 8)
    libc = _libc()
    try:
        features = cpu_features(arch, CPUINFO.read_text(errors="replace"))
    except OSError:
        features = ()
    abi = "musl" if libc is not None and libc.kind == "musl" else "gnu"
    return Target(
        name="host",
        arch=arch,
        triple=_TRIPLES[arch].format(abi),
        features=features,
        libc=libc,
        memory_bytes=min(psutil.virtual_memory().total, _memory_limit()),
    )


def cpu_features(arch: Arch, cpuinfo: str) -> tuple[str, ...]:
    """The instruction-set extensions in the text of /proc/cpuinfo, by their usual names, sorted.

    x86-64 levels (`x86-64-v2` …) are added where all of a level's extensions are there.
    """
    if arch == "x86_64":
        words = _words(cpuinfo, "flags")
        renamed = {_X86_RENAMED.get(word) or re.sub(r"^(avx512|avx|amx)_", r"\1", word) for word in words}
        found = renamed & _X86_KNOWN
        return tuple(sorted(found | set(_levels(found))))
    if arch in ("aarch64", "armv7"):
        found = {_ARM_RENAMED.get(word, word) for word in _words(cpuinfo, "Features")}
        return tuple(sorted(found))
    if arch == "riscv64":
        return tuple(sorted(_riscv_extensions(_words(cpuinfo, "isa"))))
    return ()


def _levels(found: set[str]) -> Iterable[str]:
    for level, needed in _X86_LEVELS:
        if not needed <= found:
            return
        yield level


def _words(cpuinfo: str, key: str) -> set[str]:
    """The words after `key` that all cores share: an artifact may run on any of them."""
    lines = re.findall(rf"^{key}[ \t]*:(.*)$", cpuinfo, re.MULTILINE)
    return set.intersection(*(set(line.split()) for line in lines)) if lines else set()


def _riscv_extensions(isa: set[str]) -> Iterable[str]:
    """`rv64imafdcv_zba_zbb` -> i m a f d c v zba zbb."""
    for text in isa:
        base, *named = text.lower().split("_")
        yield from base.removeprefix("rv64")
        yield from named


def _arch(machine: str, bits: int) -> Arch:
    """The architecture of this process; a 32-bit one on a 64-bit ARM kernel is armv7."""
    name = machine.lower()
    if name in ("x86_64", "amd64") and bits == 64:
        return "x86_64"
    if name in ("aarch64", "arm64"):
        return "aarch64" if bits == 64 else "armv7"
    if name in ("armv7l", "armv8l"):
        return "armv7"
    if name == "riscv64":
        return "riscv64"
    raise UnsupportedError(f"this machine is {machine} with {bits} bits, which is not supported")


def _libc() -> Libc | None:
    """The C library that this process runs on."""
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError, AttributeError):
        text = ""
    match = re.fullmatch(r"glibc (\d+)\.(\d+).*", text)
    if match:
        return Libc(kind="glibc", version=(int(match[1]), int(match[2])))
    return _musl()


def _musl() -> Libc | None:
    """musl states its version only when its loader is run without arguments.

    The loader is the library itself: a file of either name, and a link of the other (Alpine; the reverse in OpenWrt).
    """
    try:
        loader = re.search(r"(/\S*/(?:ld-musl-\S+|libc\.so))$", MAPS.read_text(), re.MULTILINE)
        if loader is None:
            return None
        banner = subprocess.run([loader[1]], capture_output=True, text=True, timeout=5, check=False).stderr
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.match(r"musl libc .*\nVersion (\d+)\.(\d+)", banner)
    return Libc(kind="musl", version=(int(match[1]), int(match[2]))) if match else None


def _memory_limit() -> int:
    try:
        return int(CGROUP_LIMIT.read_text())
    except (OSError, ValueError):  # absent, or the word "max"
        return 1 << 62


def main(argv: Sequence[str]) -> int:
    """`outrider probe`: print this machine as a target, in JSON."""
    parser = Parser(prog="outrider probe", description="Describe this machine as a target, in JSON.")
    parser.parse_args(argv)
    print(as_json(host_target()))
    return EXIT_OK
