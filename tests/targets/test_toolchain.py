"""Cross compilation: for every board, with nothing undefined, and always the same bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest

from outrider.runtime.bundle import ArtifactEntry, Signature
from outrider.runtime.engines import open_engine
from outrider.runtime.errors import EngineFault, StorageError, ToolchainError
from outrider.runtime.target import Libc, Target
from outrider.targets import boards, get_target, toolchain
from outrider.targets.toolchain import build_program, build_shared

Build = Callable[[Target], bytes]
ELF_MACHINES = {"x86_64": 62, "aarch64": 183, "armv7": 40, "riscv64": 243}
NATIVE = [name for name, board in boards().items() if board.arch in ELF_MACHINES]
# DT_NULL, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_SYMENT, DT_FLAGS, DT_FLAGS_1, DT_GNU_HASH: symbols, and how to
# find them (in the old way, too).
DYNAMIC_TAGS = {0, 4, 5, 6, 10, 11, 30, 0x6FFFFFFB, 0x6FFFFEF5}
PT_TLS = 7
ABI = {"outrider_abi", "outrider_workspace", "outrider_run"}
PYTHON = {"outrider_python", "outrider_python_size", "outrider_python_close", "outrider_python_free"}


def sections(data: bytes) -> tuple[bool, list[tuple[int, ...]]]:
    """Whether a little-endian ELF file is of 64 bits, and its section headers (type, offset, size, link)."""
    assert data[:4] == b"\x7fELF"
    assert data[5] == 1
    wide = data[4] == 2
    start = struct.unpack_from("<Q", data, 40)[0] if wide else struct.unpack_from("<I", data, 32)[0]
    size, count = struct.unpack_from("<HH", data, 58 if wide else 46)
    form, pick = ("<IIQQQQI", (1, 4, 5, 6)) if wide else ("<IIIIIII", (1, 4, 5, 6))
    return wide, [tuple(struct.unpack_from(form, data, start + i * size)[p] for p in pick) for i in range(count)]


def program_headers(data: bytes) -> list[int]:
    """The types of the segments."""
    wide = data[4] == 2
    start = struct.unpack_from("<Q", data, 32)[0] if wide else struct.unpack_from("<I", data, 28)[0]
    size, count = struct.unpack_from("<HH", data, 54 if wide else 42)
    return [struct.unpack_from("<I", data, start + i * size)[0] for i in range(count)]


def dynamic_symbols(data: bytes) -> tuple[set[str], set[str], list[int]]:
    """The defined and the undefined dynamic symbols, and the tags of the dynamic section."""
    wide, headers = sections(data)
    defined, undefined, tags = set(), set(), []
    for kind, offset, size, link in headers:
        if kind == 11:  # SHT_DYNSYM
            step = 24 if wide else 16
            for at in range(offset + step, offset + size, step):
                name = struct.unpack_from("<I", data, at)[0] + headers[link][1]
                section = struct.unpack_from("<H", data, at + (6 if wide else 14))[0]
                (defined if section else undefined).add(data[name : data.index(b"\0", name)].decode())
        elif kind == 6:  # SHT_DYNAMIC
            step = 16 if wide else 8
            tags = [
                struct.unpack_from("<q" if wide else "<i", data, at)[0] for at in range(offset, offset + size, step)
            ]
    return defined, undefined, tags


@pytest.mark.parametrize("name", NATIVE)
def test_an_artifact_needs_nothing_and_shows_only_its_abi(build: Build, name: str) -> None:
    library = build(get_target(name))
    assert struct.unpack_from("<H", library, 18)[0] == ELF_MACHINES[get_target(name).arch]
    defined, undefined, _ = dynamic_symbols(library)
    assert defined == ABI | PYTHON
    assert not undefined


@pytest.mark.parametrize("name", NATIVE)
def test_an_artifact_asks_of_a_loader_what_all_of_them_have(build: Build, name: str) -> None:
    """Those of glibc 2.17 and of musl: no other library, symbol version, relocation, thread-local or constructor.

    No relocation means also that what it calls is its own, though another artifact is loaded for all to see.
    """
    library = build(get_target(name))
    assert library[7] == 0, "the plain System V ABI, not that of a newer GNU"
    *_, tags = dynamic_symbols(library)
    assert set(tags) == DYNAMIC_TAGS
    assert PT_TLS not in program_headers(library)


def test_a_module_imports_nothing_and_shows_its_abi_memory_and_heap(build: Build) -> None:
    import wasmtime

    module = wasmtime.Module(wasmtime.Engine(), build(get_target("wasm32-wasi")))
    assert list(module.imports) == []
    assert {export.name for export in module.exports} >= ABI | {"memory", "__heap_base"}


def test_a_module_s_stack_overflows_into_a_trap(tmp_path: Path, entry: ArtifactEntry, signature: Signature) -> None:
    source = (
        '#include "native_abi.h"\nuint32_t outrider_abi(void) { return 1; }\n'
        "size_t outrider_workspace(int64_t n) { return 0; }\n"
        "static volatile int table = 5;\n"
        "__attribute__((noinline)) static int deep(int n) { volatile char block[1 << 16]; block[n & 7] = 1;"
        " return n ? deep(n - 1) + block[0] : table; }\n"
        "int32_t outrider_run(const void *const *i, void *const *o, int64_t n, void *w) {\n"
        "  *(double *)o[0] = deep((int)((const int64_t *)i[0])[0]); return 0; }"
    )
    data = build_shared({"x.c": source}, tmp_path / "x.wasm", get_target("wasm32-wasi"))
    with closing(open_engine(msgspec.structs.replace(entry, format="wasm"), data, signature)) as engine:
        for depth, fits in ((10, True), (20, False), (10, True)):
            inputs = {"a": np.array([[depth, 0]], np.int64), "x": np.zeros(1)}
            if fits:
                assert engine.run(inputs)["y"][0] >= 5
            else:
                with pytest.raises(EngineFault, match="out of bounds"):
                    engine.run(inputs)


def test_a_program_for_musl_asks_for_musl_s_loader(tmp_path: Path) -> None:
    musl = msgspec.structs.replace(get_target("x86-64"), libc=Libc(kind="musl", version=(1, 2)))
    program = {"x.c": "int main(void) { return 0; }"}
    assert b"/lib/ld-musl-x86_64.so.1\0" in build_program(program, tmp_path / "x", musl)
    assert build_shared({"x.c": "int f;"}, tmp_path / "y", musl) == build_shared(
        {"x.c": "int f;"}, tmp_path / "y", get_target("x86-64")
    )


@pytest.mark.parametrize("name", ["host", *boards()])
def test_the_same_source_gives_the_same_bytes(build: Build, name: str, tmp_path: Path) -> None:
    target = get_target(name)
    first = build(target)
    assert build(target) == first
    assert str(tmp_path).encode() not in first
    assert b"model.c" not in first
    assert b"/tmp" not in first


def test_a_build_for_this_machine_runs(build: Build, entry: ArtifactEntry, signature: Signature) -> None:
    engine = open_engine(entry, build(get_target("host")), signature)
    a, x = np.array([[7, 2], [-9, 2]], np.int64), np.array([0.0, 1.0])
    np.testing.assert_allclose(engine.run({"a": a, "x": x})["y"], [4.0, -4 + np.e], rtol=1e-15)
    engine.close()


def test_products_are_not_fused(tmp_path: Path) -> None:
    """a * b + c must round twice everywhere, or results would differ between targets."""
    source = (
        '#include "native_abi.h"\nuint32_t outrider_abi(void) { return 1; }\n'
        "size_t outrider_workspace(int64_t n) { return 0; }\n"
        "int32_t outrider_run(const void *const *i, void *const *o, int64_t n, void *w) {\n"
        "  const float *x = i[0]; ((float *)o[0])[0] = x[0] * x[1] + x[2]; return 0; }"
    )
    plain = build_shared({"x.c": source}, tmp_path / "x.so", get_target("aarch64"))
    fused = build_shared({"x.c": source}, tmp_path / "y.so", get_target("aarch64"), ("-ffp-contract=fast",))
    assert plain != fused


def test_flags_headers_and_several_sources(tmp_path: Path) -> None:
    sources = {
        "a.c": '#include "native_abi.h"\n#include "shared.h"\nuint32_t outrider_abi(void) { return one(); }',
        "b.c": '#include "shared.h"\nint one(void) { return VALUE; }',
        "shared.h": "int one(void);",
    }
    target = get_target("x86-64")
    out = tmp_path / "x.so"
    data = build_shared(sources, out, target, ("-DVALUE=1",))
    assert out.read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["x.so"]
    assert build_shared(sources, out, target, ("-DVALUE=1", "-mcpu=x86_64_v3"))
    assert build_shared(sources, out, target, ("-DVALUE=2",)) != data


def test_the_compiler_s_message_is_passed_on(tmp_path: Path) -> None:
    target = get_target("aarch64")
    with pytest.raises(ToolchainError, match=r"x\.c:1:.*error: (use of )?undeclared"):
        build_shared({"x.c": "int f(void) { return nowhere; }"}, tmp_path / "x.so", target)
    with pytest.raises(ToolchainError, match="undefined symbol: nowhere"):
        build_shared(
            {"x.c": 'int nowhere(void); __attribute__((visibility("default"))) int f(void) { return nowhere(); }'},
            tmp_path / "x.so",
            target,
        )
    assert not list(tmp_path.iterdir())


def test_failures_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = get_target("x86-64")
    with pytest.raises(StorageError, match="absent"):
        build_shared({"x.c": "int f;"}, tmp_path / "absent" / "x.so", target)
    monkeypatch.setattr(toolchain, "TIMEOUT_S", 0.001)
    with pytest.raises(ToolchainError, match="did not finish"):
        build_shared({"x.c": "int f;"}, tmp_path / "x.so", target)
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ToolchainError, match=r"outrider\[compiler\]"):
        build_shared({"x.c": "int f;"}, tmp_path / "x.so", target)
