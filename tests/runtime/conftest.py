"""A small native model, and bundles made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from outrider.runtime.bundle import (
    ArtifactEntry,
    CandidateRecord,
    Golden,
    Manifest,
    Signature,
    SourceModel,
    TensorSpec,
    encode_npy,
    file_entry,
    write_bundle,
)
from outrider.runtime.target import Requirements

# score[i] = the mean of three features
MEAN_SOURCE = """
#include "native_abi.h"
uint32_t outrider_abi(void) { return OUTRIDER_ABI; }
size_t outrider_workspace(int64_t batch) { return (size_t)batch * sizeof(float); }
int32_t outrider_run(const void *const *inputs, void *const *outputs, int64_t batch, void *workspace) {
    const float *x = inputs[0];
    float *score = outputs[0], *sums = workspace;
    if ((uintptr_t)workspace % 64) return 9;
    for (int64_t i = 0; i < batch; i++) sums[i] = x[3 * i] + x[3 * i + 1] + x[3 * i + 2];
    for (int64_t i = 0; i < batch; i++) {
        if (sums[i] != sums[i]) return 7;
        score[i] = sums[i] / 3.0f;
    }
    return 0;
}
"""


# What makes the model above take float64: the mean of doubles, which float32 would round.
DOUBLE_SOURCE = """
size_t outrider_workspace_double(int64_t batch) { return (size_t)batch * sizeof(double); }
int32_t outrider_run_double(const void *const *inputs, void *const *outputs, int64_t batch, void *workspace) {
    const double *x = inputs[0];
    float *score = outputs[0];
    double *sums = workspace;
    if ((uintptr_t)workspace % 64) return 9;
    for (int64_t i = 0; i < batch; i++) sums[i] = x[3 * i] + x[3 * i + 1] + x[3 * i + 2];
    for (int64_t i = 0; i < batch; i++) {
        if (sums[i] != sums[i]) return 8;
        score[i] = (float)(sums[i] / 3.0);
    }
    return 0;
}
#ifndef __wasm__
#include "python_call.h"
#endif
"""


@pytest.fixture(scope="session")
def mean_library(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The model above as a native artifact for this machine; it fails with status 7 for NaN."""
    from outrider.targets import get_target
    from outrider.targets.toolchain import build_shared

    out = tmp_path_factory.mktemp("native") / "mean.so"
    return build_shared({"mean.c": MEAN_SOURCE}, out, get_target("host"))


@pytest.fixture(scope="session")
def mean_source() -> str:
    """The C source of that artifact."""
    return MEAN_SOURCE


@pytest.fixture(scope="session")
def mean_module(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The model above as a WebAssembly module."""
    from outrider.targets import get_target
    from outrider.targets.toolchain import build_shared

    out = tmp_path_factory.mktemp("wasm") / "mean.wasm"
    return build_shared({"mean.c": MEAN_SOURCE}, out, get_target("wasm32-wasi"))


@pytest.fixture(scope="session")
def double_source() -> str:
    """The C source of the model above, taking float64 too."""
    return "#define OUTRIDER_DOUBLE" + MEAN_SOURCE + DOUBLE_SOURCE


@pytest.fixture(scope="session")
def double_artifacts(tmp_path_factory: pytest.TempPathFactory, double_source: str) -> dict[str, bytes]:
    """The model above, by artifact format, taking float64 too; it fails with status 8 for NaN in doubles."""
    from outrider.targets import get_target
    from outrider.targets.toolchain import build_shared

    folder = tmp_path_factory.mktemp("double")
    sources = {"mean.c": double_source}
    return {
        "native": build_shared(sources, folder / "mean.so", get_target("host")),
        "wasm": build_shared(sources, folder / "mean.wasm", get_target("wasm32-wasi")),
    }


Parts = tuple[Manifest, dict[str, bytes]]


@pytest.fixture(scope="session")
def make_parts() -> Callable[..., Parts]:
    """Make a sound manifest of one native artifact, and its files; keywords replace fields of the manifest."""

    def make(library: bytes = b"not a library", **changes: Any) -> Parts:
        rows = np.array([[0.0, 0.25, 0.5], [1.0, 1.0, 1.0], [0.5, 2.0, -1.0]], np.float32)
        scores = ((rows[:, 0] + rows[:, 1]) + rows[:, 2]) / np.float32(3)
        files = {
            "artifacts/k2/mean.so": library,
            "golden/inputs/features.npy": encode_npy(rows),
            "golden/outputs/score.npy": encode_npy(scores),
            "provenance.json": b"{}",
        }
        entries = {path: file_entry(path, data) for path, data in files.items()}
        artifact = entries.pop("artifacts/k2/mean.so")
        manifest = Manifest(
            schema=1,
            name="mean",
            version="1",
            target="host",
            signature=Signature(
                inputs=(TensorSpec(name="features", dtype="float32", shape=(None, 3)),),
                outputs=(
                    TensorSpec(name="score", dtype="float32", shape=(None,)),
                    TensorSpec(name="label", dtype="string", shape=(None,)),
                ),
                predict="score",
                feature_names=("a", "b", "c"),
                class_labels=("good", "bad"),
            ),
            artifacts=(
                ArtifactEntry(
                    path=artifact.path,
                    size=artifact.size,
                    sha256=artifact.sha256,
                    format="native",
                    abi=1,
                    engine="native",
                    package=None,
                    triple=None,
                    needs=Requirements(),
                    inputs=("features",),
                    outputs=("score",),
                    candidate="k2",
                ),
            ),
            candidates=(
                CandidateRecord(
                    id="k2", backend="native", precision="float32", options={}, outcome="chosen", reason="only", rank=1
                ),
            ),
            golden=Golden(
                rows=3,
                evidence="calibration",
                inputs={"features": "golden/inputs/features.npy"},
                outputs={"score": "golden/outputs/score.npy"},
                raw={},
                atol=1e-6,
                rtol=1e-5,
            ),
            source=SourceModel(framework="test", framework_version="1", sha256="0" * 64, description="a mean"),
            files=tuple(entries.values()),
            evidence="calibration",
            provenance="provenance.json",
        )
        return msgspec.structs.replace(manifest, **changes), files

    return make


@pytest.fixture
def make_bundle(make_parts: Callable[..., Parts], mean_library: bytes, tmp_path: Path) -> Callable[..., Path]:
    """Write a bundle of the model above that runs on this machine; `files` adds or replaces files."""

    def make(
        name: str = "mean.orb", files: Mapping[str, bytes] | None = None, library: bytes | None = None, **changes: Any
    ) -> Path:
        manifest, contents = make_parts(library or mean_library, **changes)
        contents |= files or {}
        known = {artifact.path for artifact in manifest.artifacts}
        listed = tuple(file_entry(path, data) for path, data in sorted(contents.items()) if path not in known)
        path = tmp_path / name
        write_bundle(path, msgspec.structs.replace(manifest, files=listed), contents)
        return path

    return make
