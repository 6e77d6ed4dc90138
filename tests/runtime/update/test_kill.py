"""kill -9 at every named point of an update, then a restart: committed, or on the previous bundle, never without one.

`killed_device.py` is the device. The points are listed here so that each is a test of its own; the first test of each
way checks that the list is complete.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from outrider.runtime.messages import TERMINAL_STATES

pytestmark = pytest.mark.system

PAD = 3 * 128 * 1024


def _journal(*moves: str) -> list[str]:
    """The points around journalling; `STATE#n` is the n-th time that the state is written."""
    return [point for move in moves for point in _around(move)]


def _around(move: str) -> tuple[str, str]:
    state, _, times = move.partition("#")
    return f"journal.{state}.begin#{times or 1}", f"journal.{state}.done#{times or 1}"


TO_SOAKING = [
    *("resume.begin#1", "resume.done#1", "collect.begin#1", "collect.done#1"),
    *("offer.begin#1", "offer.done#1"),
    *_journal("OFFERED"),
    *("collect.begin#2", "collect.done#2"),
    *_journal("ADMITTED"),
    "reserve.done#1",
    *_journal("FETCHING"),
    *("fetch.block#1", "fetch.block#2", "fetch.block#3", "fetch.block#4"),
    *("fetch.flushed#1", "fetch.mapped#1", "fetch.done#1"),
    *_journal("VERIFIED"),
    *("stage.folder#1", "stage.moved#1", "stage.signed#1", "stage.done#1"),
    *_journal("STAGED", "PROBING"),
    *("probe.begin#1", "probe.done#1"),
    *_journal("ARMED", "ARMED#2"),
    *("swap.begin#1", "swap.previous#1", "swap.current#1"),
    *_journal("SOAKING"),
    *("activate.begin#1", "activate.done#1"),
    *_journal("SOAKING#2"),
]
COMMIT = [*_journal("COMMITTED"), "collect.begin#3", "collect.renamed#1", "collect.done#3"]
ROLL_BACK = [
    *_journal("SOAKING#3"),
    *("restore.begin#1", "restore.current#1", "restore.done#1"),
    *_journal("ROLLED_BACK"),
    *("collect.begin#3", "collect.renamed#1", "collect.renamed#2", "collect.done#3"),
]
NOT_FIRST = ("fetch.block#2", "fetch.block#3", "fetch.block#4", "collect.begin#2", "collect.done#2")
FIRST = ["collect.begin#1", "collect.done#1", *(point for point in TO_SOAKING[6:] if point not in NOT_FIRST)]
PROBING = [*_journal("PROBING"), "probe.begin#1", "probe.done#1", "journal.ARMED.begin#1"]


class Lab:
    """Four bundles, the last of two artifacts, a device that runs the second and keeps the first, and the process that
    forks devices."""

    def __init__(self, folder: Path, fleet: Any) -> None:
        self.folder = folder
        self.fleet = fleet
        self.bundles = [fleet.bundle("1"), fleet.bundle("2"), fleet.bundle("3", pad=PAD)]
        self.bundles.append(fleet.bundle("4", several={"a": fleet.library, "b": fleet.library}))
        self.old, self.new = self.bundles[1].sha256, self.bundles[2].sha256
        fleet.trust.save(folder / "trust")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("killed_device.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._running = folder / "running"
        for rev in (1, 2):
            status, result = self.live(self._running, f"boot-{rev}", rev=rev)
            assert (status, result["current"]) == (0, self.bundles[rev - 1].sha256)

    def live(self, state: Path, boot_id: str, *, rev: int = 3, **options: Any) -> tuple[int, dict[str, Any]]:
        """Run one device on a state folder: its wait status, and its result where it lived to write one."""
        envelope = self.folder / f"desired-{rev}"
        if not envelope.exists():
            envelope.write_bytes(self.fleet.desired(rev, self.bundles[rev - 1]))
        result = self.folder / "result"
        result.unlink(missing_ok=True)
        request = {
            "state": str(state),
            "registry": str(self.fleet.folder),
            "trust": str(self.folder / "trust"),
            "envelope": str(envelope),
            "boot_id": boot_id,
            "result": str(result),
            "rev": rev,
            **options,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(request).decode() + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        return status, msgspec.json.decode(result.read_bytes()) if result.exists() else {}

    def device(self, place: Path) -> Path:
        """A fresh device that runs the second bundle."""
        shutil.copytree(self._running, place, symlinks=True)
        return place

    def close(self) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(10)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, make_fleet: Callable[[Path], Any]) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"), make_fleet(tmp_path_factory.mktemp("registry")))
    yield lab
    lab.close()


def _on_disk(state: Path) -> str | None:
    """What the slot is linked to: a whole bundle with its signature, or None."""
    link = state / "slots" / "main" / "current"
    if not link.is_symlink():
        return None
    sha256 = link.readlink().name
    assert hashlib.sha256((link / "bundle.orb").read_bytes()).hexdigest() == sha256
    assert (link / "bundle.orb.dsse").stat().st_size > 0
    return sha256


def _check_events(events: list[tuple[str, str | None, str, str]], ends: str) -> None:
    """The fleet hears every step once, in order, whoever took it."""
    moves = [(before, after) for job, before, after, _ in events if job == "j3"]
    assert [before for before, _ in moves] == [None, *(after for _, after in moves[:-1])]
    assert moves[-1][1] == ends
    assert not TERMINAL_STATES & {after for _, after in moves[:-1]}
    assert len(set(moves)) == len(moves)


def _killed(status: int) -> bool:
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize(("fail", "ends", "points"), [(False, "COMMITTED", COMMIT), (True, "ROLLED_BACK", ROLL_BACK)])
def test_the_points_are_all_there_are(lab: Lab, tmp_path: Path, fail: bool, ends: str, points: list[str]) -> None:
    status, result = lab.live(lab.device(tmp_path / "state"), "boot-3", fail=lab.new if fail else "")
    assert (status, result["state"]) == (0, ends)
    assert result["passed"] == TO_SOAKING + points
    _check_events(result["events"], ends)


@pytest.mark.parametrize("point", TO_SOAKING + COMMIT)
def test_killed_on_the_way_to_commit(lab: Lab, tmp_path: Path, point: str) -> None:
    state = lab.device(tmp_path / "state")
    status, _ = lab.live(state, "boot-3", kill=point)
    assert _killed(status)
    assert _on_disk(state) in (lab.old, lab.new)
    status, result = lab.live(state, "boot-4")
    assert (status, result["state"], result["current"]) == (0, "COMMITTED", lab.new)
    assert _on_disk(state) == lab.new
    assert result["previous"] == lab.old
    assert result["served"][-1] == lab.new
    assert sorted(place.name for place in (state / "bundles").iterdir()) == sorted([lab.old, lab.new])
    assert list((state / "staging").iterdir()) == []
    _check_events(result["events"], "COMMITTED")


def test_what_was_fetched_is_not_fetched_again(lab: Lab, tmp_path: Path) -> None:
    state = lab.device(tmp_path / "state")
    assert _killed(lab.live(state, "boot-3", kill="fetch.mapped#1")[0])
    _, result = lab.live(state, "boot-4")
    assert result["state"] == "COMMITTED"
    assert not any(point.startswith("fetch.block") for point in result["passed"])


@pytest.mark.parametrize("point", ROLL_BACK)
def test_killed_on_the_way_back(lab: Lab, tmp_path: Path, point: str) -> None:
    state = lab.device(tmp_path / "state")
    status, _ = lab.live(state, "boot-3", kill=point, fail=lab.new)
    assert _killed(status)
    assert _on_disk(state) in (lab.old, lab.new)
    status, result = lab.live(state, "boot-4", fail=lab.new)
    assert (status, result["state"], result["current"]) == (0, "ROLLED_BACK", lab.old)
    assert _on_disk(state) == lab.old
    assert result["served"][-1] == lab.old
    _check_events(result["events"], "ROLLED_BACK")


@pytest.mark.parametrize("point", PROBING)
def test_killed_while_a_child_probes(lab: Lab, tmp_path: Path, point: str) -> None:
    state = lab.device(tmp_path / "state")
    status, _ = lab.live(state, "boot-3", kill=point, real_probe=True)
    assert _killed(status)
    assert _on_disk(state) == lab.old
    status, result = lab.live(state, "boot-4", real_probe=True)
    assert (status, result["state"], result["current"]) == (0, "COMMITTED", lab.new)


@pytest.mark.parametrize("point", ["probe.done#1", "journal.ARMED.begin#1", "journal.ARMED.done#1"])
def test_killed_around_the_choice_of_an_artifact(lab: Lab, tmp_path: Path, point: str) -> None:
    state, new = lab.device(tmp_path / "state"), lab.bundles[3].sha256
    assert _killed(lab.live(state, "boot-3", rev=4, kill=point, real_probe=True)[0])
    assert _on_disk(state) == lab.old
    assert (state / "bundles" / new / "choice-main.json").exists()
    status, result = lab.live(state, "boot-4", rev=4, real_probe=True)
    assert (status, result["state"], result["current"]) == (0, "COMMITTED", new)
    choice = msgspec.json.decode((state / "bundles" / new / "choice-main.json").read_bytes())
    assert choice["candidate"] in choice["sound"] == ["a", "b"]


@pytest.mark.parametrize("point", FIRST)
def test_killed_on_the_first_bundle_of_all(lab: Lab, tmp_path: Path, point: str) -> None:
    status, _ = lab.live(tmp_path / "state", "boot-1", rev=1, kill=point)
    assert _killed(status)
    assert _on_disk(tmp_path / "state") in (None, lab.bundles[0].sha256)
    status, result = lab.live(tmp_path / "state", "boot-2", rev=1)
    assert (status, result["state"], result["current"]) == (0, "COMMITTED", lab.bundles[0].sha256)


@pytest.mark.parametrize("point", ["swap.current#1", "activate.begin#1", "activate.done#1"])
def test_a_bundle_that_kills_its_device_twice_is_taken_back(lab: Lab, tmp_path: Path, point: str) -> None:
    state = lab.device(tmp_path / "state")
    assert _killed(lab.live(state, "boot-3", kill=point)[0])
    assert _on_disk(state) == lab.new
    assert _killed(lab.live(state, "boot-4", kill="activate.done#1")[0])
    status, result = lab.live(state, "boot-5")
    assert (status, result["state"], result["reason"]) == (0, "ROLLED_BACK", "unconfirmed")
    assert _on_disk(state) == lab.old
    assert result["served"] == [lab.old]


def test_killed_at_every_tenth_point_in_a_row(lab: Lab, tmp_path: Path) -> None:
    """Many lives of one update, none of which gets far."""
    state, boot = lab.device(tmp_path / "state"), 3
    for point in (TO_SOAKING + COMMIT)[::10]:
        status, _ = lab.live(state, f"boot-{boot}", kill=point)
        assert _on_disk(state) in (lab.old, lab.new)
        boot += 1
    status, result = lab.live(state, f"boot-{boot}")
    assert status == 0
    assert (result["state"], result["current"]) in (("COMMITTED", lab.new), ("ROLLED_BACK", lab.old))


@pytest.mark.soak
def test_random_lives(lab: Lab, tmp_path: Path) -> None:
    """Killed at random points, alone and in a row, each update ends committed or back (`OUTRIDER_SOAK_KILLS`).

    One whose probe was killed three times is rejected: a bundle that takes the machine down looks just so.
    """
    seed = int(os.environ.get("OUTRIDER_SOAK_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"OUTRIDER_SOAK_SEED={seed}")
    dice, kills, update = random.Random(seed), 0, 0
    while kills < int(os.environ.get("OUTRIDER_SOAK_KILLS", "1000")):
        fail = lab.new if dice.random() < 0.3 else ""
        points = TO_SOAKING + (ROLL_BACK if fail else COMMIT)
        state = lab.device(tmp_path / "state")
        update += 1
        for boot in range(3, 3 + dice.randint(1, 4)):
            status, _ = lab.live(state, f"boot-{boot}", kill=dice.choice(points), fail=fail)
            kills += _killed(status)
            assert _on_disk(state) in (lab.old, lab.new), (seed, update)
        status, result = lab.live(state, "boot-9", fail=fail)
        assert status == 0, (seed, update)
        ends = (("COMMITTED", lab.new), ("ROLLED_BACK", lab.old), ("REJECTED", lab.old))
        assert (result["state"], result["current"]) in ends, (seed, update)
        assert result["served"][-1] == _on_disk(state) == result["current"], (seed, update)
        shutil.rmtree(state)
