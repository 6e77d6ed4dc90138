"""What must hold between the parts of a manifest, beyond the types of its fields."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import msgspec

from outrider.runtime.bundle.archive import check_path
from outrider.runtime.bundle.manifest import SCHEMA_VERSION, FileEntry, Manifest, Signature, TensorSpec
from outrider.runtime.errors import BadBundleError, BundleTooLargeError, UnknownSchemaError
from outrider.runtime.images.check import contradiction, image_spec, images_a_call

MAX_MANIFEST_BYTES = 4 << 20
_ROW_BY_ROW = ("native", "wasm")  # formats of artifacts that are given rows as bare memory


class _Schema(msgspec.Struct, frozen=True):
    """The one field that every version of the manifest has."""

    schema: int


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as `manifest.json`: indented, fields in declared order, maps sorted.

    Raises BadBundleError where a part contradicts another, or a value cannot be written (not a number).
    """
    check_manifest(manifest)
    data = msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=2) + b"\n"
    if decode_manifest(data) != manifest:
        raise BadBundleError("the manifest does not survive being written")
    return data


def decode_manifest(data: bytes) -> Manifest:
    """Parse and check `manifest.json`. The schema version is looked at first, before anything else is understood.

    Raises UnknownSchemaError, BundleTooLargeError or BadBundleError.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleTooLargeError(f"the manifest has {len(data)} bytes, over the limit of {MAX_MANIFEST_BYTES}")
    try:
        version = msgspec.json.decode(data, type=_Schema).schema
        if version != SCHEMA_VERSION:
            raise UnknownSchemaError(
                f"the bundle has schema version {version}; this release knows {SCHEMA_VERSION}",
                hint="install a matching version of outrider",
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise BadBundleError(f"the manifest does not decode: {e}") from e
    check_manifest(manifest)
    return manifest


def check_manifest(manifest: Manifest) -> None:
    """Raises BadBundleError, or UnsafePathError for a path, at the first contradiction."""
    _check_signature(manifest)
    _check_images(manifest)
    _check_candidates(manifest)
    _check_artifacts(manifest)
    files = manifest_files(manifest)
    _check_golden(manifest, files)
    for role, path in (("baseline", manifest.baseline), ("provenance", manifest.provenance)):
        if path is not None:
            _require(path in files, f"the {role} {path!r} is not among the files")


def manifest_files(manifest: Manifest) -> dict[str, FileEntry]:
    """Every file that the archive must hold besides `manifest.json`, by path: the artifacts and `files`."""
    listed = [FileEntry(path=a.path, size=a.size, sha256=a.sha256) for a in manifest.artifacts]
    _unique((entry.path for entry in listed), "artifact path")
    _unique((entry.path for entry in manifest.files), "file path")
    files = {entry.path: entry for entry in listed}
    for entry in manifest.files:
        _require(files.get(entry.path, entry) == entry, f"{entry.path!r} is listed twice with different digests")
        files[entry.path] = entry
    for path in files:
        check_path(path)
        _require(path != "manifest.json", "the manifest lists itself")
    return files


def _check_signature(manifest: Manifest) -> None:
    signature = manifest.signature
    _require(bool(signature.inputs and signature.outputs), "the signature has no input or no output")
    _unique((spec.name for spec in signature.inputs), "input")
    _unique((spec.name for spec in signature.outputs), "output")
    for spec in (*signature.inputs, *signature.outputs):
        _check_tensor(spec, batched=signature.batched)
    outputs = {spec.name for spec in signature.outputs}
    _require(signature.predict in outputs, f"'predict' names {signature.predict!r}, which is not an output")
    if signature.feature_names:
        _unique(signature.feature_names, "feature name")
    plan = manifest.features
    if plan is not None:
        _require(len(signature.inputs) == 1, "a feature plan needs a model of one input")
        spec = signature.inputs[0]
        _require(
            spec.dtype == "float32" and spec.shape == (None, len(plan.outputs)),
            f"the feature plan gives {len(plan.outputs)} float32 columns, which {spec.name!r} does not take",
        )
        _unique((column.name for column in plan.columns), "raw column")


def _check_images(manifest: Manifest) -> None:
    wrong = contradiction(manifest.images, manifest.postprocess, manifest.signature)
    _require(wrong is None, wrong or "")
    _require(manifest.images is None or manifest.features is None, "there are a feature plan and an image plan")


def _check_tensor(spec: TensorSpec, *, batched: bool) -> None:
    _require(bool(spec.name), "a tensor has no name")
    _require(bool(spec.shape) or not batched, f"the tensor {spec.name!r} has no batch axis")
    _require(all(d is None or d >= 1 for d in spec.shape), f"the tensor {spec.name!r} has a size below 1")


def _check_rows(signature: Signature, where: str) -> None:
    """Code that is given bare memory must know how long a row is."""
    for spec in (*signature.inputs, *signature.outputs):
        fixed = bool(spec.shape) and None not in spec.shape[1:]
        _require(fixed, f"{where} knows no size but the batch, and {spec.name!r} has another that is free, or none")


def _check_candidates(manifest: Manifest) -> None:
    _unique((candidate.id for candidate in manifest.candidates), "candidate")
    ranks = [candidate.rank for candidate in manifest.candidates if candidate.rank is not None]
    _unique(map(str, ranks), "rank")
    _require(all(rank >= 1 for rank in ranks), "ranks start at 1")


def _check_artifacts(manifest: Manifest) -> None:
    _require(bool(manifest.artifacts), "the bundle has no artifact")
    signature = manifest.signature
    inputs, outputs = {spec.name for spec in signature.inputs}, {spec.name for spec in signature.outputs}
    ranked = {candidate.id for candidate in manifest.candidates if candidate.rank is not None}
    derivable = _derivable(signature)
    for artifact in manifest.artifacts:
        where = f"the artifact {artifact.path!r}"
        _unique((*artifact.inputs, ""), f"input of {where}")
        _unique((*artifact.outputs, ""), f"output of {where}")
        _require(set(artifact.inputs) <= inputs, f"{where} takes an input that the signature lacks")
        _require(set(artifact.outputs) <= outputs, f"{where} gives an output that the signature lacks")
        missing = outputs - set(artifact.outputs)
        _require(missing <= derivable, f"{where} does not compute {' '.join(sorted(missing))}")
        _require(missing != outputs, f"{where} computes nothing")
        _require(artifact.candidate in ranked, f"{where} belongs to no ranked candidate")
        if artifact.format in _ROW_BY_ROW:
            _check_rows(signature, where)


def _derivable(signature: Signature) -> set[str]:
    """The outputs that a session can give without an artifact that computes them."""
    labels = [spec for spec in signature.outputs if len(spec.shape) == 1 and spec.dtype in ("int64", "string")]
    return {spec.name for spec in labels if signature.class_labels} | set(signature.target_columns())


def _check_golden(manifest: Manifest, files: dict[str, FileEntry]) -> None:
    golden, signature = manifest.golden, manifest.signature
    _require(golden.rows >= 1, "there are no golden rows")
    _require(set(golden.inputs) == {spec.name for spec in signature.inputs}, "golden inputs are not the model's inputs")
    known = {spec.name for spec in signature.outputs}
    _require(bool(golden.outputs) and set(golden.outputs) <= known, "golden outputs are not the model's outputs")
    if manifest.images is not None:
        together = images_a_call(image_spec(manifest.images, signature), manifest.images)
        images = golden.rows * (1 if signature.batched else together or 1)
        places = all(re.fullmatch("0|[1-9][0-9]{0,8}", place) and int(place) < images for place in golden.raw)
        _require(places, "the golden raw images are not places among the golden inputs")
    else:
        columns = {column.name for column in manifest.features.columns} if manifest.features else set()
        _require(not golden.raw or set(golden.raw) == columns, "golden raw columns are not those of the feature plan")
    for path in (*golden.inputs.values(), *golden.outputs.values(), *golden.raw.values()):
        _require(path in files, f"the golden file {path!r} is not among the files")
    finite = math.isfinite(golden.atol) and math.isfinite(golden.rtol)
    _require(finite and golden.atol >= 0 and golden.rtol >= 0, "the golden tolerances are not finite and positive")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise BadBundleError(f"the manifest contradicts itself: {message}")


def _unique(values: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for value in values:
        _require(value not in seen, f"the {what} {value!r} is there twice")
        seen.add(value)
