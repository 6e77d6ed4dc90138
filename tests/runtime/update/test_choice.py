"""Bundles of several artifacts: each is tried on this machine, the fastest that passes is kept, and the fleet told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import UNSET

from outrider.runtime import choice as choices
from outrider.runtime import errors, load, prober
from outrider.runtime.bundle import encode_npy, file_entry, open_bundle
from outrider.runtime.choice import MARGIN, Choice, choice_of, fastest, recall_choice, write_choice
from outrider.runtime.messages import ArtifactTrial, Event, Health, decode
from outrider.runtime.models import Models
from outrider.runtime.probe import host_target
from outrider.runtime.prober import ProbeResult, probe
from outrider.runtime.serving import Serving
from outrider.runtime.telemetry import Telemetry


def _never() -> bool:
    return False


def trial(p50_ms: float | None, *, passed: bool = True) -> ArtifactTrial:
    return ArtifactTrial(candidate="c", passed=passed, p50_ms=p50_ms)


@pytest.mark.parametrize(
    ("trials", "kept"),
    [
        ([trial(1.0), trial(0.9)], 1),
        ([trial(1.0), trial(MARGIN + 0.01)], 0),
        ([trial(1.0), trial(0.9), trial(0.5)], 2),
        ([trial(1.0, passed=False), trial(3.0), trial(2.95)], 1),
        ([trial(None, passed=False), trial(0.1, passed=False)], None),
        ([], None),
    ],
)
def test_the_fastest_is_kept_unless_the_first_is_about_as_fast(
    trials: Sequence[ArtifactTrial], kept: int | None
) -> None:
    assert fastest(trials) == kept


# The probe, in real children ---------------------------------------------------------------------------------------


def probed(staged: Any, made: Any, health: Health | None = None, **options: Any) -> ProbeResult:
    bundle, trust = staged(made)
    result = probe(bundle, trust, health or Health(), _never, **options)
    assert result is not None
    return result


@pytest.mark.system
@pytest.mark.parametrize("first", ["slow", "wrong", "crash"])
def test_the_first_of_two_is_no_good(
    fleet: Any, staged: Any, odd_libraries: Mapping[str, bytes], bad_libraries: Mapping[str, bytes], first: str
) -> None:
    made = fleet.bundle("1", several={first: {**odd_libraries, **bad_libraries}[first], "good": fleet.library})
    result = probed(staged, made)
    assert (result.passed, result.candidate, result.rows) == (True, "good", 3)
    assert result.sound == (("slow", "good") if first == "slow" else ("good",))
    other, good = result.trials
    assert (other.candidate, good.candidate) == (first, "good")
    assert (good.passed, good.kept, good.reason, good.detail) == (True, True, "", "")
    assert good.p50_ms is not None
    assert good.p99_ms is not None
    assert good.p50_ms <= good.p99_ms
    assert good.rss_bytes > 1 << 20
    assert not other.kept
    if first == "slow":
        assert other.p50_ms is not None
        assert other.p50_ms > good.p50_ms
    assert other.reason == {"slow": "", "wrong": "golden", "crash": "probe-crashed"}[first]
    assert {"slow": "", "wrong": "out of tolerance", "crash": "SIGSEGV"}[first] in other.detail


@pytest.mark.system
def test_none_of_them_passes(
    fleet: Any, staged: Any, odd_libraries: Mapping[str, bytes], bad_libraries: Mapping[str, bytes]
) -> None:
    several = {"wrong": odd_libraries["wrong"], "crash": bad_libraries["crash"]}
    result = probed(staged, fleet.bundle("1", several=several))
    assert (result.passed, result.reason, result.candidate, result.sound) == (False, "golden", "", ())
    assert "wrong: golden: score is out of tolerance" in result.detail
    assert "crash: probe-crashed: died of SIGSEGV" in result.detail
    assert [one.passed for one in result.trials] == [False, False]


@pytest.mark.parametrize(
    ("left_s", "count", "allowed"), [(240, 2, 120), (240, 9, 120), (120, 2, 105), (15, 1, 15), (20, 4, 5), (-1, 1, 0)]
)
def test_those_that_hang_leave_time_for_the_others(left_s: float, count: int, allowed: float) -> None:
    assert prober._allowance(left_s, count, 120.0) == allowed


@pytest.mark.system
def test_one_that_hangs_costs_only_its_time(
    fleet: Any, staged: Any, bad_libraries: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prober, "_allowance", lambda _left, count, _deadline: 2.0 if count == 2 else 60.0)
    result = probed(staged, fleet.bundle("1", several={"hang": bad_libraries["hang"], "good": fleet.library}))
    assert (result.passed, result.candidate) == (True, "good")
    assert [one.reason for one in result.trials] == ["probe-timeout", ""]


@pytest.mark.system
def test_what_this_machine_cannot_run_is_not_tried(fleet: Any, staged: Any, monkeypatch: Any) -> None:
    made_parts = fleet.make_parts

    def with_one_for_others(library: bytes, **changes: Any) -> Any:
        manifest, files = made_parts(library, **changes)
        (artifact,) = manifest.artifacts
        needs = msgspec.structs.replace(artifact.needs, features=("of-another-kind",))
        data = library + b"\0"
        other = open_entry(artifact, "other", data, needs)
        candidate = msgspec.structs.replace(manifest.candidates[0], id="other", rank=2)
        ordered = (candidate, *manifest.candidates)
        manifest = msgspec.structs.replace(manifest, artifacts=(artifact, other), candidates=ordered)
        return manifest, files | {other.path: data}

    monkeypatch.setattr(fleet, "make_parts", with_one_for_others)
    result = probed(staged, fleet.bundle("1"))
    assert (result.passed, result.candidate) == (True, "k2")
    assert [one.candidate for one in result.trials] == ["k2"]


def open_entry(artifact: Any, candidate: str, data: bytes, needs: Any) -> Any:
    entry = file_entry(f"artifacts/{candidate}/mean.so", data)
    return msgspec.structs.replace(
        artifact, path=entry.path, size=entry.size, sha256=entry.sha256, candidate=candidate, needs=needs
    )


@pytest.mark.system
def test_a_model_that_is_not_batched(fleet: Any, staged: Any, monkeypatch: Any) -> None:
    made_parts = fleet.make_parts
    calls = np.arange(12, dtype=np.float32).reshape(2, 2, 3)

    def unbatched(library: bytes, **changes: Any) -> Any:
        manifest, files = made_parts(library, **changes)
        replace, signature = msgspec.structs.replace, manifest.signature
        inputs = (replace(signature.inputs[0], shape=(2, 3)),)
        outputs = tuple(replace(spec, shape=(2,)) for spec in signature.outputs[:1])
        signature = replace(signature, inputs=inputs, outputs=outputs, class_labels=(), batched=False)
        files["golden/inputs/features.npy"] = encode_npy(calls)
        files["golden/outputs/score.npy"] = encode_npy(calls.mean(axis=2))
        golden = replace(manifest.golden, rows=2)
        return replace(manifest, signature=signature, golden=golden), files

    monkeypatch.setattr(fleet, "make_parts", unbatched)
    alone = probed(staged, fleet.bundle("1"))
    assert (alone.passed, alone.rows, alone.trials) == (True, 2, ())
    several = probed(staged, fleet.bundle("2", several={"a": fleet.library, "b": fleet.library}))
    assert (several.passed, several.rows, len(several.trials)) == (True, 2, 2)


# The choice on disk ------------------------------------------------------------------------------------------------


def test_a_choice_is_recalled(fleet: Any, staged: Any) -> None:
    bundle, _ = staged(fleet.bundle("1", several={"a": fleet.library, "b": fleet.library}))
    manifest = open_bundle(bundle).manifest
    assert recall_choice(bundle, "main", manifest) is None
    choice = choice_of(manifest, "b", ["a", "b"])
    assert choice == Choice(candidate="b", sound=("a", "b"), engines={})
    write_choice(bundle, "main", choice)
    assert recall_choice(bundle, "main", manifest) == choice
    assert recall_choice(bundle, "other", manifest) is None


def test_a_choice_is_dropped_with_another_engine(
    fleet: Any, staged: Any, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bundle, _ = staged(fleet.bundle("1", several={"a": fleet.library, "b": fleet.library}))
    manifest = open_bundle(bundle).manifest
    versions = {"onnx": "1.0"}
    monkeypatch.setattr(choices, "engine_versions", lambda _manifest: dict(versions))
    write_choice(bundle, "main", choice_of(manifest, "b", ["b"]))
    versions["onnx"] = "1.1"
    found = recall_choice(bundle, "main", manifest)
    assert found is not None
    assert (found.candidate, found.sound) == (None, ("b",))
    assert "onnx 1.0 → 1.1" in caplog.text


def test_a_choice_that_cannot_be_read(fleet: Any, staged: Any, caplog: pytest.LogCaptureFixture) -> None:
    bundle, _ = staged(fleet.bundle("1", several={"a": fleet.library, "b": fleet.library}))
    (bundle.parent / "choice-main.json").write_bytes(b"{")
    assert recall_choice(bundle, "main", open_bundle(bundle).manifest) is None
    assert "the ranks decide" in caplog.text


def test_engine_versions_are_those_of_packages(make_parts: Callable[..., Any]) -> None:
    from importlib.metadata import version

    manifest, _ = make_parts()
    assert choices.engine_versions(manifest) == {}
    artifacts = tuple(
        msgspec.structs.replace(manifest.artifacts[0], format=name) for name in ("onnx", "wasm", "unheard-of")
    )
    found = choices.engine_versions(msgspec.structs.replace(manifest, artifacts=artifacts))
    assert set(found) == {"onnx", "wasm"}
    for name, package in (("onnx", "onnxruntime"), ("wasm", "wasmtime")):
        assert found[name] in ("", _version(version, package))


def _version(version: Callable[[str], str], package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return ""


# Sessions ----------------------------------------------------------------------------------------------------------


def test_a_preferred_artifact(fleet: Any, staged: Any, caplog: pytest.LogCaptureFixture) -> None:
    several = {"a": fleet.library, "b": fleet.library, "broken": b"no library"}
    bundle, _ = staged(fleet.bundle("1", several=several))

    def used(**options: Any) -> str:
        with load(bundle, **options) as session:
            return session.artifact.candidate

    assert [used(), used(prefer="a"), used(prefer="b"), used(only=["b", "broken"])] == ["a", "a", "b", "b"]
    assert caplog.text == ""
    assert used(prefer="broken") == "a"
    assert "a is used, not broken: " in caplog.text
    assert used(prefer="gone", only=["b"]) == "b"
    with load(bundle, only=["b"]) as session:
        assert "a: native, " in session.explain()
        assert "not among those to be tried" in session.explain()
    with pytest.raises(errors.EngineFault):
        used(only=["broken"])
    with pytest.raises(errors.TargetMismatchError, match="no artifact is left to try"):
        used(only=[])


# The device --------------------------------------------------------------------------------------------------------


def serving(fleet: Any, store: Any) -> tuple[Models, Serving]:
    models = Models()
    telemetry = Telemetry(store.outbox, boot_id="b", next_seq=store.next_seq, window_s=60.0, predictions=False)
    return models, Serving(
        models, telemetry, trust=fleet.trust, target=host_target(), on_unhealthy=lambda *_words: None
    )


def runs(models: Models) -> str:
    with models.lease("main") as live:
        session: Any = live.session
        return str(session.artifact.candidate)


@pytest.mark.system
def test_the_device_keeps_the_fastest_and_tells_the_fleet(
    fleet: Any, make_device: Callable[..., Any], odd_libraries: Mapping[str, bytes]
) -> None:
    device = make_device(prober=probe)
    several = {"wrong": odd_libraries["wrong"], "slow": odd_libraries["slow"], "good": fleet.library}
    made = fleet.bundle("1", several=several)
    device.installer.offer(fleet.desired(1, made))
    device.wait("COMMITTED")
    told = {event.to_state: event.trials for event in device.events() if event.trials is not UNSET}
    assert list(told) == ["ARMED"]
    assert [(one.candidate, one.passed, one.kept) for one in told["ARMED"]] == [
        ("wrong", False, False),
        ("slow", True, False),
        ("good", True, True),
    ]
    deployment = device.store.deployment("main")
    assert deployment is not None
    assert deployment.trials == told["ARMED"]
    device.close()

    after = make_device(prober=None, boot_id="boot-2")
    path = after.installer.active_bundle("main")
    models, served = serving(fleet, after.store)
    served.activate("main", path)
    assert runs(models) == "good"
    models.close()

    choice = recall_choice(path, "main", open_bundle(path).manifest)
    assert choice is not None
    write_choice(path, "main", msgspec.structs.replace(choice, engines={"onnx": "0.1"}))
    models, served = serving(fleet, after.store)
    served.activate("main", path)
    assert runs(models) == "slow"  # by rank, but not the one that was found wrong
    models.close()


@pytest.mark.system
def test_a_rejection_says_what_each_artifact_did(
    fleet: Any, make_device: Callable[..., Any], odd_libraries: Mapping[str, bytes]
) -> None:
    device = make_device(prober=probe)
    several = {"wrong": odd_libraries["wrong"], "broken": b"no library"}
    device.installer.offer(fleet.desired(1, fleet.bundle("1", several=several)))
    device.wait("REJECTED")
    assert device.reasons()[0] == "golden"
    assert "broken: load: " in device.reasons()[1]
    last = device.events()[-1]
    assert [(one.candidate, one.reason) for one in last.trials] == [("wrong", "golden"), ("broken", "load")]


@pytest.mark.system
def test_a_single_artifact_is_probed_and_told_of_as_ever(fleet: Any, make_device: Callable[..., Any]) -> None:
    device = make_device(prober=probe)
    device.installer.offer(fleet.desired(1, fleet.bundle("1")))
    device.wait("COMMITTED")
    messages = [message.payload for message in device.store.outbox.pending(1000) if message.kind == "evt"]
    assert all(b"trials" not in payload for payload in messages)
    assert all(decode(payload, Event).trials is UNSET for payload in messages)
    folder = device.installer.active_bundle("main").parent
    assert sorted(place.name for place in folder.iterdir()) == ["bundle.orb", "bundle.orb.dsse"]
