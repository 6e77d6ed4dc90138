"""The engine of WebAssembly artifacts, beyond the contract of all engines."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from outrider.runtime import load
from outrider.runtime.bundle import ArtifactEntry, Manifest, Signature, file_entry, write_bundle
from outrider.runtime.engines import wasm
from outrider.runtime.engines.wasm import WasmEngine
from outrider.runtime.errors import EngineFault, EngineMissingError, TargetMismatchError
from outrider.runtime.target import Requirements
from outrider.targets import get_target
from outrider.targets.toolchain import build_shared

Parts = tuple[Manifest, dict[str, bytes]]
replace = msgspec.structs.replace

HEAD = (
    '#include "native_abi.h"\n'
    "#ifndef VERSION\n#define VERSION OUTRIDER_ABI\n#endif\n"
    "#ifndef WORKSPACE\n#define WORKSPACE 0\n#endif\n"
    "uint32_t outrider_abi(void) { return VERSION; }\n"
    "size_t outrider_workspace(int64_t n) { return WORKSPACE; }\n"
    "int32_t outrider_run(const void *const *i, void *const *o, int64_t n, void *w) "
)


@pytest.fixture
def entry(make_parts: Callable[..., Parts]) -> ArtifactEntry:
    return replace(make_parts()[0].artifacts[0], format="wasm")


@pytest.fixture
def signature(make_parts: Callable[..., Parts]) -> Signature:
    return make_parts()[0].signature


@pytest.fixture
def module(tmp_path: Path) -> Callable[..., bytes]:
    """Compile the body of `outrider_run`."""

    def build(body: str, *flags: str) -> bytes:
        return build_shared({"x.c": HEAD + body}, tmp_path / "x.wasm", get_target("wasm32-wasi"), flags)

    return build


def rows(count: int) -> dict[str, Any]:
    return {"features": np.random.default_rng(count).random((count, 3), np.float32)}


def test_a_long_batch_runs_in_equal_parts_and_memory_stays_small(
    mean_module: bytes, entry: ArtifactEntry, signature: Signature, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = WasmEngine.open(entry, mean_module, signature)
    inputs = rows(1000)
    whole = engine.run(inputs)["score"]
    monkeypatch.setattr(wasm, "PART_BYTES", 160)  # ten rows
    calls: list[int] = []
    kept = wasm._Module.run
    monkeypatch.setattr(wasm._Module, "run", lambda *given: (calls.append(given[-1]), kept(*given))[1])
    assert engine.run({"features": inputs["features"][:25]})["score"].tobytes() == whole[:25].tobytes()
    assert calls == [8, 8, 9]
    assert [part.stop for part in wasm._parts(3, 0)] == [3], "rows of no bytes run at once"
    assert [part.stop for part in wasm._parts(2, 10**9)] == [1, 2], "a row is never cut"
    engine.close()


def test_calls_from_several_threads_take_turns(mean_module: bytes, entry: ArtifactEntry, signature: Signature) -> None:
    engine = WasmEngine.open(entry, mean_module, signature)
    inputs = rows(200)
    expected, wrong = inputs["features"].mean(axis=1), []

    def work() -> None:
        for _ in range(20):
            if not np.allclose(engine.run(inputs)["score"], expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    engine.close()


def test_a_failing_status_is_an_engine_fault(mean_module: bytes, entry: ArtifactEntry, signature: Signature) -> None:
    engine = WasmEngine.open(entry, mean_module, signature)
    with pytest.raises(EngineFault, match="status 7"):
        engine.run({"features": np.full((1, 3), np.nan, np.float32)})
    engine.close()


def test_after_a_trap_the_next_call_finds_a_fresh_instance(
    module: Callable[..., bytes], entry: ArtifactEntry, signature: Signature
) -> None:
    body = """{
        static int calls;
        volatile char block[300000];
        block[calls & 7] = 0;
        if (((const float *)i[0])[0] < 0) __builtin_trap();
        ((float *)o[0])[0] = (float)++calls + block[0];
        return 0;
    }"""
    engine = WasmEngine.open(entry, module(body), signature)
    good, bad = np.ones((1, 3), np.float32), -np.ones((1, 3), np.float32)
    assert engine.run({"features": good})["score"] == [1.0]
    assert engine.run({"features": good})["score"] == [2.0]
    for _ in range(5):  # more than the stack has room for, were it not given back
        with pytest.raises(EngineFault, match="unreachable"):
            engine.run({"features": bad})
    assert engine.run({"features": good})["score"] == [1.0]
    engine.close()


def test_absurd_memory_is_an_engine_fault(
    module: Callable[..., bytes], entry: ArtifactEntry, signature: Signature
) -> None:
    engine = WasmEngine.open(entry, module("{ return 0; }", "-DWORKSPACE=0xffff0000u"), signature)
    with pytest.raises(EngineFault, match=r"asks for 429\d+ bytes of memory"):
        engine.run(rows(2))
    engine.close()


@pytest.mark.parametrize("data", [b"", b"\0asm", b"\x7fELF" * 10, b"(module)"])
def test_what_is_no_module(data: bytes, entry: ArtifactEntry, signature: Signature) -> None:
    with pytest.raises(EngineFault, match=r"Wasmtime cannot compile|does not export"):
        WasmEngine.open(entry, data, signature)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('(module (import "env" "exp" (func)))', "cannot instantiate"),
        ("(module)", "does not export outrider_abi"),
        ('(module (func (export "outrider_abi") (param i32) (result i32) i32.const 1))', "failed: too few parameters"),
        ('(module (func (export "outrider_abi")))', "failed: "),
        ('(module (memory (export "outrider_abi") 1))', "does not export outrider_abi"),
        ('(module (func (export "outrider_abi") (result i32) unreachable))', "failed: "),
    ],
)
def test_a_module_of_another_kind(text: str, message: str, entry: ArtifactEntry, signature: Signature) -> None:
    import wasmtime

    with pytest.raises(EngineFault, match=message):
        WasmEngine.open(entry, bytes(wasmtime.wat2wasm(text)), signature)


@pytest.mark.parametrize("base", ["", '(global (export "__heap_base") f32 (f32.const nan))'])
def test_a_module_without_a_heap(base: str, entry: ArtifactEntry, signature: Signature) -> None:
    import wasmtime

    text = f"""(module (memory (export "memory") 1) {base}
        (func (export "outrider_abi") (result i32) i32.const 1)
        (func (export "outrider_workspace") (param i64) (result i32) i32.const 0))"""
    engine = WasmEngine.open(entry, bytes(wasmtime.wat2wasm(text)), signature)
    with pytest.raises(EngineFault, match="does not export __heap_base"):
        engine.run(rows(1))
    engine.close()


def test_a_module_of_another_abi(module: Callable[..., bytes], entry: ArtifactEntry, signature: Signature) -> None:
    with pytest.raises(TargetMismatchError, match="ABI 9") as caught:
        WasmEngine.open(entry, module("{ return 0; }", "-DVERSION=9"), signature)
    assert caught.value.reason == "abi"


def test_a_bundle_runs_on_any_machine_with_the_engine(
    make_parts: Callable[..., Parts], mean_module: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, files = make_parts()
    stored = file_entry("artifacts/x/mean.wasm", mean_module)
    entry = replace(
        manifest.artifacts[0],
        **{"path": stored.path, "size": stored.size, "sha256": stored.sha256},
        **{"format": "wasm", "engine": "wasm", "package": "wasmtime"},
        needs=Requirements(features=("lime1", "simd128")),
    )
    others = {path: data for path, data in files.items() if path != manifest.artifacts[0].path}
    path = tmp_path / "x.orb"
    write_bundle(path, replace(manifest, artifacts=(entry,)), {**others, stored.path: mean_module})
    inputs = rows(5)
    for name in ("host", "riscv64", "armv7"):
        with load(path, target=get_target(name)) as session:
            np.testing.assert_allclose(session.predict(inputs["features"]), inputs["features"].mean(axis=1), rtol=1e-6)
            assert "in use, called by wasmtime" in session.explain()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineMissingError, match="needs wasmtime, found not installed") as caught:
        load(path)
    assert caught.value.hint == "pip install wasmtime"


def test_a_package_without_a_library_for_this_machine(
    mean_module: bytes, entry: ArtifactEntry, signature: Signature, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wasmtime", None)
    with pytest.raises(EngineMissingError, match="package wasmtime, which cannot be loaded here"):
        WasmEngine.open(entry, mean_module, signature)
