"""Sessions: what load checks, what run and predict accept, and what they say where it does not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from outrider.runtime import Session, errors, load
from outrider.runtime.bundle import (
    ArtifactEntry,
    CandidateRecord,
    Manifest,
    Signature,
    TensorSpec,
    file_entry,
    open_bundle,
    write_bundle,
)
from outrider.runtime.features.plan import FeaturePlan, RawColumn
from outrider.runtime.target import Requirements
from outrider.runtime.tensors import check_inputs, class_labels, derive, derive_label
from outrider.runtime.trust import TrustStore, generate_key, sign_bundle
from outrider.targets import get_target

MakeBundle = Callable[..., Path]
Parts = tuple[Manifest, dict[str, bytes]]
replace = msgspec.structs.replace
ROWS = np.array([[0, 0, 3], [3, 3, 3], [1, 2, -3]], np.float32)


class Recorder:
    """A tap that keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[NDArray[np.float32], Mapping[str, NDArray[Any]]]] = []

    def observe(self, features: NDArray[np.float32], outputs: Mapping[str, NDArray[Any]]) -> None:
        self.seen.append((features, outputs))


def test_run_and_predict(make_bundle: MakeBundle) -> None:
    with load(make_bundle()) as session:
        outputs = session.run({"features": ROWS})
        assert list(outputs) == ["score", "label"]
        assert outputs["score"].tolist() == [1.0, 3.0, 0.0]
        assert outputs["label"].tolist() == ["bad", "bad", "good"]
        assert session.predict(ROWS).tolist() == [1.0, 3.0, 0.0]
        assert session.predict(ROWS[:1]).tolist() == [1.0]
        assert session.signature.predict == "score"
        assert session.manifest.name == "mean"
        assert "in use, called by cffi" in session.explain()
        assert session.artifact.candidate == "k2"


def test_layouts_and_empty_batches(make_bundle: MakeBundle) -> None:
    with load(make_bundle()) as session:
        wide = np.repeat(ROWS, 2, axis=1)[:, ::2]
        assert not wide.flags.c_contiguous
        assert session.predict(wide).tolist() == [1.0, 3.0, 0.0]
        assert session.predict(wide[:1]).tolist() == [1.0]
        assert session.predict(np.asfortranarray(ROWS)).tolist() == [1.0, 3.0, 0.0]
        empty = session.run({"features": ROWS[:0]})
        assert (empty["score"].shape, empty["label"].shape) == ((0,), (0,))
        frozen = ROWS.copy()
        frozen.flags.writeable = False
        assert session.predict(frozen).tolist() == [1.0, 3.0, 0.0]


def test_results_do_not_share_memory(make_bundle: MakeBundle) -> None:
    with load(make_bundle()) as session:
        first = session.predict(ROWS[:1])
        session.predict(ROWS[1:2])
        assert first.tolist() == [1.0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (ROWS.astype(np.float64), r"'features' is float64; expected float32 of shape \(n, 3\).*astype\(np.float32\)"),
        (ROWS.astype(">f4"), "expected float32"),
        (ROWS[0], r"shape \(3,\); expected float32 of shape \(n, 3\).*reshape\(1, -1\)"),
        (ROWS[:, :2], r"shape \(3, 2\).*columns: a, b, c"),
        (ROWS[None], r"shape \(1, 3, 3\)"),
        (ROWS.tolist(), "is a list"),
        (None, "is a NoneType"),
        (np.array("x"), "expected float32"),
    ],
)
def test_what_does_not_fit_is_named(make_bundle: MakeBundle, value: Any, message: str) -> None:
    with load(make_bundle()) as session:
        for call in (session.predict, lambda x: session.run({"features": x})):
            with pytest.raises(errors.BadDataError, match=message):
                call(value)


def test_wrong_names(make_bundle: MakeBundle) -> None:
    with load(make_bundle()) as session:
        for wrong in ({}, {"other": ROWS}, {"features": ROWS, "other": ROWS}):
            with pytest.raises(errors.BadDataError, match="expected features"):
                session.run(wrong)
        with pytest.raises(errors.BadDataError, match="arrays by name"):
            session.run(ROWS)  # type: ignore[arg-type]


def test_frames_are_taken_by_name(make_bundle: MakeBundle) -> None:
    frame = pd.DataFrame(ROWS, columns=["a", "b", "c"])
    with load(make_bundle()) as session:
        assert session.predict(frame).tolist() == [1.0, 3.0, 0.0]
        assert session.predict(frame[["c", "a", "b"]]).tolist() == session.predict(frame).tolist()
        with pytest.raises(errors.BadDataError, match="lacks c and has unknown d"):
            session.predict(frame.rename(columns={"c": "d"}))
        with pytest.raises(errors.BadDataError, match="twice"):
            session.predict(pd.DataFrame(np.ones((1, 4), np.float32), columns=["a", "b", "c", "c"]))
        with pytest.raises(errors.BadDataError, match="float64"):
            session.predict(frame.astype(np.float64))


def test_the_tap_sees_every_prediction(make_bundle: MakeBundle) -> None:
    tap = Recorder()
    with load(make_bundle(), tap=tap) as session:
        session.predict(ROWS[:1])
        session.run({"features": ROWS})
    assert [features.shape for features, _ in tap.seen] == [(1, 3), (3, 3)]
    assert list(tap.seen[1][1]) == ["score", "label"]


# Raw data -------------------------------------------------------------------------------------------------------


@pytest.fixture
def raw_session(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> Session:
    plan = FeaturePlan(
        columns=tuple(RawColumn(name=name, kind="number") for name in ("p", "q", "r")),
        steps=(),
        outputs=("p", "q", "r"),
    )

    def compute(given: FeaturePlan, raw: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        assert given == plan
        return np.stack([raw[name] for name in given.outputs], axis=1).astype(np.float32)

    monkeypatch.setattr("outrider.runtime.features.compute", compute, raising=False)
    return load(make_bundle(features=plan))


def test_raw_columns_go_through_the_plan(raw_session: Session) -> None:
    raw = {name: ROWS[:, i].astype(np.float64) for i, name in enumerate(("p", "q", "r"))}
    assert raw_session.run(raw)["score"].tolist() == [1.0, 3.0, 0.0]
    assert raw_session.run({"features": ROWS})["score"].tolist() == [1.0, 3.0, 0.0]
    assert raw_session.predict(pd.DataFrame(raw)).tolist() == [1.0, 3.0, 0.0]
    raw_session.close()


def test_raw_columns_are_never_mixed_with_inputs(raw_session: Session) -> None:
    column = np.zeros(3)
    cases = {
        "lacks r": {"p": column, "q": column},
        "has unknown z": {"p": column, "q": column, "r": column, "z": column},
        "expected either features or the raw columns": {"features": ROWS, "p": column},
        "got nothing": {},
    }
    for message, inputs in cases.items():
        with pytest.raises(errors.BadDataError, match=message):
            raw_session.run(inputs)
    raw_session.close()


def test_without_a_plan_raw_data_is_refused(make_bundle: MakeBundle) -> None:
    with load(make_bundle()) as session, pytest.raises(errors.BadDataError, match="no feature plan"):
        session.features({"p": np.zeros(3)})


# Load -----------------------------------------------------------------------------------------------------------


def needing(entry: ArtifactEntry, **needs: Any) -> ArtifactEntry:
    return replace(entry, needs=Requirements(**needs))


def rewrite(path: Path, change: Callable[[Manifest], Manifest], more: Mapping[str, bytes] | None = None) -> None:
    """Write a bundle again with another manifest, and the files that it names."""
    bundle = open_bundle(path)
    manifest = change(bundle.manifest)
    files = {name: bundle.read(name) for name in bundle.files()} | dict(more or {})
    wanted = {entry.path for entry in (*manifest.artifacts, *manifest.files)}
    write_bundle(path, manifest, {name: data for name, data in files.items() if name in wanted})


def test_a_bundle_for_another_target(make_bundle: MakeBundle) -> None:
    foreign = get_target("aarch64" if get_target("host").arch != "aarch64" else "riscv64")
    path = make_bundle()
    rewrite(
        path,
        lambda m: replace(m, target=foreign.name, artifacts=(needing(m.artifacts[0], arch=foreign.arch),)),
    )
    with pytest.raises(errors.TargetMismatchError, match=f"is for {foreign.name} and cannot run on host") as caught:
        load(path)
    assert (caught.value.reason, caught.value.exit_code) == ("arch", 5)
    load(path, target=foreign).close()


def test_the_best_artifact_that_runs_is_taken(make_bundle: MakeBundle) -> None:
    path = make_bundle()
    entry = open_bundle(path).manifest.artifacts[0]
    broken = file_entry("artifacts/broken/x.so", b"no library")
    second = replace(entry, path=broken.path, size=broken.size, sha256=broken.sha256, candidate="broken")
    first = replace(needing(entry, features=("avx9000",)), path="artifacts/wide/x.so", candidate="wide")
    more = {broken.path: b"no library", first.path: open_bundle(path).read(entry.path)}

    def candidates(manifest: Manifest, *names: str) -> tuple[CandidateRecord, ...]:
        return tuple(replace(manifest.candidates[0], id=name, rank=rank) for rank, name in enumerate(names, 1))

    rewrite(
        path,
        lambda m: replace(m, artifacts=(entry, second, first), candidates=candidates(m, "wide", "broken", "k2")),
        more,
    )
    with load(path) as session:
        assert session.predict(ROWS).tolist() == [1.0, 3.0, 0.0]
        text = session.explain()
    assert text.index("wide: native") < text.index("broken: native") < text.index("k2: native")
    assert "isa: needs avx9000" in text
    assert "cannot be loaded" in text
    rewrite(path, lambda m: replace(m, artifacts=(second, first)))
    with pytest.raises(errors.EngineFault, match="cannot be loaded"):
        load(path)


def test_a_missing_engine_is_named(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_bundle()
    rewrite(
        path,
        lambda m: replace(m, artifacts=(replace(m.artifacts[0], format="onnx", package="onnxruntime"),)),
    )
    monkeypatch.setattr("outrider.runtime.session.available", lambda kind: kind == "native")
    with pytest.raises(errors.EngineMissingError, match="pip install onnxruntime") as caught:
        load(path)
    assert caught.value.reason == "engine"


def test_load_checks_the_signature_when_asked(make_bundle: MakeBundle, tmp_path: Path) -> None:
    path = make_bundle()
    key, other = generate_key(), generate_key("p256")
    trust = TrustStore({TrustStore.FOLDERS["bundle"]: [key.public]})
    with pytest.raises(errors.UnsignedError):
        load(path, trust=trust)
    sign_bundle(path, name="mean", version="1", target="host", key=other)
    with pytest.raises(errors.UnknownKeyError):
        load(path, trust=trust)
    sign_bundle(path, name="mean", version="2", target="host", key=key)
    with pytest.raises(errors.BadSignatureError, match="mean 2"):
        load(path, trust=trust)
    sign_bundle(path, name="mean", version="1", target="host", key=key)
    trust.save(tmp_path / "trust")
    load(path, trust=tmp_path / "trust").close()
    make_bundle("other.orb", version="2")
    (tmp_path / "other.orb.dsse").write_bytes((tmp_path / "mean.orb.dsse").read_bytes())
    with pytest.raises(errors.DigestMismatchError):
        load(tmp_path / "other.orb", trust=trust)


def test_a_closed_session_says_so(make_bundle: MakeBundle) -> None:
    session = load(make_bundle())
    session.close()
    session.close()
    for rows in (ROWS, ROWS[:1]):
        with pytest.raises(errors.EngineFault, match="closed"):
            session.predict(rows)


# Arrays against signatures --------------------------------------------------------------------------------------


def labelled(*labels: int | str) -> Signature:
    return Signature(inputs=(), outputs=(), predict="score", class_labels=labels)


def test_labels_are_derived() -> None:
    half = np.array([0.4, 0.5, np.nextafter(np.float32(0.5), np.float32(1))], np.float32)
    assert derive_label({"score": half}, labelled("no", "yes")).tolist() == ["no", "no", "yes"]
    assert derive_label({"score": half[:, None]}, labelled(3, 9)).tolist() == [3, 3, 9]
    table = np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]], np.float32)
    assert derive_label({"score": half, "probabilities": table}, labelled(1, 2, 3)).tolist() == [2, 1]
    assert derive_label({"probabilities": np.ones((2, 1), np.float32)}, labelled("only")).tolist() == ["only"] * 2
    assert class_labels(labelled(1, 2)).dtype == np.int64
    assert class_labels(labelled("a", 2)).dtype == object


def of_targets(*columns: int, whole: int) -> Signature:
    shapes = {"probabilities": whole, **{f"probabilities_{i}": count for i, count in enumerate(columns)}}
    specs = tuple(TensorSpec(name=name, dtype="float32", shape=(None, count)) for name, count in shapes.items())
    return Signature(inputs=(), outputs=specs, predict="probabilities")


def test_the_columns_of_each_target_are_derived() -> None:
    signature = of_targets(2, 1, whole=3)
    table = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert derive("probabilities_0", {"probabilities": table}, signature).tolist() == [[0, 1], [3, 4]]
    assert derive("probabilities_1", {"probabilities": table}, signature).tolist() == [[2], [5]]
    assert signature.target_columns() == {"probabilities_0": slice(0, 2), "probabilities_1": slice(2, 3)}
    assert of_targets(2, 2, whole=3).target_columns() == {}
    assert of_targets(whole=3).target_columns() == {}


def test_several_inputs() -> None:
    signature = Signature(
        inputs=(
            TensorSpec(name="image", dtype="uint8", shape=(None, 2, 2)),
            TensorSpec(name="text", dtype="string", shape=(None,)),
        ),
        outputs=(),
        predict="y",
    )
    image, text = np.zeros((2, 2, 2), np.uint8), np.array(["a", "b"])
    checked = check_inputs({"text": text, "image": image}, signature)
    assert list(checked) == ["image", "text"]
    assert checked["image"] is image
    assert checked["text"].dtype == object
    with pytest.raises(errors.BadDataError, match="image has 2, text has 1"):
        check_inputs({"text": text[:1], "image": image}, signature)
    with pytest.raises(errors.BadDataError, match="text"):
        check_inputs({"text": np.zeros(2), "image": image}, signature)
