"""`outrider fleet` and `outrider publish`, against a running API."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from outrider.fleet.auth import write_key_file
from outrider.fleet.cli.fleet import main as fleet_main
from outrider.fleet.cli.publish import main as publish_main
from outrider.fleet.cli.publish import signature
from outrider.fleet.db import DeploymentRow, DeviceRow
from outrider.runtime.bundle import GoalRecord, open_bundle
from outrider.runtime.cli import main
from outrider.runtime.errors import (
    BadDataError,
    BadInputError,
    ConflictError,
    GoalUnmetError,
    NotFoundError,
    UnknownKeyError,
    UnsignedError,
    UsageError,
)
from outrider.runtime.messages import ArtifactTrial
from outrider.runtime.trust import generate_key, write_key_pair
from outrider.runtime.trust.cli import default_key_path
from outrider.runtime.trust.statements import signature_path

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("OUTRIDER_URL", "OUTRIDER_KEY", "OUTRIDER_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(web: Any, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a fleet command as the operator; what it printed."""

    def run(*arguments: str) -> str:
        assert fleet_main([*arguments, "--url", web.url, "--api-key", web.key]) == 0
        return capsys.readouterr().out

    return run


def test_devices(web: Any, run: Run) -> None:
    bundle = web.published()
    web.enrol("till-7", "tills")
    with web.state.database.session() as session:
        session.get_one(DeviceRow, "till-7").active_bundle = bundle.sha256
    shown = run("devices")
    assert "till-7" in shown
    assert "fraud:1" in shown
    assert json.loads(run("devices", "--json"))[0]["group"] == "tills"
    assert json.loads(run("devices", "--group", "other", "--json")) == []
    assert "till-7" in run("device", "show", "till-7")


def test_what_a_device_found_of_each_artifact(web: Any, run: Run) -> None:
    bundle = web.published()
    web.enrol("till-7", "tills")
    web.enrol("till-8", "tills")
    run("rollout", "create", "--bundle", "fraud:1", "--group", "tills")
    found = (
        ArtifactTrial(candidate="onnx-int8", passed=False, reason="golden", detail="y is [red]out[/red]"),
        ArtifactTrial(candidate="ncnn-fp32", passed=True, kept=True, p50_ms=12.345, p99_ms=20.0, rss_bytes=42_000_000),
    )
    with web.state.database.session() as session:
        session.get_one(DeviceRow, "till-7").active_bundle = bundle.sha256
        for device, trials in (("till-7", msgspec.to_builtins(found)), ("till-8", None)):
            session.add(
                DeploymentRow(
                    rollout=1,
                    device=device,
                    bundle=bundle.sha256,
                    wave=0,
                    state="COMMITTED",
                    trials=trials,
                    created=1.0,
                    updated=2.0,
                )
            )
    assert web.client.device("till-7").trials == found
    assert web.client.device("till-8").trials == ()
    assert [one.trials for one in web.client.rollout(1).deployments] == [found, ()]
    for shown in (run("device", "show", "till-7"), run("rollout", "show", "1")):
        for word in ("onnx-int8", "golden", "[red]", "ncnn-fp32", "kept", "12.3", "42.0"):
            assert word in shown
    assert "p50 ms" not in run("device", "show", "till-8")
    assert json.loads(run("device", "show", "till-7", "--json"))["trials"][1]["kept"] is True


def test_what_devices_send_is_never_markup(web: Any, run: Run) -> None:
    web.enrol("till-7")
    with web.state.database.session() as session:
        session.get_one(DeviceRow, "till-7").flagged = "[bold]seen[/bold] twice"
    assert "[bold]seen[/bold] twice" in run("devices")
    run("device", "resolve", "till-7", "--reason", "[/x]")
    assert "[/x]" in run("audit")


def test_registry(web: Any, run: Run) -> None:
    web.published()
    assert "fraud:1" in run("bundles")
    assert "host" in run("releases", "--name", "fraud")
    tree = run("lineage", "fraud:1")
    assert "run-1" in tree
    assert "d" * 64 in tree


def test_a_rollout_from_creation_to_abort(web: Any, run: Run) -> None:
    web.published()
    shown = run("rollout", "create", "--bundle", "fraud:1", "--group", "tills", "--canary", "2", "--soak-s", "3")
    assert "PENDING" in shown
    rollout = web.client.rollouts()[0]
    assert (rollout.group, rollout.canary, rollout.settings.soak_s) == ("tills", 2, 3.0)
    number = str(rollout.id)
    assert "PAUSED" in run("rollout", "pause", number, "--reason", "wait")
    assert "RUNNING" in run("rollout", "resume", number)
    assert "ABORTED" in run("rollout", "abort", number)
    assert "ABORTED" in run("rollout", "show", number)
    assert json.loads(run("rollouts", "--json"))[0]["state"] == "ABORTED"
    assert json.loads(run("events", "--rollout", number, "--json")) == []
    with pytest.raises(ConflictError):
        run("rollout", "pause", number)


def test_retraining(web: Any, run: Run) -> None:
    web.published()
    shown = run(
        "trigger", "create", "floor", "--model", "fraud", "--kind", "accuracy", "--set", "floor=0.9", "--set",
        "min_labels=10",
    )  # fmt: skip
    assert "floor=0.9" in shown
    assert "accuracy" in run("triggers")
    assert "OPEN" in run("job", "open", "--model", "fraud")
    assert "OPEN" in run("jobs")
    assert "fraud:1" in run("performance", "fraud")
    assert "host" in run("drift", "fraud")
    assert json.loads(run("drift", "--json")) == []


def test_labels_from_a_file(web: Any, run: Run, tmp_path: Path) -> None:
    web.published()
    file = tmp_path / "labels.csv"
    file.write_text("when,id,label\n1,a-1,fraud\n2,a-2,legitimate\n")
    assert run("labels", str(file)) == "2 labels\n"
    assert json.loads(run("labels", str(file), "--json")) == {"accepted": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read labels"),
        (b"", "no column 'id'"),
        (b"id,truth\na,b\n", "no column 'label'"),
        (b"id,label\na-1\n", "line 2"),
        (b"id,label\n,fraud\n", "line 2"),
        (b"id,label\n\xff,fraud\n", "cannot read labels"),
    ],
)
def test_labels_that_cannot_be_read(web: Any, run: Run, tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "labels.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BadDataError, match=message):
        run("labels", str(file))


def test_tokens_and_the_audit_log(web: Any, run: Run) -> None:
    token = run("token", "create", "--group", "tills").strip()
    assert token.startswith("ort_")
    assert "token.create" in run("audit", "--limit", "5")
    assert "intact" in run("audit", "--verify")
    assert "broken" in run("audit", "--verify", "--known-head", "1" * 64)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["rollout"],
        ["rollout", "create"],
        ["rollout", "create", "--bundle", "fraud"],
        ["rollout", "create", "--bundle", "fraud:1", "--canary", "-1"],
        ["rollout", "create", "--bundle", "fraud:1", "--attempts", "0"],
        ["rollout", "show", "x"],
        ["trigger", "create", "a b", "--model", "m", "--kind", "accuracy"],
        ["trigger", "create", "a", "--model", "m", "--kind", "accuracy", "--set", "floor"],
        ["lineage", "fraud"],
    ],
)
def test_commands_that_cannot_be_parsed(web: Any, arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        fleet_main([*arguments, "--url", web.url, "--api-key", web.key])


def test_help_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fleet", "--help"]) == 0
    assert "rollouts" in capsys.readouterr().out
    assert main(["publish", "--help"]) == 0


def test_which_fleet_and_key_are_taken(
    web: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NotFoundError, match="cannot be read"):
        fleet_main(["devices"])
    (tmp_path / "outrider-data").mkdir()
    write_key_file(tmp_path / "outrider-data" / "admin.key", web.key)
    with pytest.raises(NotFoundError, match="there is no API key for"):  # the local fleet's key is not for any address
        fleet_main(["devices", "--url", web.url])
    monkeypatch.setenv("OUTRIDER_URL", web.url)
    monkeypatch.setenv("OUTRIDER_KEY", web.key)
    assert fleet_main(["devices"]) == 0
    monkeypatch.setenv("OUTRIDER_KEY", "ork_wrong")
    with pytest.raises(BadInputError):
        fleet_main(["devices"])
    folder = tmp_path / "data"
    folder.mkdir()
    write_key_file(folder / "admin.key", web.key)
    (folder / "api.url").write_text(web.url)
    assert fleet_main(["devices", "--data-dir", str(folder)]) == 0
    monkeypatch.delenv("OUTRIDER_URL")
    monkeypatch.delenv("OUTRIDER_KEY")
    monkeypatch.setenv("OUTRIDER_DATA_DIR", str(folder))
    assert fleet_main(["devices"]) == 0
    capsys.readouterr()


# Publishing --------------------------------------------------------------------------------------------------


@pytest.fixture
def key_file(web: Any, tmp_path: Path) -> str:
    return str(write_key_pair(web.publisher, tmp_path / "keys", "publisher")[0])


def test_publishing_signs_what_is_not_signed(
    web: Any, make_bundle: Callable[..., Path], key_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(make_bundle()), str(make_bundle(target="aarch64"))]
    connection = ["--url", web.url, "--api-key", web.key]
    assert publish_main([*paths, "--key", key_file, *connection]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["fraud:1 for host", "fraud:1 for aarch64"]
    assert len(web.client.bundles()) == 2
    assert publish_main([*paths, *connection]) == 0  # signed by now, so no key is needed
    assert len(web.client.bundles()) == 2


def test_what_misses_its_goals_is_published_only_when_told(
    web: Any, make_bundle: Callable[..., Path], key_file: str
) -> None:
    missed = GoalRecord(text="p99<=1ms", metric="p99", relation="<=", bound=1.0, unit="ms", measured=2.0, met=False)
    arguments = [str(make_bundle(goals=(missed,))), "--key", key_file, "--url", web.url, "--api-key", web.key]
    with pytest.raises(GoalUnmetError, match="p99<=1ms"):
        publish_main(arguments)
    assert web.client.bundles() == []
    assert publish_main([*arguments, "--unmet"]) == 0
    assert len(web.client.bundles()) == 1


def test_publishing_without_signature_or_key(web: Any, make_bundle: Callable[..., Path]) -> None:
    arguments = [str(make_bundle()), "--url", web.url, "--api-key", web.key]
    with pytest.raises(UnsignedError, match="is not signed"):
        publish_main(arguments)
    write_key_pair(web.publisher, default_key_path().parent, "publisher")
    assert publish_main(arguments) == 0  # by the key that 'outrider keys init' makes


def test_a_stale_or_foreign_signature_is_replaced(web: Any, make_bundle: Callable[..., Path]) -> None:
    path = make_bundle()
    first = signature(open_bundle(path), web.publisher)
    assert signature(open_bundle(path), web.publisher) == first
    assert signature(open_bundle(path), None) == first
    foreign = signature(open_bundle(path), generate_key())
    assert foreign != first
    assert signature(open_bundle(path), web.publisher) == first
    make_bundle(artifact=b"rebuilt")
    assert signature(open_bundle(path), web.publisher) != first
    assert signature_path(path).exists()


def test_a_key_that_the_fleet_does_not_trust(web: Any, make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    stranger, _ = write_key_pair(generate_key(), tmp_path / "keys", "stranger")
    with pytest.raises(UnknownKeyError):
        publish_main([str(make_bundle()), "--key", str(stranger), "--url", web.url, "--api-key", web.key])
