"""What hardware a bundle is compiled for, and whether an artifact may run there.

A `Target` describes hardware, never one machine: instruction set, features, libc, memory.
`admit` is pure; detection of the present machine lives in `outrider.runtime.probe`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Arch = Literal["x86_64", "aarch64", "armv7", "riscv64", "wasm32"]
LibcKind = Literal["glibc", "musl"]


class Libc(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A C library and its version, for example glibc 2.17."""

    kind: LibcKind
    version: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.kind} {self.version[0]}.{self.version[1]}"


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hardware to compile for, or that a device has.

    `features` are instruction-set extensions by their usual lower-case names (`avx2`, `avx512vbmi`,
    `neon`, `v`). `libc` is None where unknown or absent. Sizes are bytes.
    """

    name: str
    arch: Arch
    triple: str
    features: tuple[str, ...] = ()
    libc: Libc | None = None
    memory_bytes: int | None = None
    accelerators: tuple[str, ...] = ()


class Requirements(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one artifact needs of the machine that runs it.

    `arch` None: any (an ONNX file). `libc` None: none needed.
    """

    arch: Arch | None = None
    features: tuple[str, ...] = ()
    libc: Libc | None = None
    memory_bytes: int = 0


RefusalCode = Literal["arch", "isa", "libc", "memory", "disk", "engine", "abi", "schema"]


class Refusal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine-readable reason why an artifact is not admitted."""

    code: RefusalCode
    needed: str
    found: str

    def __str__(self) -> str:
        return f"{self.code}: needs {self.needed}, found {self.found}"


def refuse(needs: Requirements, target: Target) -> Refusal | None:
    """The first reason why `target` cannot run an artifact with these needs, or None where it can."""
    if needs.arch is not None and needs.arch != target.arch:
        return Refusal(code="arch", needed=needs.arch, found=target.arch)
    missing = [feature for feature in needs.features if feature not in target.features]
    if missing:
        return Refusal(code="isa", needed=" ".join(missing), found=" ".join(target.features) or "none")
    if needs.libc is not None:
        found = target.libc
        if found is None or found.kind != needs.libc.kind or found.version < needs.libc.version:
            return Refusal(code="libc", needed=str(needs.libc), found=str(found or "none"))
    if target.memory_bytes is not None and needs.memory_bytes > target.memory_bytes:
        return Refusal(code="memory", needed=f"{needs.memory_bytes} B", found=f"{target.memory_bytes} B")
    return None
