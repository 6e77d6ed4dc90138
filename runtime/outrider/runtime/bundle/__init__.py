"""The bundle: one `.orb` file of manifest, artifacts, golden vectors, baseline and provenance.

Inside: `manifest.json`, `artifacts/<candidate id>/<file>`, `golden/{inputs,outputs,raw}/<name>.npy`,
`baseline.msgpack`, `provenance.json`. Writing is deterministic; reading checks everything before anything is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outrider.runtime.bundle.archive import MAX_BUNDLE_BYTES, MAX_FILE_BYTES, MAX_FILES, MAX_PATH_BYTES
from outrider.runtime.bundle.checks import MAX_MANIFEST_BYTES, check_manifest, decode_manifest
from outrider.runtime.bundle.manifest import (
    SCHEMA_VERSION,
    ArtifactEntry,
    CandidateRecord,
    FileEntry,
    GoalRecord,
    Golden,
    Manifest,
    Measurement,
    Parity,
    Signature,
    SourceModel,
    TensorSpec,
)
from outrider.runtime.bundle.reader import Bundle, open_bundle, read_manifest
from outrider.runtime.bundle.writer import file_entry, write_bundle

if TYPE_CHECKING:
    from outrider.runtime.bundle.npy import decode_npy, encode_npy

__all__ = [
    "MAX_BUNDLE_BYTES",
    "MAX_FILES",
    "MAX_FILE_BYTES",
    "MAX_MANIFEST_BYTES",
    "MAX_PATH_BYTES",
    "SCHEMA_VERSION",
    "ArtifactEntry",
    "Bundle",
    "CandidateRecord",
    "FileEntry",
    "GoalRecord",
    "Golden",
    "Manifest",
    "Measurement",
    "Parity",
    "Signature",
    "SourceModel",
    "TensorSpec",
    "check_manifest",
    "decode_manifest",
    "decode_npy",
    "encode_npy",
    "file_entry",
    "open_bundle",
    "read_manifest",
    "write_bundle",
]


def __getattr__(name: str) -> Any:  # lazy: opening a bundle must not import numpy
    if name in ("decode_npy", "encode_npy"):
        from outrider.runtime.bundle import npy

        return getattr(npy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
