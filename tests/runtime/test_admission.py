"""Admission: every reason to refuse, before a byte is fetched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from outrider.runtime.admission import DISK_MARGIN_BYTES, admit, needs_of
from outrider.runtime.bundle import Manifest
from outrider.runtime.messages import ArtifactNeed
from outrider.runtime.target import Libc, Requirements, Target, refuse

TARGET = Target(
    name="box",
    arch="x86_64",
    triple="x86_64-linux-gnu",
    features=("avx2", "sse4_2"),
    libc=Libc(kind="glibc", version=(2, 31)),
    memory_bytes=1000,
)


def need(format: str = "native", abi: int = 1, package: str | None = None, **needs: Any) -> ArtifactNeed:  # noqa: A002
    return ArtifactNeed(format=format, abi=abi, package=package, needs=Requirements(**needs))


def decide(*needs: ArtifactNeed, free: int = 1 << 30, size: int = 1000, engines: str = "native onnx") -> str | None:
    refusal = admit(needs, TARGET, engines=lambda kind: kind in engines.split(), disk_free=free, size=size)
    return None if refusal is None else str(refusal)


@pytest.mark.parametrize(
    ("needs", "code"),
    [
        ({}, None),
        ({"arch": "x86_64", "features": ("avx2",), "memory_bytes": 1000}, None),
        ({"libc": Libc(kind="glibc", version=(2, 31))}, None),
        ({"arch": "aarch64"}, "arch"),
        ({"features": ("avx2", "avx512f")}, "isa"),
        ({"libc": Libc(kind="glibc", version=(2, 32))}, "libc"),
        ({"libc": Libc(kind="musl", version=(1, 1))}, "libc"),
        ({"memory_bytes": 1001}, "memory"),
    ],
)
def test_refuse(needs: dict[str, Any], code: str | None) -> None:
    refusal = refuse(Requirements(**needs), TARGET)
    assert (refusal.code if refusal else None) == code


def test_an_unknown_libc_refuses_and_unknown_memory_does_not() -> None:
    bare = msgspec.structs.replace(TARGET, libc=None, memory_bytes=None)
    refusal = refuse(Requirements(libc=Libc(kind="glibc", version=(2, 17))), bare)
    assert refusal is not None
    assert str(refusal) == "libc: needs glibc 2.17, found none"
    assert refuse(Requirements(memory_bytes=1 << 40), bare) is None


def test_admit() -> None:
    assert decide(need()) is None
    assert decide() == "engine: needs an artifact, found none"
    assert decide(need("other")) == "engine: needs other, found an unknown format"
    assert decide(need(abi=7)) == "abi: needs native 7, found 1"
    assert decide(need("onnx", package="onnxruntime"), engines="native") == (
        "engine: needs onnxruntime, found not installed"
    )
    assert decide(need(), size=1000, free=1000 + DISK_MARGIN_BYTES) is None
    assert (decide(need(), size=1001, free=1000 + DISK_MARGIN_BYTES) or "").startswith("disk:")


def test_what_an_engine_brings_is_not_asked_of_the_machine() -> None:
    module = need("wasm", package="wasmtime", features=("lime1", "simd128"), memory_bytes=900)
    assert decide(module, engines="wasm") is None
    assert decide(module, engines="native") == "engine: needs wasmtime, found not installed"
    assert (
        decide(need("wasm", features=("lime1", "threads")), engines="wasm") == "isa: needs threads, found avx2 sse4_2"
    )
    assert decide(need("native", features=("simd128",))) == "isa: needs simd128, found avx2 sse4_2"


def test_one_artifact_that_runs_is_enough() -> None:
    assert decide(need(arch="aarch64"), need(features=("avx512f",)), need("onnx")) is None
    assert decide(need(features=("avx512f",)), need(arch="aarch64")) == "isa: needs avx512f, found avx2 sse4_2"


def test_needs_are_in_the_order_of_the_ranks(make_parts: Callable[..., tuple[Manifest, dict[str, bytes]]]) -> None:
    manifest, _ = make_parts()
    entry, candidate = manifest.artifacts[0], manifest.candidates[0]
    replace = msgspec.structs.replace
    second = replace(entry, path="artifacts/b/x.onnx", format="onnx", candidate="b", package="onnxruntime")
    manifest = replace(
        manifest, artifacts=(entry, second), candidates=(replace(candidate, rank=2), replace(candidate, id="b", rank=1))
    )
    assert [(n.format, n.package) for n in needs_of(manifest)] == [("onnx", "onnxruntime"), ("native", None)]
