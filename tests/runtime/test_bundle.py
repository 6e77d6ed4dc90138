"""Bundles: what is written is read back, and every way to be wrong has its own error."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outrider.runtime import errors
from outrider.runtime.bundle import (
    MAX_FILES,
    CandidateRecord,
    FileEntry,
    GoalRecord,
    Manifest,
    Measurement,
    Parity,
    TensorSpec,
    archive,
    checks,
    decode_manifest,
    decode_npy,
    encode_npy,
    file_entry,
    open_bundle,
    reader,
    write_bundle,
)
from outrider.runtime.features.plan import FeaturePlan, RawColumn

Parts = tuple[Manifest, dict[str, bytes]]
MakeParts = Callable[..., Parts]
replace = msgspec.structs.replace


def pack(path: Path, files: dict[str, bytes]) -> Path:
    """An archive in the right form, whatever it holds."""
    path.write_bytes(b"".join(archive.pack(files)))
    return path


def encoded(manifest: Manifest) -> bytes:
    return msgspec.json.encode(manifest)


# Round trip ---------------------------------------------------------------------------------------------------

words = st.text("abcdefgh0123456789._-", min_size=1, max_size=12).map("x".__add__)
texts = st.text(max_size=20).filter(lambda text: not any(0xD800 <= ord(c) < 0xE000 for c in text))
numbers = st.floats(allow_nan=False, allow_infinity=False, width=64)
counts = st.integers(0, 2**53)
extra_files = st.dictionaries(
    st.lists(words, min_size=1, max_size=3).map(lambda parts: "extra/" + "/".join(parts)), st.binary(max_size=200)
)
measurements = st.builds(
    Measurement, batch=counts, threads=counts, ns_per_row_min=numbers, ns_per_row_median=numbers, repeats=counts
)
parities = st.builds(
    Parity,
    rows=counts,
    evidence=st.sampled_from(["calibration", "thresholds", "random"]),
    max_abs_error=numbers,
    max_rel_error=numbers,
    atol=numbers,
    rtol=numbers,
    passed=st.booleans(),
)
candidates = st.builds(
    CandidateRecord,
    id=words,
    backend=texts,
    precision=texts,
    options=st.dictionaries(texts, texts, max_size=3),
    outcome=st.sampled_from(["chosen", "shipped", "rejected", "failed", "not eligible"]),
    reason=texts,
    rank=st.none(),
    size=st.none() | counts,
    measured=st.lists(measurements, max_size=2).map(tuple),
    parity=st.none() | parities,
)
goals = st.builds(
    GoalRecord,
    text=texts,
    metric=texts,
    relation=st.sampled_from(["<=", ">="]),
    bound=numbers,
    unit=texts,
    measured=st.none() | numbers,
    met=st.none() | st.booleans(),
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    extra=extra_files,
    tried=st.lists(candidates, max_size=4, unique_by=lambda candidate: candidate.id),
    stated=st.lists(goals, max_size=3),
    tools=st.dictionaries(texts, texts, max_size=3),
    library=st.binary(max_size=500),
)
def test_round_trip(
    make_parts: MakeParts,
    tmp_path: Path,
    *,
    extra: dict[str, bytes],
    tried: list[CandidateRecord],
    stated: list[GoalRecord],
    tools: dict[str, str],
    library: bytes,
) -> None:
    paths = list(extra)
    for path in paths:  # a folder cannot be a file as well; archives allow it, so the test keeps clear of it
        if any(other.startswith(f"{path}/") for other in paths):
            extra.pop(path)
    manifest, files = make_parts(library)
    files |= extra
    manifest = replace(
        manifest,
        files=(*manifest.files, *(file_entry(path, data) for path, data in extra.items())),
        candidates=(*manifest.candidates, *tried),
        goals=tuple(stated),
        tools=tools,
    )
    path = tmp_path / "x.orb"
    digest = write_bundle(path, manifest, files)
    bundle = open_bundle(path)
    assert bundle.manifest == manifest
    assert {name: bundle.read(name) for name in bundle.files()} == files
    assert (bundle.sha256, bundle.size) == (digest, path.stat().st_size)
    assert write_bundle(tmp_path / "y.orb", bundle.manifest, dict(reversed(files.items()))) == digest


def test_any_zip_tool_opens_it(make_parts: MakeParts, tmp_path: Path) -> None:
    manifest, files = make_parts()
    write_bundle(tmp_path / "x.orb", manifest, files)
    with zipfile.ZipFile(tmp_path / "x.orb") as opened:
        assert opened.testzip() is None
        assert opened.namelist() == ["manifest.json", *sorted(files)]
        assert {info.date_time for info in opened.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert opened.read("artifacts/k2/mean.so") == files["artifacts/k2/mean.so"]


def test_writing_leaves_nothing_half_done(make_parts: MakeParts, tmp_path: Path) -> None:
    manifest, files = make_parts()
    target = tmp_path / "x.orb"
    target.mkdir()
    with pytest.raises(errors.StorageError):
        write_bundle(target, manifest, files)
    with pytest.raises(errors.StorageError):
        write_bundle(tmp_path / "absent" / "x.orb", manifest, files)
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_said_to_be_full(make_parts: MakeParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(errors.StorageFullError):
        write_bundle(tmp_path / "x.orb", *make_parts())
    assert not list(tmp_path.iterdir())


def test_files_must_be_those_of_the_manifest(make_parts: MakeParts, tmp_path: Path) -> None:
    manifest, files = make_parts()
    with pytest.raises(errors.ExtraFileError):
        write_bundle(tmp_path / "x.orb", manifest, files | {"more": b""})
    with pytest.raises(errors.DigestMismatchError):
        write_bundle(tmp_path / "x.orb", manifest, files | {"provenance.json": b"[]"})
    files.pop("provenance.json")
    with pytest.raises(errors.MissingFileError):
        write_bundle(tmp_path / "x.orb", manifest, files)


def test_a_file_that_changes_after_opening_is_noticed(make_parts: MakeParts, tmp_path: Path) -> None:
    manifest, files = make_parts()
    path = tmp_path / "x.orb"
    write_bundle(path, manifest, files)
    bundle = open_bundle(path)
    path.write_bytes(path.read_bytes().replace(b"not a library", b"now a library"))
    with pytest.raises(errors.DigestMismatchError):
        bundle.read("artifacts/k2/mean.so")
    with pytest.raises(errors.NotFoundError):
        bundle.read("absent")


# Each its own error ---------------------------------------------------------------------------------------------


def test_the_digest_vouches_for_the_very_manifest_that_was_read(
    make_parts: MakeParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest that is there only until it was read must not be taken for the signed one."""
    manifest, files = make_parts()
    names = [msgspec.structs.replace(manifest.source, description=text * 20_000) for text in ("signed", "forged")]
    signed, forged = (msgspec.structs.replace(manifest, source=source) for source in names)
    write_bundle(tmp_path / "signed.orb", signed, files)
    path = tmp_path / "x.orb"
    write_bundle(path, forged, files)
    compare = reader._compare

    def swap(*arguments: Any) -> None:
        path.write_bytes((tmp_path / "signed.orb").read_bytes())
        compare(*arguments)

    monkeypatch.setattr(reader, "_compare", swap)
    with pytest.raises(errors.BadBundleError, match="changed while it was read"):
        open_bundle(path)
    monkeypatch.undo()
    assert open_bundle(path).manifest == signed
    assert open_bundle(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_unknown_schema_comes_before_anything_else(make_parts: MakeParts, tmp_path: Path) -> None:
    path = pack(tmp_path / "x.orb", {"manifest.json": b'{"schema": 99, "wholly": "different"}'})
    with pytest.raises(errors.UnknownSchemaError, match="99"):
        open_bundle(path)


def test_missing_file(make_parts: MakeParts, tmp_path: Path) -> None:
    manifest, files = make_parts()
    files.pop("golden/outputs/score.npy")
    with pytest.raises(errors.MissingFileError, match="score"):
        open_bundle(pack(tmp_path / "x.orb", {"manifest.json": encoded(manifest), **files}))
    with pytest.raises(errors.MissingFileError, match=r"manifest\.json"):
        open_bundle(pack(tmp_path / "y.orb", files))


def test_extra_file(make_parts: MakeParts, tmp_path: Path) -> None:
    manifest, files = make_parts()
    content = {"manifest.json": encoded(manifest), **files, "zzz": b"hello"}
    with pytest.raises(errors.ExtraFileError, match="zzz"):
        open_bundle(pack(tmp_path / "x.orb", content))


def test_wrong_digest(make_parts: MakeParts, tmp_path: Path) -> None:
    manifest, files = make_parts()
    files["artifacts/k2/mean.so"] = b"NOT a library"
    with pytest.raises(errors.DigestMismatchError, match=r"mean\.so"):
        open_bundle(pack(tmp_path / "x.orb", {"manifest.json": encoded(manifest), **files}))
    files["artifacts/k2/mean.so"] = b"shorter"
    with pytest.raises(errors.DigestMismatchError, match="7 bytes"):
        open_bundle(pack(tmp_path / "x.orb", {"manifest.json": encoded(manifest), **files}))


def test_a_flipped_byte_in_an_artifact(make_parts: MakeParts, tmp_path: Path) -> None:
    path = tmp_path / "x.orb"
    write_bundle(path, *make_parts())
    data = bytearray(path.read_bytes())
    data[data.index(b"not a library")] ^= 1
    path.write_bytes(data)
    with pytest.raises(errors.DigestMismatchError, match=r"mean\.so"):
        open_bundle(path)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../up",
        "a/../../b",
        "a//b",
        "./a",
        "a/",
        "a\\b",
        "C:x",
        "a\nb",
        "",
        "a\x00b",
        "é" * 200,
        "\ud800",
    ],
)
def test_unsafe_paths(make_parts: MakeParts, tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.UnsafePathError):
        archive.check_path(path)
    if "\ud800" not in path:
        monkeypatch.setattr(archive, "check_path", lambda _: None)
        pack(tmp_path / "x.orb", {path: b"hello"})
        monkeypatch.undo()
        with pytest.raises(errors.BadBundleError):
            open_bundle(tmp_path / "x.orb")


def test_unsafe_paths_in_the_manifest(make_parts: MakeParts) -> None:
    manifest, _ = make_parts()
    entry = FileEntry(path="../x", size=0, sha256="0" * 64)
    with pytest.raises(errors.UnsafePathError):
        decode_manifest(encoded(replace(manifest, files=(*manifest.files, entry))))


def zip_with(path: Path, entries: list[tuple[zipfile.ZipInfo, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        for info, data in entries:
            out.writestr(info, data)
    return path


def info(name: str, method: int = zipfile.ZIP_STORED, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.compress_type = method
    made.external_attr = mode << 16
    return made


def test_a_zip_bomb_is_refused_by_its_compression(make_parts: MakeParts, tmp_path: Path) -> None:
    bomb = zip_with(tmp_path / "x.orb", [(info("manifest.json", zipfile.ZIP_DEFLATED), b"0" * 10_000_000)])
    assert bomb.stat().st_size < 20_000
    with pytest.raises(errors.BundleTooLargeError, match="compressed"):
        open_bundle(bomb)


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.orb", {"a": b"hello", "b": b"hello"})
    data = bytearray(path.read_bytes())
    second = data.rindex(b"PK\x01\x02")
    struct.pack_into("<I", data, second + 42, 0)  # the second entry claims the first one's bytes
    path.write_bytes(data)
    with pytest.raises(errors.BundleTooLargeError, match="overlaps"):
        open_bundle(path)


def test_declared_sizes_are_not_trusted(tmp_path: Path) -> None:
    for size, kind in ((1 << 29, errors.BadBundleError), (0xFFFFFFFF, errors.BundleTooLargeError)):
        path = pack(tmp_path / "x.orb", {"a": b"hello"})
        data = bytearray(path.read_bytes())
        for signature, at in ((b"PK\x03\x04", 18), (b"PK\x01\x02", 20)):
            struct.pack_into("<II", data, data.index(signature) + at, size, size)
        path.write_bytes(data)
        with pytest.raises(kind):
            open_bundle(path)


def test_too_many_files_and_too_long_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(errors.BundleTooLargeError, match="over the limit"):
        open_bundle(pack(tmp_path / "x.orb", {f"{i:05}": b"" for i in range(MAX_FILES + 1)}))
    with pytest.raises(errors.BundleTooLargeError, match="manifest"):
        open_bundle(pack(tmp_path / "y.orb", {"manifest.json": b" " * (checks.MAX_MANIFEST_BYTES + 1)}))


def test_a_file_over_the_limit(tmp_path: Path, make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.orb"
    write_bundle(path, *make_parts())
    monkeypatch.setattr(archive, "MAX_BUNDLE_BYTES", path.stat().st_size - 1)
    with pytest.raises(errors.BundleTooLargeError):
        open_bundle(path)
    monkeypatch.undo()
    monkeypatch.setattr(archive, "MAX_FILE_BYTES", 100)
    with pytest.raises(errors.BundleTooLargeError):
        open_bundle(path)


def test_links_duplicates_and_foreign_zips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.UnsafePathError, match="link"):
        open_bundle(zip_with(tmp_path / "x.orb", [(info("manifest.json", mode=stat.S_IFLNK | 0o777), b"/etc/passwd")]))
    with pytest.raises(errors.BadBundleError, match="form of a bundle"):
        open_bundle(zip_with(tmp_path / "x.orb", [(dated_info("manifest.json"), b"{}")]))
    with pytest.warns(UserWarning, match="Duplicate"):
        zip_with(tmp_path / "y.orb", [(info("a"), b"1"), (info("a"), b"2")])
    with pytest.raises(errors.BadBundleError):
        open_bundle(tmp_path / "y.orb")
    one = b"".join(archive.pack({"a": b"1", "b": b"2"}))
    (tmp_path / "z.orb").write_bytes(one.replace(b"b", b"a"))
    with pytest.raises(errors.BadBundleError, match="twice"):
        open_bundle(tmp_path / "z.orb")


def dated_info(name: str) -> zipfile.ZipInfo:
    made = info(name)
    made.date_time = (2024, 5, 6, 7, 8, 10)
    return made


def test_truncation_and_trailing_bytes(make_parts: MakeParts, tmp_path: Path) -> None:
    path = tmp_path / "x.orb"
    write_bundle(path, *make_parts())
    data = path.read_bytes()
    for cut in (0, 3, 21, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(errors.BadBundleError):
            open_bundle(path)
    for wrong in (data + b"\0", b"\0" + data, data + data):
        path.write_bytes(wrong)
        with pytest.raises(errors.BadBundleError):
            open_bundle(path)


def test_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFoundError):
        open_bundle(tmp_path / "absent.orb")
    with pytest.raises(errors.NotFoundError):
        open_bundle(tmp_path)


def test_files_out_of_order(make_parts: MakeParts, tmp_path: Path) -> None:
    manifest, files = make_parts()
    with pytest.raises(errors.BadBundleError, match="order"):
        open_bundle(pack(tmp_path / "x.orb", {"manifest.json": encoded(manifest), **dict(reversed(files.items()))}))
    with pytest.raises(errors.BadBundleError, match="first"):
        open_bundle(pack(tmp_path / "x.orb", {**files, "manifest.json": encoded(manifest)}))


# The manifest against itself ------------------------------------------------------------------------------------


def contradictions() -> dict[str, Callable[[Manifest], Manifest]]:
    def signature(**changes: Any) -> Callable[[Manifest], Manifest]:
        return lambda m: replace(m, signature=replace(m.signature, **changes))

    def artifact(**changes: Any) -> Callable[[Manifest], Manifest]:
        return lambda m: replace(m, artifacts=(replace(m.artifacts[0], **changes),))

    def golden(**changes: Any) -> Callable[[Manifest], Manifest]:
        return lambda m: replace(m, golden=replace(m.golden, **changes))

    def tensor(**changes: Any) -> Callable[[Manifest], Manifest]:
        return lambda m: signature(inputs=(replace(m.signature.inputs[0], **changes),))(m)

    return {
        "no artifact": lambda m: replace(m, artifacts=()),
        "no input": signature(inputs=()),
        "predict is no output": signature(predict="absent"),
        "no class labels to derive the label from": signature(class_labels=()),
        "a feature twice": signature(feature_names=("a", "a", "b")),
        "no name": tensor(name=""),
        "a size of zero": tensor(shape=(None, 0)),
        "no batch axis": tensor(shape=()),
        "no rows for code that takes rows": lambda m: replace(
            m, signature=replace(tensor(shape=())(m).signature, batched=False)
        ),
        "artifact input unknown": artifact(inputs=("other",)),
        "artifact output unknown": artifact(outputs=("score", "other")),
        "artifact computes too little": artifact(outputs=("label",)),
        "columns of a matrix that nothing computes": lambda m: signature(
            outputs=(*m.signature.outputs, TensorSpec(name="probabilities_0", dtype="float32", shape=(None, 1)))
        )(m),
        "artifact output twice": artifact(outputs=("score", "score")),
        "artifact of no candidate": artifact(candidate="absent"),
        "artifact twice": lambda m: replace(m, artifacts=m.artifacts * 2),
        "artifact and file disagree": lambda m: replace(
            m, files=(*m.files, FileEntry(path=m.artifacts[0].path, size=1, sha256="1" * 64))
        ),
        "candidate unranked": lambda m: replace(m, candidates=(replace(m.candidates[0], rank=None),)),
        "rank twice": lambda m: replace(m, candidates=(*m.candidates, replace(m.candidates[0], id="other"))),
        "rank zero": lambda m: replace(m, candidates=(replace(m.candidates[0], rank=0),)),
        "candidate twice": lambda m: replace(m, candidates=(*m.candidates, replace(m.candidates[0], rank=None))),
        "file twice": lambda m: replace(m, files=m.files * 2),
        "manifest lists itself": lambda m: replace(
            m, files=(*m.files, FileEntry(path="manifest.json", size=1, sha256="1" * 64))
        ),
        "baseline not a file": lambda m: replace(m, baseline="baseline.msgpack"),
        "provenance not a file": lambda m: replace(m, provenance="other.json"),
        "no golden rows": golden(rows=0),
        "golden input unknown": golden(inputs={"other": "golden/inputs/features.npy"}),
        "golden output unknown": golden(outputs={"other": "golden/outputs/score.npy"}),
        "golden file absent": golden(outputs={"score": "golden/outputs/other.npy"}),
        "golden raw without a plan": golden(raw={"amt": "golden/outputs/score.npy"}),
        "negative tolerance": golden(atol=-1.0),
        "plan of another width": lambda m: replace(
            m, features=FeaturePlan(columns=(RawColumn(name="a", kind="number"),), steps=(), outputs=("a",))
        ),
    }


@pytest.mark.parametrize("what", contradictions())
def test_contradictions_are_refused(make_parts: MakeParts, tmp_path: Path, what: str) -> None:
    manifest, files = make_parts()
    wrong = contradictions()[what](manifest)
    with pytest.raises(errors.BadBundleError):
        decode_manifest(encoded(wrong))
    with pytest.raises(errors.BadBundleError):
        write_bundle(tmp_path / "x.orb", wrong, files)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b'{"schema": "1"}', b"[" * 100_000, b'{"schema": 1}', b"\xff", b'{"schema":1e400}'],
)
def test_a_manifest_that_does_not_decode(data: bytes) -> None:
    with pytest.raises(errors.BadBundleError):
        decode_manifest(data)


def test_values_that_json_cannot_hold_are_refused(make_parts: MakeParts, tmp_path: Path) -> None:
    manifest, files = make_parts()
    goal = GoalRecord(text="t", metric="m", relation="<=", bound=float("nan"), unit="ms", measured=None, met=None)
    with pytest.raises(errors.BadBundleError):
        write_bundle(tmp_path / "x.orb", replace(manifest, goals=(goal,)), files)


def test_unknown_fields_are_refused(make_parts: MakeParts) -> None:
    data = msgspec.json.decode(encoded(make_parts()[0]))
    data["surprise"] = 1
    with pytest.raises(errors.BadBundleError, match="surprise"):
        decode_manifest(msgspec.json.encode(data))


# Arrays ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3), np.float32),
        np.array(["a", "bc"]),
        np.asfortranarray(np.eye(3)),
        np.arange(3, dtype=">i8"),
        np.ones((2, 1, 3, 4), np.uint8),
        np.array(1.5),
        np.array([True, False]),
    ],
)
def test_arrays_round_trip(array: np.ndarray[Any, Any]) -> None:
    found = decode_npy(encode_npy(array))
    assert found.dtype == array.dtype.newbyteorder("<")
    assert np.array_equal(found, array)


def test_arrays_that_lie(tmp_path: Path) -> None:
    good = encode_npy(np.arange(6, dtype=np.float32).reshape(2, 3))
    huge = good.replace(b"(2, 3)", b"(2, 999999999999999)".ljust(6)[:6])
    for wrong in (b"", good[:20], good[:-1], good + b"x", huge, good.replace(b"<f4", b"|O8"), b"\x93NUMPY\x01\x00"):
        with pytest.raises(errors.BadBundleError):
            decode_npy(wrong)
    with pytest.raises(errors.BadDataError):
        encode_npy(np.array([object()]))


@settings(deadline=None, max_examples=200)
@given(position=st.integers(0, 127), value=st.integers(0, 255))
def test_a_damaged_array_header_is_a_clear_error(position: int, value: int) -> None:
    data = bytearray(encode_npy(np.arange(6, dtype=np.float32)))
    data[position] = value
    with contextlib.suppress(errors.BadBundleError):
        decode_npy(bytes(data))


def test_sizes_that_an_engine_is_told_may_be_free(make_parts: MakeParts, tmp_path: Path) -> None:
    """An image of any height and width, for ONNX Runtime; a native artifact knows the batch only."""
    manifest, files = make_parts()
    image = TensorSpec(name="features", dtype="float32", shape=(1, 3, None, None))
    signature = replace(manifest.signature, inputs=(image,), batched=False)
    (artifact,) = manifest.artifacts
    free = replace(manifest, signature=signature, artifacts=(replace(artifact, format="onnx"),))
    write_bundle(tmp_path / "free.orb", free, files)
    assert open_bundle(tmp_path / "free.orb").manifest.signature.inputs == (image,)
    with pytest.raises(errors.BadBundleError, match="has another that is free"):
        write_bundle(tmp_path / "native.orb", replace(manifest, signature=signature), files)
