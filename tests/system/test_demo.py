"""The demo is the system test: the whole loop with real processes, against both brokers."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from outrider.runtime.bundle import open_bundle

pytestmark = pytest.mark.system

INTERRUPTED = 130
LOOP_TIMEOUT_S = 280
# Ten moments over the offline demo: while it imports, trains, compiles, enrols, rolls out, streams, retrains.
_RANDOM = random.Random(20261123)
MOMENTS = sorted(_RANDOM.uniform(0.3, 32.0) for _ in range(10))


@pytest.mark.timeout(LOOP_TIMEOUT_S + 20)
@pytest.mark.parametrize(
    ("broker", "arguments"),
    [("mosquitto", ()), ("iotcore", ("--offline",))],
    ids=["mosquitto-cards", "iotcore-offline"],
)
def test_the_loop_closes(
    broker: str,
    arguments: tuple[str, ...],
    outrider: list[str],
    tmp_path: Path,
    require_tool: Callable[[str], str],
    processes_naming: Callable[[Path], list[str]],
) -> None:
    if broker == "mosquitto":
        require_tool("mosquitto")
    folder = tmp_path / "d"
    done = subprocess.run(
        [*outrider, "demo", "--broker", broker, "--dir", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=LOOP_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The loop has closed." in done.stdout
    assert f"Broker: {broker}" in done.stdout
    assert "Alarms on unshifted data: 0" in done.stdout
    assert processes_naming(folder) == []
    _assert_whole(folder)


@pytest.mark.soak
@pytest.mark.parametrize("broker", ["mosquitto", "iotcore"])
def test_the_loop_closes_again_and_again(
    broker: str, outrider: list[str], tmp_path: Path, require_tool: Callable[[str], str]
) -> None:
    """`OUTRIDER_SOAK_ROUNDS` rounds, each from nothing to a retrained release on all devices."""
    if broker == "mosquitto":
        require_tool("mosquitto")
    for number in range(int(os.environ.get("OUTRIDER_SOAK_ROUNDS", "10"))):
        done = subprocess.run(
            [*outrider, "demo", "--broker", broker, "--offline", "--dir", str(tmp_path / str(number))],
            capture_output=True,
            text=True,
            timeout=LOOP_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"round {number}\n{done.stdout}{done.stderr}"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("moment", MOMENTS, ids=[f"{moment:.1f}s" for moment in MOMENTS])
def test_ctrl_c_leaves_nothing_behind(
    moment: float, outrider: list[str], tmp_path: Path, processes_naming: Callable[[Path], list[str]]
) -> None:
    folder = tmp_path / "d"
    printed = tmp_path / "printed"
    with printed.open("wb") as output:
        demo = subprocess.Popen(
            [*outrider, "demo", "--offline", "--keep", "--dir", str(folder)],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        time.sleep(moment)
        os.killpg(demo.pid, signal.SIGINT)  # what a terminal does
        code = demo.wait(60)
    finally:
        demo.kill()
        demo.wait()
    assert code in (INTERRUPTED, -signal.SIGINT), printed.read_text(encoding="utf-8")
    assert processes_naming(folder) == []
    _assert_whole(folder)


def _assert_whole(folder: Path) -> None:
    """No file is half-written: bundles open, databases are sound, and nothing temporary is left."""
    for path in folder.rglob("*.orb"):
        if "staging" not in path.parts:  # an interrupted fetch resumes there
            open_bundle(path)
    for path in folder.rglob("*.db"):
        if path.name == "mosquitto.db":  # the broker's own format
            continue
        connection = sqlite3.connect(path)
        try:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        finally:
            connection.close()
    left = [str(path) for path in folder.rglob("*") if path.suffix in (".tmp", ".part") and "staging" not in path.parts]
    assert left == []
