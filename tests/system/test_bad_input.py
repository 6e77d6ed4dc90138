"""Bad input, as users meet it: the exit code, one clear line, and nothing lost. Each case, and where it is tested:

| Case | What the user sees: here | Inside |
| --- | --- | --- |
| a corrupt or truncated model | `test_a_model_that_cannot_be_read` | compiler/test_frontends.py, compiler/test_cli.py |
| a model whose trees are none | `test_a_model_that_cannot_be_read` | compiler/test_sound_files.py, \
compiler/test_check.py, compiler/test_onnx_graphs.py `test_trees_that_are_none` |
| a model with zero trees | `test_a_model_without_trees` | compiler/test_frontends.py `test_zero_trees` |
| a bundle for another target | `test_a_bundle_for_another_target`, `test_a_release_without_a_bundle_for_the_device` | \
runtime/test_session.py, runtime/test_admission.py, runtime/update/test_installer.py `TestDeclinedBundles` |
| a flipped byte in an artifact | `test_a_flipped_byte_in_an_artifact`, `test_a_bundle_damaged_on_the_fleets_disk` | \
runtime/test_bundle.py, runtime/test_bundle_fuzz.py, fleet/web/test_registry.py |
| an unsigned or wrongly signed desired document | | runtime/update/test_installer.py `TestRefusedDocuments`, \
runtime/device/test_link.py `test_a_refused_document_is_done_with_and_a_full_disk_is_not` |
| a lower revision | | runtime/update/test_installer.py `test_a_lower_revision`, fleet/mqtt/test_manager.py \
`test_a_restarted_manager_publishes_no_lower_revision_and_loses_no_event` |
| a broker that is away at start and in the middle | `test_the_fleet_is_away_at_start_and_in_the_middle` | \
runtime/device/test_link.py, runtime/device/test_enrol.py, fleet/mqtt/test_broker.py |
| a full disk at fetch | | runtime/update/test_disk_full.py (a file system of a few MB, filled at each point) |
| two devices with one identity | `test_two_devices_with_one_identity` | fleet/mqtt/test_manager.py, \
fleet/mqtt/test_apply.py, fleet/web/test_devices.py |
| a recipe with an unknown key | `test_a_recipe_with_an_unknown_key` | trainer/test_recipe.py |
| a port in use | `test_a_port_in_use` | fleet/web/test_up.py, fleet/mqtt/test_broker.py, \
runtime/device/test_daemon.py |
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outrider.compiler import compile_model
from outrider.runtime import load
from outrider.runtime.api_client import FleetClient
from outrider.runtime.api_client.connect import read_key_file
from outrider.runtime.cli import main
from outrider.runtime.errors import TargetMismatchError
from outrider.runtime.trust import generate_key, write_key_pair

WAIT_S = 40.0
MODEL = "wave"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two versions of its bundle for this machine, and one for another."""
    import xgboost

    folder = tmp_path_factory.mktemp("made")
    rows = np.random.default_rng(5).normal(size=(300, 3)).astype(np.float32)
    booster = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(rows, label=rows[:, 0] > 0), 3)
    booster.save_model(folder / "wave.ubj")
    for version, target in (("1", "host"), ("2", "host"), ("3", _foreign_target())):
        compile_model(
            booster, target=target, out=folder / f"{version}.orb", calibration=rows, name=MODEL, version=version
        )
    return folder


def _foreign_target() -> str:
    return "aarch64" if os.uname().machine == "x86_64" else "x86-64"


# Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut short", "overwritten", "empty", "in a circle"])
def test_a_model_that_cannot_be_read(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    data = (made / "wave.ubj").read_bytes()
    (tmp_path / "wave.ubj").write_bytes(
        {
            "cut short": data[: len(data) // 2],
            "overwritten": os.urandom(400),
            "empty": b"",
            "in a circle": _in_a_circle(data),
        }[damage]
    )
    before = shutil.copy(made / "1.orb", tmp_path / "wave.orb")
    arguments = ["compile", str(tmp_path / "wave.ubj"), "-o", str(before)]
    assert main(arguments) == 1
    _one_clear_line(capsys, "wave.ubj")
    assert before.read_bytes() == (made / "1.orb").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wave.orb", "wave.ubj"]


def _in_a_circle(data: bytes) -> bytes:
    """The model with the root of its last tree as its own child, which XGBoost itself would follow without end."""
    mark = b"left_children[$l#L"
    start = data.rindex(mark) + len(mark) + 8  # behind the number of nodes
    return data[:start] + bytes(4) + data[start + 4 :]


def test_a_model_without_trees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import xgboost

    xgboost.train({}, xgboost.DMatrix(np.ones((4, 2), np.float32), label=np.ones(4)), 0).save_model(tmp_path / "m.ubj")
    assert main(["compile", str(tmp_path / "m.ubj"), "-o", str(tmp_path / "m.orb")]) == 1
    _one_clear_line(capsys, "zero trees")
    assert not (tmp_path / "m.orb").exists()


def test_a_flipped_byte_in_an_artifact(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray((made / "1.orb").read_bytes())
    data[data.find(b"\x7fELF") + 200] ^= 1
    path = tmp_path / "flipped.orb"
    path.write_bytes(data)
    key, _ = write_key_pair(generate_key(), tmp_path / "keys", "publisher")
    for arguments in (["inspect"], ["sign", "--key", str(key)], ["publish", "--key", str(key), "--api-key", "k"]):
        assert main([arguments[0], str(path), *arguments[1:]]) == 1
        _one_clear_line(capsys, "SHA-256")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["flipped.orb", "keys"]


def test_a_bundle_for_another_target(made: Path) -> None:
    with pytest.raises(TargetMismatchError, match=_foreign_target().replace("-", "_")) as refused:
        load(made / "3.orb")
    assert refused.value.exit_code == 5


def test_a_recipe_with_an_unknown_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('extends = "breast_cancer"\n\n[gate]\nmin_gian = 0.1\n')
    assert main(["train", str(recipe), "-o", str(tmp_path / "model")]) == 1
    shown = _one_clear_line(capsys, "min_gian")
    assert "min_gain" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]


def _one_clear_line(capsys: pytest.CaptureFixture[str], part: str) -> str:
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if not line.startswith("  hint: ")]
    assert lines[-1].startswith("error: ")
    assert part in lines[-1]
    assert "Traceback" not in shown.err
    assert shown.out == ""
    return shown.err


# A fleet and a device -----------------------------------------------------------------------------------------------


class Site:
    """One fleet and its devices, as processes. The fleet keeps its port over a restart."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.key, self.public = write_key_pair(generate_key(), folder / "keys", "publisher")
        self.processes: list[subprocess.Popen[bytes]] = []
        self.fleet_process: subprocess.Popen[bytes] | None = None

    def start(self, log: str, *command: str) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OUTRIDER_")}
        with (self.folder / log).open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], stdout=output, stderr=output, env=environment, start_new_session=True
            )
        self.processes.append(process)
        return process

    def start_fleet(self) -> None:
        self.fleet_process = self.start(
            *("fleet.log", "outrider.runtime.cli", "up", "--port", str(self.port)),
            *("--data-dir", str(self.folder / "fleet"), "--publisher-key", str(self.public)),
        )
        self.wait(lambda: (self.folder / "fleet" / "api.url").exists() and self.client.healthy())

    @property
    def client(self) -> FleetClient:
        return FleetClient(f"http://127.0.0.1:{self.port}", read_key_file(self.folder / "fleet" / "admin.key"))

    def configure(self, name: str, token: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        (folder / "device.toml").write_text(
            f'state_dir = "state"\nfleet_url = "http://127.0.0.1:{self.port}"\nname = "{name}"\ntoken = "{token}"\n'
            'port = 0\nsocket = "s"\nbackoff_s = 0.1\nbackoff_max_s = 0.5\n'
        )
        return folder

    def start_device(self, folder: Path) -> subprocess.Popen[bytes]:
        return self.start(f"{folder.name}.log", "outrider.runtime.daemon", "--config", str(folder / "device.toml"))

    def stop(self, process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
        process.send_signal(number)
        process.wait(30)

    def publish(self, path: Path, version: str) -> None:
        copy = shutil.copy(path, self.folder)
        assert main(["publish", str(copy), "--key", str(self.key), "--data-dir", str(self.folder / "fleet")]) == 0
        assert [release for release in self.client.releases(MODEL) if release.version == version]

    def cli(self, *arguments: str) -> int:
        return main(["fleet", *arguments, "--data-dir", str(self.folder / "fleet")])

    def roll_out(self, version: str) -> int:
        release = f"{MODEL}:{version}"
        assert self.cli("rollout", "create", "--bundle", release, "--soak-s", "0.2", "--attempts", "1") == 0
        return self.client.rollouts()[0].id

    def wait(self, condition: Callable[[], Any], what: str = "") -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, what + self.logs()
            time.sleep(0.05)

    def logs(self) -> str:
        return "".join(f"\n== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))

    def state(self, rollout: int) -> str:
        return self.client.rollout(rollout).state


@pytest.fixture
def site(tmp_path: Path, free_port: int, made: Path) -> Iterator[Site]:
    """A fleet whose one device, till-1, serves version 1."""
    site = Site(tmp_path, free_port)
    try:
        site.start_fleet()
        site.publish(made / "1.orb", "1")
        site.start_device(site.configure("till-1", site.client.create_enrolment_token()))
        site.wait(lambda: [device for device in site.client.devices() if device.online], "the device online")
        rollout = site.roll_out("1")
        site.wait(lambda: site.state(rollout) == "DONE", "the first rollout")
        yield site
    finally:
        for process in reversed(site.processes):
            if process.poll() is None:
                site.stop(process)


def serving(folder: Path) -> str | None:
    """The version that a device answers with, None where it does not answer."""
    request = {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}
    with socket.socket(socket.AF_UNIX) as connection:
        client = http.client.HTTPConnection("device", timeout=10)
        client.sock = connection
        try:
            connection.connect(str(folder / "s"))
            client.request("POST", "/v2/models/main/infer", json.dumps(request))
            answer = json.loads(client.getresponse().read())
        except (OSError, http.client.HTTPException):
            return None
        version: str | None = answer.get("model_version")
        return version


@pytest.mark.system
def test_a_bundle_damaged_on_the_fleets_disk(site: Site, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site.publish(made / "2.orb", "2")
    (info,) = (bundle for bundle in site.client.bundles() if bundle.version == "2")
    (stored,) = (site.folder / "fleet" / "bundles").rglob(f"*{info.sha256}*")
    data = bytearray(stored.read_bytes())
    data[len(data) // 2] ^= 1
    stored.chmod(0o600)
    stored.write_bytes(data)
    rollout = site.roll_out("2")
    site.wait(lambda: site.state(rollout) == "ABORTED", "the damaged bundle's end")
    site.wait(lambda: site.client.rollout(rollout).deployments[0].reason, "the reason")
    capsys.readouterr()
    assert site.cli("rollout", "show", str(rollout)) == 0
    assert "but the desired document names" in capsys.readouterr().out
    assert serving(site.folder / "till-1") == "1"


@pytest.mark.system
def test_a_release_without_a_bundle_for_the_device(site: Site, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site.publish(made / "3.orb", "3")
    rollout = site.roll_out("3")
    site.wait(lambda: site.client.rollout(rollout).reason, "a reason")
    capsys.readouterr()
    assert site.cli("rollout", "show", str(rollout)) == 0
    shown = capsys.readouterr().out
    assert "no bundle of the release fits a device of the group" in shown
    assert "arch: needs" in shown
    assert serving(site.folder / "till-1") == "1"


@pytest.mark.system
def test_the_fleet_is_away_at_start_and_in_the_middle(site: Site, made: Path) -> None:
    assert site.fleet_process is not None
    folder, device = site.folder / "till-1", site.processes[-1]
    site.stop(site.fleet_process, signal.SIGKILL)
    assert serving(folder) == "1"
    site.stop(device)
    assert serving(folder) is None
    site.start_device(folder)
    site.wait(lambda: serving(folder) == "1", "served without a fleet")
    site.start_fleet()
    site.publish(made / "2.orb", "2")
    rollout = site.roll_out("2")
    site.wait(lambda: site.state(rollout) == "DONE", "an update after the fleet came back")
    assert serving(folder) == "2"


@pytest.mark.system
def test_two_devices_with_one_identity(site: Site, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = site.folder / "till-1"
    shutil.copytree(first, site.folder / "copy", ignore=shutil.ignore_patterns("s"), symlinks=True)
    twin = site.start_device(site.folder / "copy")
    site.wait(lambda: site.client.device("till-1").flagged, "the flag")
    capsys.readouterr()
    assert site.cli("devices") == 0
    assert "duplicate identity" in capsys.readouterr().out
    site.publish(made / "2.orb", "2")
    rollout = site.roll_out("2")
    time.sleep(1.0)
    assert site.state(rollout) != "DONE"
    assert (serving(first), serving(site.folder / "copy")) == ("1", "1")
    site.stop(twin)
    assert site.cli("device", "resolve", "till-1", "--reason", "the copy was stopped") == 0
    site.wait(lambda: site.state(rollout) == "DONE", "rolled out after the decision")
    assert serving(first) == "2"
    assert site.client.device("till-1").flagged is None


@pytest.mark.system
def test_a_port_in_use(tmp_path: Path, outrider: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [*outrider, "up", "--port", str(port), "--data-dir", str(tmp_path / "fleet")]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT_S)
    assert ended.returncode == 1
    assert f"error: 127.0.0.1:{port} is in use" in ended.stderr
    assert not (tmp_path / "fleet").exists()
