"""Cross compilation of C with `zig cc`, which carries every target's toolchain in one Python package.

A build is deterministic: it runs in a fresh folder with relative names, keeps no symbols, no build id and no time,
so the same sources, target and flags give the same bytes.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from outrider.runtime import engines
from outrider.runtime.durable import write_file
from outrider.runtime.errors import ToolchainError
from outrider.runtime.target import Target
from outrider.targets.catalog import board_of

_ENGINES = Path(engines.__file__).parent
ABI_HEADERS = tuple(_ENGINES / name for name in ("native_abi.h", "python_call.h"))  # what sources may include
TIMEOUT_S = 600  # the first program for a target builds its C library, which takes up to a minute
_MESSAGE_LIMIT = 4000  # characters of the compiler's output that an error quotes

# Walks that run interleaved are not to be turned into vectors, lane by lane: that costs more than it saves.
_C_FLAGS = (
    *("-O3", "-fno-slp-vectorize", "-std=c11", "-nostdlib", "-ffreestanding", "-ffp-contract=off"),
    *("-fvisibility=hidden", "-ffunction-sections", "-fdata-sections"),
)
# Nothing may be left undefined: what the compiler calls of its own accord (memcpy, 64-bit division on 32-bit ARM)
# comes from its support library and is linked in, hidden.
_LINK_FLAGS = ("-rtlib=compiler-rt", "-Wl,--gc-sections", "-s")
# Calls of an artifact's own functions stay in it, whatever else of their names is loaded.
SHARED_FLAGS = (
    *(*_C_FLAGS, *_LINK_FLAGS),
    *("-shared", "-fPIC", "-Wl,-Bsymbolic", "-Wl,-z,defs", "-Wl,--build-id=none"),
)
# The module of wasm_abi.h. The stack lies below the data, so that it overflows into a trap and not into a table.
WASM_FLAGS = (
    *(*_C_FLAGS, *_LINK_FLAGS),
    *("-Wl,--no-entry", "-Wl,--export-dynamic", "-Wl,--export=__heap_base", "-Wl,-z,stack-size=1048576"),
)
OBJECTS_FLAGS = ("-shared", "-fPIC", "-s", "-lm", "-Wl,--as-needed", "-Wl,--build-id=none")
PROGRAM_FLAGS = ("-O2", "-std=gnu11", "-s", "-Wl,--build-id=none", "-Wl,--export-dynamic")


def build_shared(sources: Mapping[str, str | bytes], out: Path, target: Target, flags: Sequence[str] = ()) -> bytes:
    """Compile C to a shared library of the native ABI, which needs no libc; returns its bytes, also written to `out`.

    For WebAssembly it is a module (see `wasm_abi.h`). A library is the same for glibc and musl. `sources` maps file
    names to contents: `.c` files are compiled, others may be included or embedded, as may the headers of the ABI.
    `flags` are added; without an `-mcpu` among them, the board's baseline CPU is used. Raises ToolchainError with the
    compiler's message.
    """
    headers = {header.name: header.read_text(encoding="utf-8") for header in ABI_HEADERS}
    toolchain = board_of(target).toolchain
    base = WASM_FLAGS if target.arch == "wasm32" else SHARED_FLAGS
    return _build({**headers, **sources}, out, target, (toolchain.target, toolchain.cpu), (*base, *flags))


def build_program(sources: Mapping[str, str | bytes], out: Path, target: Target, flags: Sequence[str] = ()) -> bytes:
    """Compile C to a program linked to the target's C library, dynamically unless `flags` say `-static`.

    Like `build_shared` otherwise.
    """
    toolchain = board_of(target).toolchain
    if target.libc is None or target.libc.kind == "glibc" or toolchain.musl is None:
        return _build(sources, out, target, (toolchain.target, toolchain.cpu), (*PROGRAM_FLAGS, *flags))
    dynamic = () if "-static" in flags else ("-dynamic",)  # which is not the default for musl
    return _build(sources, out, target, (toolchain.musl, toolchain.cpu), (*PROGRAM_FLAGS, *dynamic, *flags))


def link_shared(objects: Mapping[str, bytes], target: Target) -> bytes:
    """Link object files, by name, to a shared library that needs the target's glibc and its mathematics at most.

    What they leave undefined beyond that is looked up where the library is loaded. Raises ToolchainError.
    """
    toolchain = board_of(target).toolchain
    return _made(objects, ["-target", toolchain.target, *OBJECTS_FLAGS, *sorted(objects)], target)


def _build(
    sources: Mapping[str, str | bytes], out: Path, target: Target, machine: tuple[str, str], flags: Sequence[str]
) -> bytes:
    """`machine`: the compiler's names of the target and of the CPU, which an `-mcpu` among the flags overrides."""
    cpu = () if any(flag.startswith("-mcpu") for flag in flags) else (f"-mcpu={machine[1]}",)
    inputs = sorted(name for name in sources if name.endswith(".c"))
    data = _made(sources, ["-target", machine[0], *cpu, *flags, *inputs], target)
    write_file(out, data)
    return data


def _made(files: Mapping[str, str | bytes], arguments: Sequence[str], target: Target) -> bytes:
    """What the compiler makes in a fresh folder of these files."""
    with tempfile.TemporaryDirectory(prefix="outrider-build-") as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content.encode() if isinstance(content, str) else content)
        _run_compiler([*arguments, "-o", "artifact"], folder, target)
        return Path(folder, "artifact").read_bytes()


def _run_compiler(arguments: Sequence[str], folder: str, target: Target) -> None:
    if importlib.util.find_spec("ziglang") is None:
        raise ToolchainError("the cross compiler is not installed", hint="pip install 'outrider[compiler]'")
    command = [sys.executable, "-m", "ziglang", "cc", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as e:
        raise ToolchainError(f"the compiler for {target.name} did not finish within {TIMEOUT_S} s") from e
    except OSError as e:
        raise ToolchainError(f"the compiler cannot be started: {e.strerror}") from e
    if done.returncode != 0:
        message = done.stderr.strip()[-_MESSAGE_LIMIT:]
        raise ToolchainError(f"the compiler for {target.name} failed with status {done.returncode}:\n{message}")
