"""Retraining: from a Job to a rollout. `retrain` is the table of contents.

Each stage leaves its result on disk and then a line in the Job's state, so a worker that was stopped anywhere goes on
where it was, and a worker that does a stage again does no harm: training is repeated on the same rows, a bundle that
is published already is published with the same bytes, and a rollout that the Job already has is not made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from outrider.compiler import compile_model
from outrider.compiler.modeldir import read_model_dir
from outrider.runtime.api_client import DeviceInfo, JobInfo, ReleaseInfo, RolloutRequest
from outrider.runtime.bundle import open_bundle
from outrider.runtime.durable import make_folder, write_file
from outrider.runtime.errors import BadConfigError, BadModelError
from outrider.runtime.features import compute
from outrider.runtime.target import Requirements, Target, refuse
from outrider.runtime.trust import PrivateKey, encode_envelope, sign_bundle
from outrider.targets.catalog import HOST, get_target, target_names
from outrider.trainer.champion import Champion, champion_scores, fetch_champion, find_champion
from outrider.trainer.fleet import Fleet
from outrider.trainer.gate import Decision, decide
from outrider.trainer.progress import Progress
from outrider.trainer.recipe import LoadedRecipe, load_recipe
from outrider.trainer.split import rows_until, split
from outrider.trainer.tables import make_model, make_source
from outrider.trainer.training import class_indices, train


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """What a worker works with. `folder` keeps runs, models and the state of Jobs."""

    fleet: Fleet
    publisher: PrivateKey
    folder: Path

    def job_folder(self, job: int) -> Path:
        """Where one Job's files are."""
        return self.folder / "jobs" / str(job)


class JobState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far a Job is. A field is set once its stage is done and its files are on disk.

    `bundles` maps targets to file names in the Job's folder; `release` is the number of the published release.
    """

    job: int
    cutoff: float | None = None
    run_id: str | None = None
    decision: Decision | None = None
    version: str | None = None
    bundles: dict[str, str] = {}
    release: int | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a Job came to. `release` is None where the champion stays."""

    run_id: str
    decision: Decision
    release: int | None
    detail: str


def retrain(job: JobInfo, recipe: Path | str, work: Workplace, progress: Progress) -> Outcome:
    """Do a Job: train on all rows there are now, and roll the candidate out where it passes the gate.

    Raises the error of the stage that failed; called again for the same Job, it goes on from there.
    """
    loaded = load_recipe(recipe)
    state = read_state(work, job.id)
    state = choose_cutoff(state, loaded, work, progress)
    state = train_candidate(state, loaded, work, progress)
    champion = find_champion(work.fleet, job.model, job=job.id)
    state = pass_gate(state, loaded, champion, work, progress)
    run_id, decision = state.run_id, state.decision
    assert run_id is not None
    assert decision is not None
    if not decision.promote:
        return Outcome(run_id=run_id, decision=decision, release=None, detail=decision.reason)
    state = choose_version(state, job.model, work)
    state = compile_bundles(state, loaded, champion, work, progress)
    state = publish(state, loaded, work, progress)
    groups = roll_out(state, job, champion, work, progress)
    detail = f"{decision.reason}; released as {state.version}, rolling out to {', '.join(groups)}"
    return Outcome(run_id=run_id, decision=decision, release=state.release, detail=detail)


def choose_cutoff(state: JobState, loaded: LoadedRecipe, work: Workplace, progress: Progress) -> JobState:
    """Fix the newest row that counts, so that a repeated stage sees the same rows although new ones come in."""
    if state.cutoff is not None:
        return state
    progress("read", f"the source of {loaded.path.name}")
    name = loaded.recipe.split.time
    table = make_source(loaded.recipe.source, loaded.path.name).read({name: "time"}, loaded.folder, progress)
    newest = float(rows_until(table, loaded.recipe, None)[name][-1])
    return save_state(work, msgspec.structs.replace(state, cutoff=newest + 1e-3))


def train_candidate(state: JobState, loaded: LoadedRecipe, work: Workplace, progress: Progress) -> JobState:
    """Train on the rows up to the cutoff into the Job's folder."""
    if state.run_id is not None:
        return state
    out = work.job_folder(state.job) / "model"
    result = train(loaded.path, out, state.cutoff, runs=work.folder / "runs.db", progress=progress)
    return save_state(work, msgspec.structs.replace(state, run_id=result.run.id))


def pass_gate(
    state: JobState, loaded: LoadedRecipe, champion: Champion, work: Workplace, progress: Progress
) -> JobState:
    """Let candidate and champion classify the held-out rows of the candidate's split, and decide."""
    if state.decision is not None:
        return state
    progress("gate", f"against {champion.release.name}:{champion.release.version}")
    path = fetch_champion(work.fleet, champion, work.folder / "champions")
    model, recipe = read_model_dir(work.job_folder(state.job) / "model"), loaded.recipe
    if model.features is None:
        raise BadModelError(f"{model.folder} has no feature plan")
    theirs = open_bundle(path).manifest.features
    wanted = {**recipe.wanted(), **{column.name: column.kind for column in (theirs.columns if theirs else ())}}
    source = make_source(recipe.source, loaded.path.name)
    table = rows_until(source.read(wanted, loaded.folder, progress), recipe, state.cutoff)
    rows = table.take(split(table, recipe).test)
    candidate = make_model(recipe.model, loaded.path.name).load(model.model.read_bytes())
    features = compute(model.features, rows.select([column.name for column in model.features.columns]))
    decision = decide(
        candidate.scores(features),
        champion_scores(path, dict(rows.columns), recipe.label.class_labels()),
        class_indices(rows, recipe),
        recipe.gate,
    )
    progress("gate", decision.reason)
    return save_state(work, msgspec.structs.replace(state, decision=decision))


def choose_version(state: JobState, model: str, work: Workplace) -> JobState:
    """Fix the version of the release."""
    if state.version is not None:
        return state
    assert state.run_id is not None
    version = next_version(work.fleet.releases(model), state.run_id)
    return save_state(work, msgspec.structs.replace(state, version=version))


def compile_bundles(
    state: JobState, loaded: LoadedRecipe, champion: Champion, work: Workplace, progress: Progress
) -> JobState:
    """Compile for each target that the devices of the champion's groups need."""
    folder = work.job_folder(state.job)
    devices = [device for rollout in champion.rollouts for device in work.fleet.devices(rollout.group)]
    targets = loaded.recipe.compile.targets or targets_for(devices)
    for target in targets:
        if target in state.bundles:
            continue
        progress("compile", f"for {target}")
        report = compile_model(
            folder / "model",
            target=target,
            out=folder / f"{target}.orb",
            name=loaded.recipe.recipe.name,
            version=state.version,
            goals=loaded.recipe.compile.goals,
        )
        progress("compile", f"{report.path.name} for {target}")
        state = save_state(work, msgspec.structs.replace(state, bundles={**state.bundles, target: f"{target}.orb"}))
    return state


def publish(state: JobState, loaded: LoadedRecipe, work: Workplace, progress: Progress) -> JobState:
    """Sign each bundle with the publisher's key and give it to the registry."""
    if state.release is not None:
        return state
    release = None
    for target, name in sorted(state.bundles.items()):
        progress("publish", f"{loaded.recipe.recipe.name}:{state.version} for {target}")
        path = work.job_folder(state.job) / name
        manifest = open_bundle(path).manifest
        envelope = sign_bundle(
            path, name=manifest.name, version=manifest.version, target=manifest.target, key=work.publisher
        )
        release = work.fleet.publish_bundle(path, encode_envelope(envelope)).release
    return save_state(work, msgspec.structs.replace(state, release=release))


def roll_out(state: JobState, job: JobInfo, champion: Champion, work: Workplace, progress: Progress) -> list[str]:
    """Roll the release out to every group that runs the champion's model, as its last rollout was done."""
    assert state.version is not None
    made = {rollout.group for rollout in work.fleet.rollouts() if rollout.job == job.id}
    groups = []
    for before in sorted(champion.rollouts, key=lambda rollout: rollout.group):
        groups.append(before.group)
        if before.group in made:
            continue
        progress("rollout", f"{job.model}:{state.version} to {before.group}")
        settings = {name: getattr(before.settings, name) for name in before.settings.__struct_fields__}
        work.fleet.create_rollout(
            RolloutRequest(
                name=job.model,
                version=state.version,
                group=before.group,
                canary=before.canary,
                job=job.id,
                **settings,
            )
        )
    return groups


def next_version(releases: Iterable[ReleaseInfo], run_id: str) -> str:
    """One more than the highest version where all are whole numbers, else the run's id."""
    versions = [release.version for release in releases]
    if versions and all(version.isascii() and version.isdigit() for version in versions):
        return str(max(map(int, versions)) + 1)
    return run_id


def targets_for(
    devices: Sequence[DeviceInfo],
    *,
    names: Sequence[str] | None = None,
    describe: Callable[[str], Target] = get_target,
) -> tuple[str, ...]:
    """The fewest catalogue targets that serve all devices well: for each, the fitting one with the most features.

    `host` fits a device that has all that this machine has. Raises BadConfigError where there is no device, or one
    that no target fits.
    """
    targets = {name: describe(name) for name in (target_names() if names is None else names)}
    chosen = set()
    for device in devices:
        fitting = [name for name, target in targets.items() if refuse(_needs(target), device.target) is None]
        if not fitting:
            raise BadConfigError(f"no target fits the device {device.id} ({device.target.triple})")
        chosen.add(max(fitting, key=lambda name: (len(targets[name].features), name == HOST)))
    if not chosen:
        raise BadConfigError("the groups that run the model have no devices", hint="name targets in [compile]")
    return tuple(sorted(chosen))


def read_state(work: Workplace, job: int) -> JobState:
    """The Job's state on disk, or that of a Job not yet begun."""
    path = work.job_folder(job) / "state.json"
    if not path.is_file():
        return JobState(job=job)
    try:
        return msgspec.json.decode(path.read_bytes(), type=JobState)
    except msgspec.DecodeError as e:
        raise BadConfigError(f"{path} cannot be read: {e}", hint="delete it, and the Job starts anew") from e


def save_state(work: Workplace, state: JobState) -> JobState:
    """Write the Job's state, atomically, and return it."""
    folder = work.job_folder(state.job)
    make_folder(folder)
    write_file(folder / "state.json", msgspec.json.format(msgspec.json.encode(state), indent=2))
    return state


def _needs(target: Target) -> Requirements:
    """What a native artifact for this target asks of a device: no C library, which such artifacts do not use."""
    return Requirements(arch=target.arch, features=target.features)
