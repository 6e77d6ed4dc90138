"""The loop on one machine: train → compile → sign → roll out over MQTT → run → drift → retrain.

`play` is its table of contents. Everything that runs in production as a process of its own runs as one here: the
fleet (with its broker), three devices, the retrain worker. The demo itself only plays the parts of the world: it is
the operator at the start, the applications that ask the devices for predictions, and the back office that learns the
labels later.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console

from outrider.compiler import compile_model
from outrider.runtime.api_client import FleetClient
from outrider.runtime.api_client.types import RolloutInfo, RolloutRequest, TriggerSpec
from outrider.runtime.errors import EXIT_INTERRUPTED, EXIT_OK, ConflictError, Fault, OutriderError
from outrider.runtime.trust import encode_envelope, generate_key, sign_bundle, write_key_pair
from outrider.trainer.data.table import Table
from outrider.trainer.demo.processes import Children, Interrupts, wait_until
from outrider.trainer.demo.scenario import Scenario, load_scenario
from outrider.trainer.demo.stage import Options, Stage
from outrider.trainer.demo.stream import DeviceClient, Streamer, Tally
from outrider.trainer.demo.summary import Facts, failures, show
from outrider.trainer.demo.watch import Watch, counts, stream, total
from outrider.trainer.training import train

GROUP = "shops"
DEVICES = ("till-1", "till-2", "till-3")
FIRST_VERSION = "1"
SOCKET = "s"  # short: a Unix socket's path may have 107 bytes
FLOOR = 0.93
SOAK_S = 1.0
WINDOW_S = 2.0
ROWS_KEPT_FOR_THE_END = 3_000


def run(options: Options) -> int:
    """Run the demo from start to end. Whatever happens, no process and no temporary file is left behind."""
    console = Console(highlight=False)
    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())
        folder = stack.enter_context(_work_folder(options, interrupts))
        children = Children(interrupts, folder / "logs")
        stack.callback(children.stop_all)
        stage = Stage(options=options, folder=folder, console=console, children=children)
        try:
            return play(stage)
        except KeyboardInterrupt:
            console.print("\n[yellow]interrupted: stopping everything[/yellow]")
            return EXIT_INTERRUPTED
        except OutriderError:
            children.show_tails(console.print)
            raise


def play(stage: Stage) -> int:
    """The loop, step by step."""
    scenario = prepare(stage)
    bundle = compile_first(stage, train_first(stage, scenario))
    fleet = start_fleet(stage)
    publish(stage, fleet, scenario, bundle)
    devices = start_devices(stage, fleet)
    roll_out_first(stage, fleet, scenario)
    start_worker(stage, fleet, scenario)
    streamer = Streamer(scenario, stage.folder, devices, fleet)
    stream_steady(stage, fleet, scenario, streamer)
    rest = stream_shifted(stage, fleet, scenario, streamer)
    stream_after(stage, rest, streamer)
    return conclude(stage, fleet, scenario)


def prepare(stage: Stage) -> Scenario:
    """Get the data, write the recipe and the landing file, make the publisher's keys."""
    with stage.step("data and keys") as progress:
        scenario = load_scenario(progress, offline=stage.options.offline)
        stage.facts.note = scenario.note
        stage.facts.devices = len(DEVICES)
        scenario.write_recipe(stage.folder)
        scenario.land(stage.folder)
        write_key_pair(generate_key(), stage.folder / "keys", "publisher")
    stage.say(scenario.note)
    stage.say(
        f"{len(scenario.history)} rows of history, {len(scenario.steady)} that follow, {len(scenario.shifted)} shifted"
    )
    return scenario


def train_first(stage: Stage, scenario: Scenario) -> Path:
    """Train on the history."""
    with stage.step("train on the early months") as progress:
        result = train(
            stage.folder / "recipe.toml", stage.folder / "model", runs=stage.folder / "runs.db", progress=progress
        )
    assert result.run.metrics is not None, "a finished run has metrics"
    test = result.run.metrics.test
    stage.say(f"{scenario.model}: held-out accuracy {test.accuracy:.1%} (run {result.run.id})")
    return result.model_dir


def compile_first(stage: Stage, model: Path) -> Path:
    """Compile for this machine, and show every candidate."""
    out = stage.folder / "first.orb"
    with stage.step("compile"):
        report = compile_model(model, target="host", out=out, version=FIRST_VERSION)
    stage.console.print(report.table(), soft_wrap=True)
    return out


def start_fleet(stage: Stage) -> FleetClient:
    """Start API, manager and broker as one process."""
    data = stage.folder / "fleet"
    with stage.step("start the fleet"):
        stage.children.start(
            "fleet",
            [*_outrider(), "up", "--port", "0", "--data-dir", str(data), "--broker", stage.options.broker,
             "--publisher-key", str(stage.folder / "keys" / "publisher.pub")],
        )  # fmt: skip
        address, key = data / "api.url", data / "admin.key"
        wait_until("the fleet's address", lambda: address.exists() and key.exists(), stage.children)
        fleet = FleetClient(address.read_text(encoding="utf-8").strip(), key.read_text(encoding="utf-8").strip())
        wait_until("the fleet's API", fleet.healthy, stage.children)
        stage.facts.broker = fleet.health().broker
    stage.say(f"API at {address.read_text(encoding='utf-8').strip()}, broker {stage.facts.broker}")
    return fleet


def publish(stage: Stage, fleet: FleetClient, scenario: Scenario, bundle: Path) -> None:
    """Sign the bundle, publish it, and set the rule that opens a retrain job."""
    from outrider.runtime.bundle import open_bundle
    from outrider.runtime.trust import load_private_key

    with stage.step("sign and publish"):
        manifest = open_bundle(bundle).manifest
        key = load_private_key(stage.folder / "keys" / "publisher.key")
        envelope = sign_bundle(bundle, name=manifest.name, version=manifest.version, target=manifest.target, key=key)
        fleet.publish_bundle(bundle, encode_envelope(envelope))
        fleet.create_trigger(
            TriggerSpec(
                name="accuracy-floor",
                model=scenario.model,
                kind="accuracy",
                settings={"floor": FLOOR, "alpha": 0.01, "cooldown_s": 20.0},
            )
        )
    stage.say(f"trigger: accuracy below {FLOOR:.0%}, by a test with a 1 % chance of ever a false alarm")


def start_devices(stage: Stage, fleet: FleetClient) -> list[DeviceClient]:
    """Enrol and start three devices, each a process with a folder of its own."""
    with stage.step("enrol three devices"):
        for name in DEVICES:
            folder = stage.folder / "devices" / name
            folder.mkdir(parents=True)
            (folder / "token").write_text(fleet.create_enrolment_token(GROUP), encoding="utf-8")
            (folder / "device.toml").write_text(
                f'state_dir = "state"\nfleet_url = "{fleet.base_url}"\nname = "{name}"\ntoken_file = "token"\n'
                f'port = 0\nsocket = "{SOCKET}"\nwindow_s = {WINDOW_S}\nheartbeat_s = 10.0\n',
                encoding="utf-8",
            )
            stage.children.start(name, [sys.executable, "-m", "outrider.runtime.daemon", "--config",
                                        str(folder / "device.toml")])  # fmt: skip
        wait_until("all devices online", lambda: _all_online(fleet), stage.children)
    return [DeviceClient(name, stage.folder / "devices" / name / SOCKET) for name in DEVICES]


def roll_out_first(stage: Stage, fleet: FleetClient, scenario: Scenario) -> None:
    """Roll the first release out: one canary, then the others."""
    with stage.step("roll out: canary, then all") as progress:
        rollout = fleet.create_rollout(
            RolloutRequest(name=scenario.model, version=FIRST_VERSION, group=GROUP, canary=1, soak_s=SOAK_S)
        )
        done = wait_until("the first rollout", lambda: _finished(fleet, rollout.id, progress), stage.children)
    stage.say(f"release {done.name}:{done.version}: {counts(done)}")


def start_worker(stage: Stage, fleet: FleetClient, scenario: Scenario) -> None:
    """Start the process that runs retrain jobs. From here on the operator's hands are in his pockets."""
    stage.children.start(
        "worker",
        [
            *_outrider(),
            "worker",
            *("--url", fleet.base_url),
            *("--recipe", f"{scenario.model}={stage.folder / 'recipe.toml'}"),
            *("--key", str(stage.folder / "keys" / "publisher.key")),
            *("--workdir", str(stage.folder / "worker")),
            *("--poll", "0.5"),
        ],
        env={"OUTRIDER_KEY": (stage.folder / "fleet" / "admin.key").read_text(encoding="utf-8").strip()},
    )


def stream_steady(stage: Stage, fleet: FleetClient, scenario: Scenario, streamer: Streamer) -> None:
    """Stream the following rows as they were: nothing may happen."""
    with stage.step("stream unshifted rows"):
        tallies = stream(stage, scenario.steady, streamer, "unshifted")
        time.sleep(WINDOW_S + 2.0)  # the last windows and labels arrive and are tested
    facts = stage.facts
    facts.accuracy_steady = total(tallies).accuracy
    facts.alarms_before_shift, facts.jobs_before_shift = len(fleet.drift_events()), len(fleet.jobs())
    stage.say(
        f"accuracy {facts.accuracy_steady:.1%}, drift alarms {facts.alarms_before_shift}, "
        f"jobs {facts.jobs_before_shift}"
    )


def stream_shifted(stage: Stage, fleet: FleetClient, scenario: Scenario, streamer: Streamer) -> Table:
    """Stream shifted rows until the loop has closed by itself; return the rows that were kept for the end."""
    end = len(scenario.shifted) - ROWS_KEPT_FOR_THE_END
    watch = Watch(fleet, stage.say)
    with stage.step("stream shifted rows: drift, breach, retrain, roll out"):
        rows = scenario.shifted.take(slice(0, end))
        tallies = stream(stage, rows, streamer, "shifted", until=watch.closed)
        wait_until("a retrained release on all devices", watch.closed, stage.children, timeout_s=120.0, poll_s=0.5)
    stage.facts.accuracy_shifted_before = tallies.get(FIRST_VERSION, Tally()).accuracy
    return scenario.shifted.take(slice(end, len(scenario.shifted)))


def stream_after(stage: Stage, rows: Table, streamer: Streamer) -> None:
    """Stream further shifted rows through the retrained model."""
    with stage.step("stream shifted rows through the new model"):
        tallies = stream(stage, rows, streamer, "shifted, new model")
    stage.facts.accuracy_shifted_after = total(
        {version: tally for version, tally in tallies.items() if version != FIRST_VERSION}
    ).accuracy


def conclude(stage: Stage, fleet: FleetClient, scenario: Scenario) -> int:
    """Gather what was observed, show it, check it, and stay if asked to."""
    gather(stage.facts, fleet, scenario)
    show(stage.console, stage.facts)
    problems = failures(stage.facts)
    for problem in problems:
        stage.console.print(f"[red]✗ {problem}[/red]", soft_wrap=True)
    if not problems:
        stage.console.print("[bold green]✓ The loop has closed.[/bold green]")
    if stage.options.keep:
        stay(stage, fleet)
    return Fault.exit_code if problems else EXIT_OK


def gather(facts: Facts, fleet: FleetClient, scenario: Scenario) -> None:
    """Ask the fleet for everything that the summary shows."""
    facts.rollouts = sorted((fleet.rollout(rollout.id) for rollout in fleet.rollouts()), key=lambda each: each.id)
    facts.drift = fleet.drift_events(scenario.model)
    released = [job for job in fleet.jobs() if job.release is not None]
    facts.job = released[0] if released else None
    for rollout in facts.rollouts:
        for deployment in rollout.deployments:
            if deployment.state == "COMMITTED":
                facts.versions.setdefault(deployment.device, []).append(rollout.version)
    audit = fleet.verify_audit()
    facts.audit_entries, facts.audit_intact = audit.entries, audit.intact
    if facts.rollouts:
        lineage = fleet.lineage(scenario.model, facts.rollouts[-1].version)
        facts.lineage = (
            f"data {(lineage.data_digest or '?')[:12]} → run {lineage.run_id} → "
            f"bundle {lineage.bundles[0].sha256[:12]} → rollout {facts.rollouts[-1].id} → "
            f"{', '.join(sorted(lineage.running_on))}"
        )


def stay(stage: Stage, fleet: FleetClient) -> None:
    """Leave everything running until Ctrl-C."""
    stage.console.print(f"\nStill running: API and documentation at {fleet.base_url}/docs", soft_wrap=True)
    stage.console.print(f"  outrider fleet devices --data-dir {stage.folder / 'fleet'}", soft_wrap=True)
    for name in DEVICES:
        stage.console.print(f"  {name}: Unix socket {stage.folder / 'devices' / name / SOCKET}", soft_wrap=True)
    stage.console.print("Ctrl-C stops everything.")
    while True:
        stage.children.check()
        time.sleep(0.5)


def _finished(fleet: FleetClient, rollout: int, progress: Callable[[str, str], None]) -> RolloutInfo | None:
    info = fleet.rollout(rollout)
    progress("rollout", ", ".join(f"{each.device} {each.state.lower()}" for each in info.deployments))
    if info.state == "ABORTED":
        raise Fault(f"the rollout was aborted: {info.reason}")
    return info if info.state == "DONE" else None


def _all_online(fleet: FleetClient) -> bool:
    devices = fleet.devices()
    return len(devices) == len(DEVICES) and all(device.online for device in devices)


def _outrider() -> list[str]:
    """The command, by this interpreter: it need not be on PATH."""
    return [sys.executable, "-m", "outrider.runtime.cli"]


@contextmanager
def _work_folder(options: Options, interrupts: Interrupts) -> Iterator[Path]:
    if options.folder is not None:
        try:
            options.folder.mkdir(parents=True)
        except FileExistsError as e:
            raise ConflictError(f"{options.folder} already exists", hint="name a folder that does not exist yet") from e
        yield options.folder.resolve()
        return
    with interrupts.shielded():
        folder = Path(tempfile.mkdtemp(prefix="outrider-demo-"))
    try:
        yield folder
    finally:
        with interrupts.shielded(final=True):
            shutil.rmtree(folder, ignore_errors=True)
