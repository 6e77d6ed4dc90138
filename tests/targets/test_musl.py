"""One artifact serves glibc and musl: the library that a program of glibc loads, one of musl loads, too.

musl's own loader shows it, natively or under QEMU. Where there is no such loader to be had (riscv64: Debian 12 has no
musl for it), the artifact's sources are linked into a static program of musl instead: that shows that the code runs
beside musl, and that nothing of it collides with musl's names, but not that musl's loader takes the library;
`test_toolchain` shows that there is nothing in it which a loader could fail at.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from outrider.runtime.bundle import ArtifactEntry, Signature
from outrider.runtime.probe import host_target
from outrider.runtime.target import Libc, Requirements, Target, refuse
from outrider.targets import boards, get_target
from outrider.targets.emulate import RUNNER, emulator_command, run_native
from outrider.targets.toolchain import ABI_HEADERS, build_program

Array = np.ndarray
Inputs = dict[str, Array]
NATIVE = [name for name, board in boards().items() if board.emulator is not None]
LOADER = {"x86_64": "x86_64", "aarch64": "aarch64", "armv7": "armhf", "riscv64": "riscv64"}

# The three functions under the names by which the runner looks for them in a library.
LINKED = """
#include <string.h>
#include "native_abi.h"
void *dlopen(const char *path, int flags) { return (void *)path; }
char *dlerror(void) { return ""; }
void *dlsym(void *library, const char *name) {
    if (!strcmp(name, "outrider_abi")) return outrider_abi;
    if (!strcmp(name, "outrider_workspace")) return outrider_workspace;
    if (!strcmp(name, "outrider_run")) return outrider_run;
    return NULL;
}
"""


def with_musl(name: str) -> Target:
    """A machine of the board with musl instead of glibc."""
    target = get_target(name)
    triple = target.triple.replace("-gnu", "-musl")
    return msgspec.structs.replace(target, name="alpine", triple=triple, libc=Libc(kind="musl", version=(1, 1)))


def loader(name: str) -> Path:
    """Where musl's loader for a board is on this machine, if anywhere."""
    board = boards()[name]
    assert board.emulator is not None
    root = "/" if board.arch == host_target().arch else board.emulator.musl.path
    return Path(root, "lib", f"ld-musl-{LOADER[board.arch]}.so.1")


@pytest.mark.parametrize("name", NATIVE)
def test_a_machine_with_musl_admits_what_is_built_for_the_board(name: str) -> None:
    target = get_target(name)
    assert refuse(Requirements(arch=target.arch, features=target.features), with_musl(name)) is None
    linked = refuse(Requirements(arch=target.arch, libc=target.libc), with_musl(name))
    assert linked is not None
    assert linked.code == "libc", "what is linked to glibc would be refused"


@pytest.mark.system
@pytest.mark.parametrize("name", NATIVE)
def test_musl_s_loader_takes_the_library_that_glibc_s_takes(
    name: str,
    source: str,
    build: Callable[[Target], bytes],
    entry: ArtifactEntry,
    signature: Signature,
    inputs: Inputs,
    require_board: Callable[[str], Target],
    require_tool: Callable[[str], str],
    tmp_path: Path,
) -> None:
    target = require_board(name)
    library = build(target)
    expected = run_native(entry, library, inputs, target, signature)["y"]
    if loader(name).exists():
        found = run_native(entry, library, inputs, with_musl(name), signature)["y"]
    elif name == "riscv64":
        found = _run_linked(name, source, inputs, tmp_path)
    else:
        require_tool(f"musl's loader {loader(name)} (see .ci/musl-sysroots)")
    assert found.tobytes() == expected.tobytes()


def _run_linked(name: str, source: str, inputs: Inputs, folder: Path) -> Array:
    """The outputs of the artifact's sources in a static program of musl."""
    sources = {
        **{file.name: file.read_text(encoding="utf-8") for file in (RUNNER, *ABI_HEADERS)},
        "model.c": source,
        "linked.c": LINKED,
    }
    program = folder / "program"
    build_program(sources, program, with_musl(name), ("-static",))
    program.chmod(0o755)
    data = [array.tobytes() for array in inputs.values()]
    rows = len(inputs["x"])
    sizes = [*(str(len(part)) for part in data), "--", str(8 * rows)]
    command = [*emulator_command(get_target(name)), program, "linked", "", str(rows), *sizes]
    done = subprocess.run(command, input=b"".join(data), capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.float64)
