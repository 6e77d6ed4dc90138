"""What code is made for: a level of a target's instruction set, as LLVM and the schedules see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from outrider.runtime.errors import UnsupportedError
from outrider.runtime.target import Arch, Target

if TYPE_CHECKING:
    import tvm


@dataclass(frozen=True)
class Machine:
    """One instruction-set level.

    `features` are those of a Target that it takes. `triple`, `cpu`, `attributes` and `abi` are LLVM's words. `lanes`:
    float32 values in a vector; `registers`: vectors that there are. `cores`: how many a run may take; code for one has
    no parallel loops.
    """

    name: str
    arch: Arch
    features: tuple[str, ...]
    triple: str
    cpu: str
    lanes: int
    registers: int
    attributes: tuple[str, ...] = ()
    abi: str = ""
    cores: int = 1

    def target(self) -> tvm.target.Target:
        """The machine as TVM's target, for code and host alike."""
        import tvm

        made: dict[str, object] = {
            "kind": "llvm",
            "mtriple": self.triple,
            "mcpu": self.cpu,
            "num-cores": self.cores,
        }
        if self.attributes:
            made["mattr"] = list(self.attributes)
        if self.arch == "armv7":
            made["mfloat-abi"] = "hard"
        if self.abi:
            made["mabi"] = self.abi
        return tvm.target.Target(made, host=made)

    @property
    def key(self) -> str:
        """All that changes what a schedule is worth."""
        return " ".join((self.triple, self.cpu, *self.attributes, str(self.cores)))


_X86 = {"arch": "x86_64", "triple": "x86_64-linux-gnu"}
_ARM = {"arch": "aarch64", "triple": "aarch64-linux-gnu"}
_ARM32 = {"arch": "armv7", "triple": "armv7a-linux-gnueabihf"}
_RISCV = {"arch": "riscv64", "triple": "riscv64-linux-gnu"}

# From the least to the most of each architecture.
MACHINES: tuple[Machine, ...] = (
    Machine("x86-64-v2", features=("x86-64-v2",), cpu="x86-64-v2", lanes=4, registers=16, **_X86),  # type: ignore[arg-type]
    Machine("x86-64-v3", features=("x86-64-v3",), cpu="x86-64-v3", lanes=8, registers=16, **_X86),  # type: ignore[arg-type]
    Machine(
        "x86-64-v4",
        features=("x86-64-v3", "x86-64-v4"),
        cpu="x86-64-v4",
        attributes=("-prefer-256-bit",),  # which would halve the vectors
        lanes=16,
        registers=32,
        **_X86,  # type: ignore[arg-type]
    ),
    # The order of instructions is that for a Cortex-A72, the instructions are those of every ARMv8-A machine.
    Machine(
        "aarch64-neon",
        features=("neon",),
        cpu="cortex-a72",
        attributes=("-crc", "-crypto"),
        lanes=4,
        registers=32,
        **_ARM,  # type: ignore[arg-type]
    ),
    Machine(
        "armv7-vfp",
        features=("vfpv3",),
        cpu="generic",
        attributes=("+vfp3d16", "-neon"),
        lanes=1,
        registers=16,
        **_ARM32,  # type: ignore[arg-type]
    ),
    Machine(
        "armv7-neon",
        features=("neon", "vfpv3"),
        cpu="generic",
        attributes=("+neon", "+vfp3"),
        lanes=4,
        registers=16,
        **_ARM32,  # type: ignore[arg-type]
    ),
    Machine(
        "riscv64-gc",
        features=("i", "m", "a", "f", "d", "c"),
        cpu="generic-rv64",
        attributes=("+m", "+a", "+f", "+d", "+c"),
        abi="lp64d",
        lanes=1,
        registers=32,
        **_RISCV,  # type: ignore[arg-type]
    ),
)


def machine_for(target: Target) -> Machine:
    """The best level that every machine of the target has. Raises UnsupportedError where there is none."""
    fit = [one for one in MACHINES if one.arch == target.arch and set(one.features) <= set(target.features)]
    if not fit:
        raise UnsupportedError(f"TVM makes no code for {target.name}: {target.arch} without what its vectors need")
    return fit[-1]
