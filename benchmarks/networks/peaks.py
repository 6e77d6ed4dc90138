"""What this core can do at most, measured by a small C program that is built when the benchmark runs."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.networks.records import Peak

#: fp32 and int8 in vector registers, int8 in tile registers (AMX).
KINDS = ("fp32", "int8", "int8-tiles")
_SOURCE = Path(__file__).with_name("peaks.c")
_LIMIT_S = 120


def measure_peaks(kinds: Sequence[str] = KINDS) -> tuple[Peak, ...]:
    """Operations a second, in billions, 2 for a multiply and an add; None with a reason where it cannot be measured."""
    with tempfile.TemporaryDirectory(prefix="outrider-peaks-") as folder:
        program = Path(folder) / "peaks"
        problem = _build(program)
        return tuple(Peak(name=kind, gops=None, reason=problem) if problem else _run(program, kind) for kind in kinds)


def _compiler() -> list[str] | None:
    """gcc or another cc where there is one, else zig's."""
    for name in ("gcc", "cc", "clang"):
        if shutil.which(name):
            return [name]
    return [sys.executable, "-m", "ziglang", "cc"] if importlib.util.find_spec("ziglang") else None


def _build(program: Path) -> str:
    """Why it cannot be built; nothing where it was."""
    compiler = _compiler()
    if compiler is None:
        return "there is no C compiler: pip install ziglang"
    command = [*compiler, "-O2", "-march=native", str(_SOURCE), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    return "" if done.returncode == 0 else f"{compiler[0]}: {(done.stderr.strip().splitlines() or ['it failed'])[-1]}"


def _run(program: Path, kind: str) -> Peak:
    done = subprocess.run([str(program), kind], capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    if done.returncode != 0:
        return Peak(name=kind, gops=None, reason=done.stderr.strip() or f"it ended with {done.returncode}")
    return Peak(name=kind, gops=round(float(done.stdout) / 1e9, 1))
