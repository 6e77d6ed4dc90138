"""Retraining: the whole way, interrupted anywhere, and by the worker."""

from __future__ import annotations

import threading

import msgspec
import numpy as np
import pytest

from outrider.compiler.modeldir import read_model_dir
from outrider.runtime import load
from outrider.runtime.api_client import RolloutRequest
from outrider.runtime.bundle import open_bundle
from outrider.runtime.errors import BadConfigError, ConflictError, Fault, UnavailableError
from outrider.runtime.probe import host_target
from outrider.runtime.target import Libc, Target
from outrider.runtime.trust import TrustStore, encode_envelope, generate_key, sign_bundle, verify_bundle
from outrider.trainer import pipeline
from outrider.trainer.champion import champion_scores, find_champion
from outrider.trainer.data.table import concatenate
from outrider.trainer.experiment import RunStore
from outrider.trainer.pipeline import JobState, Workplace, next_version, read_state, retrain, save_state, targets_for
from outrider.trainer.progress import silent
from outrider.trainer.testing import FakeFleet
from outrider.trainer.worker import Heartbeat, Worker

KEY = generate_key()


@pytest.fixture
def fleet(champion, tmp_path):
    """A fleet of two devices like this machine that runs the champion, and one device of another group."""
    made = FakeFleet()
    made.add_device("a", host_target(), "shops")
    made.add_device("b", host_target(), "shops")
    made.add_device("other", host_target(), "elsewhere")
    copy = tmp_path / "shop.orb"
    copy.write_bytes(champion.bundle.read_bytes())
    manifest = open_bundle(copy).manifest
    envelope = sign_bundle(copy, name=manifest.name, version=manifest.version, target=manifest.target, key=KEY)
    made.publish_bundle(copy, encode_envelope(envelope))
    made.create_rollout(RolloutRequest(name="shop", version="1", group="shops", canary=2, soak_s=3.0))
    made.calls.clear()
    return made


@pytest.fixture
def changed(shop, shop_rows):
    """The shop's rows with twelve days of a changed world behind them."""
    return shop.write(concatenate([shop_rows(0, 60), shop_rows(60, 12, seed=4, changed=True)]))


@pytest.fixture
def work(fleet, tmp_path):
    return Workplace(fleet=fleet, publisher=KEY, folder=tmp_path / "work")


def test_a_changed_world_is_learned_released_and_rolled_out(fleet, changed, work):
    job = fleet.open_job("shop")
    stages = []
    outcome = retrain(job, changed, work, lambda stage, detail: stages.append(stage))
    assert list(dict.fromkeys(stages)) == [
        "read", "features", "train", "baseline", "gate", "compile", "publish", "rollout",
    ]  # fmt: skip
    assert outcome.decision.promote
    assert outcome.decision.champion < 0.8
    assert outcome.decision.candidate > 0.9
    assert outcome.decision.rows == RunStore(work.folder / "runs.db").get(outcome.run_id).data.parts["test"]
    release = fleet.releases("shop")[0]
    assert (release.number, release.version) == (outcome.release, "2")
    (bundle,) = release.bundles
    assert bundle.run_id == outcome.run_id
    rollout = fleet.rollouts()[0]
    assert (rollout.job, rollout.group, rollout.canary, rollout.settings.soak_s) == (job.id, "shops", 2, 3.0)
    path = work.job_folder(job.id) / "host.orb"
    assert verify_bundle(path, TrustStore({"application/vnd.outrider.bundle+json": [KEY.public]})).version == "2"


def test_a_candidate_that_gains_nothing_leaves_the_champion(fleet, shop, work):
    outcome = retrain(fleet.open_job("shop"), shop.recipe, work, silent)
    assert not outcome.decision.promote
    assert "less than the 0.0100 asked for" in outcome.detail
    assert outcome.release is None
    assert "publish_bundle" not in fleet.calls
    assert len(fleet.releases("shop")) == 1


def test_rows_that_come_in_later_do_not_change_a_job_under_way(fleet, changed, shop, shop_rows, work):
    job = fleet.open_job("shop")
    cutoff = pipeline.choose_cutoff(JobState(job=job.id), pipeline.load_recipe(changed), work, silent).cutoff
    shop.write(concatenate([shop_rows(0, 60), shop_rows(60, 12, seed=4, changed=True), shop_rows(72, 5, seed=5)]))
    outcome = retrain(job, changed, work, silent)
    data = RunStore(work.folder / "runs.db").get(outcome.run_id).data
    assert data.last < data.until == cutoff


STAGES = ["train_candidate", "find_champion", "pass_gate", "choose_version", "compile_bundles", "publish", "roll_out"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_job_stopped_before_or_after_any_stage_ends_the_same(fleet, changed, work, monkeypatch, stage):
    """Stopped before the stage, then after it but before its state is kept; still one release and one rollout."""
    job = fleet.open_job("shop")
    real = getattr(pipeline, stage)
    saved = pipeline.save_state

    def stop_before(*arguments, **named):
        raise KeyboardInterrupt

    def forget(*arguments):
        raise KeyboardInterrupt

    def stop_after(*arguments, **named):
        monkeypatch.setattr(pipeline, "save_state", forget)
        real(*arguments, **named)
        raise KeyboardInterrupt

    for stop in (stop_before, stop_after):
        monkeypatch.setattr(pipeline, stage, stop)
        with pytest.raises(KeyboardInterrupt):
            retrain(job, changed, work, silent)
    monkeypatch.setattr(pipeline, stage, real)
    monkeypatch.setattr(pipeline, "save_state", saved)
    outcome = retrain(job, changed, work, silent)
    assert [release.version for release in fleet.releases("shop")] == ["2", "1"]
    assert len(fleet.releases("shop")[0].bundles) == 1
    assert [rollout.job for rollout in fleet.rollouts()] == [job.id, None]
    assert outcome.release == 2
    trained = [run for run in RunStore(work.folder / "runs.db").list() if run.state == "done"]
    assert len(trained) == (2 if stage == "train_candidate" else 1)


def test_every_group_of_the_model_gets_its_rollout(fleet, changed, work):
    fleet.create_rollout(RolloutRequest(name="shop", version="1", group="elsewhere", canary=0))
    outcome = retrain(fleet.open_job("shop"), changed, work, silent)
    assert "rolling out to elsewhere, shops" in outcome.detail
    assert {rollout.group for rollout in fleet.rollouts() if rollout.version == "2"} == {"elsewhere", "shops"}


def test_a_model_that_is_not_rolled_out_has_no_champion(fleet):
    with pytest.raises(ConflictError, match="no release of toys is rolled out"):
        find_champion(fleet, "toys", job=1)


def test_a_champion_for_other_hardware_is_emulated(champion, tmp_path, require_tool):
    require_tool("qemu-aarch64-static")
    from outrider.compiler import compile_model

    other = tmp_path / "arm.orb"
    compile_model(champion.model_dir, target="aarch64", out=other, name="shop", version="1")
    raw = read_model_dir(champion.model_dir).raw
    here = champion_scores(champion.bundle, raw, ("fine", "fraud"))
    np.testing.assert_allclose(champion_scores(other, raw, ("fine", "fraud")), here, atol=1e-6)


def test_the_champion_answers_as_the_session_does(champion):
    raw = read_model_dir(champion.model_dir).raw
    with load(champion.bundle) as session:
        label = session.run(raw)["label"]
    scores = champion_scores(champion.bundle, raw, ("fine", "fraud"))
    assert (np.array(["fine", "fraud"])[(scores > 0.5).astype(int)] == label).all()
    with pytest.raises(Exception, match=r"answers .*fine"):
        champion_scores(champion.bundle, raw, ("fraud", "fine"))


def test_versions():
    fleet = FakeFleet()
    assert next_version(fleet.releases(), "run") == "run"
    known = [msgspec.structs.replace(_release(), version=version) for version in ("1", "10", "9")]
    assert next_version(known, "run") == "11"
    assert next_version([*known, msgspec.structs.replace(_release(), version="beta")], "run") == "run"


def _release():
    from outrider.runtime.api_client import ReleaseInfo

    return ReleaseInfo(number=1, name="shop", version="1", created=0.0, bundles=())


def test_targets_are_the_fewest_that_serve_all_devices():
    board = {
        "host": Target(name="host", arch="x86_64", triple="x86_64-linux-gnu", features=("avx2", "sse4_2")),
        "x86-64": Target(name="x86-64", arch="x86_64", triple="x86_64-linux-gnu"),
        "aarch64": Target(name="aarch64", arch="aarch64", triple="aarch64-linux-gnu", features=("neon",)),
    }
    fleet = FakeFleet()
    new = fleet.add_device("new", Target(name="host", arch="x86_64", triple="x", features=("avx2", "fma", "sse4_2")))
    old = fleet.add_device("old", Target(name="host", arch="x86_64", triple="x", features=("sse4_2",)))
    musl = Libc(kind="musl", version=(1, 2))
    arm = fleet.add_device("arm", Target(name="host", arch="aarch64", triple="a", features=("neon",), libc=musl))
    odd = fleet.add_device("odd", Target(name="host", arch="riscv64", triple="r"))

    def chosen(*devices):
        return targets_for(devices, names=tuple(board), describe=board.__getitem__)

    assert chosen(new) == ("host",)
    assert chosen(new, new, old, arm) == ("aarch64", "host", "x86-64")
    with pytest.raises(BadConfigError, match="no target fits the device odd"):
        chosen(new, odd)
    with pytest.raises(BadConfigError, match="have no devices"):
        chosen()
    assert targets_for([fleet.add_device("real", host_target())]) == ("host",)


def test_a_state_that_cannot_be_read(work):
    state = save_state(work, JobState(job=3, cutoff=1.0))
    assert read_state(work, 3) == state
    (work.job_folder(3) / "state.json").write_text("{")
    with pytest.raises(BadConfigError, match="delete it"):
        read_state(work, 3)


# The worker -----------------------------------------------------------------------------------------------------


@pytest.fixture
def worker(fleet, changed, tmp_path):
    return Worker(fleet, {"shop": changed}, KEY, tmp_path / "work", poll_s=0.01, name="w")


def test_the_worker_does_a_job_and_tells_its_stages(fleet, worker):
    assert worker.run_once() is None
    fleet.open_job("toys")
    job = fleet.open_job("shop", {"accuracy": 0.8})
    done = worker.run_once()
    assert (done.id, done.state, done.release, done.worker) == (job.id, "DONE", 2, "w")
    assert RunStore(worker._work.folder / "runs.db").get(done.run_id).state == "done"
    assert fleet.stages[0] == "read"
    assert fleet.stages[-1] == "rollout"
    assert worker.run_once() is None, "a Job of a model it has no recipe for is left to others"


def test_what_fails_ends_the_job_with_its_reason(fleet, worker):
    job = fleet.open_job("shop")
    fleet.fail_next("publish_bundle", ConflictError("shop:2 is published already"))
    assert worker.run_once().state == "FAILED"
    assert "published already" in fleet.job(job.id).detail


def test_a_fleet_that_goes_away_in_the_middle_is_waited_for(fleet, worker):
    job = fleet.open_job("shop")
    fleet.up = False
    fleet.fail_next("publish_bundle", UnavailableError("away"))
    with pytest.raises(UnavailableError):
        worker.run_once()
    assert fleet.job(job.id).state == "CLAIMED"
    fleet.up = True
    assert worker.run_once().state == "DONE"
    assert len(fleet.rollouts()) == 2
    runs = RunStore(worker._work.folder / "runs.db").list()
    assert len(runs) == 1, "what was done is not done again"


def test_a_source_that_is_away_fails_the_job(fleet, worker):
    job = fleet.open_job("shop")
    fleet.fail_next("devices", UnavailableError("the registry of data is away"))
    assert worker.run_once().state == "FAILED"
    assert "away" in fleet.job(job.id).detail


def test_a_job_given_to_another_worker_is_let_go(fleet, worker):
    job = fleet.open_job("shop")
    fleet.fail_next("heartbeat_job", ConflictError("job is no longer yours"))
    assert worker.run_once() is None
    assert fleet.job(job.id).state == "CLAIMED"
    assert "publish_bundle" not in fleet.calls


def test_heartbeats_go_on_during_a_long_stage(fleet):
    job = fleet.open_job("shop")
    fleet.claim_job("w")
    with Heartbeat(fleet, job.id, silent, interval_s=0.005) as heart:
        heart.progress("train", "a long one")
        while fleet.calls.count("heartbeat_job") < 5:
            pass
        fleet.fail_next("heartbeat_job", Fault("a hiccup"))
        while fleet.calls.count("heartbeat_job") < 10:
            pass
        fleet.give_away(job.id)
        while heart.lost is None:
            pass
        with pytest.raises(ConflictError, match="no longer yours"):
            heart.progress("compile", "")
    assert fleet.job(job.id).stage == "train"


def test_the_worker_polls_until_it_is_stopped(fleet, worker):
    stop = threading.Event()
    thread = threading.Thread(target=worker.run_forever, args=(stop,))
    fleet.fail_next("claim_job", UnavailableError("not yet"))
    thread.start()
    job = fleet.open_job("shop")
    while fleet.job(job.id).finished is None:
        stop.wait(0.01)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert fleet.job(job.id).state == "DONE"
