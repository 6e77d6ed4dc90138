"""A full disk at any step: the active bundle serves on, the refusal is clean, and the journal is still written."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from outrider.runtime.bundle import open_bundle
from outrider.runtime.errors import StorageFullError
from outrider.runtime.fetch import BlockFile
from outrider.runtime.store import Store

SMALL = 24 << 20
PAD = 2 << 20
POINTS = [
    "offer.begin",
    "offer.done",
    "journal.OFFERED.begin",
    "journal.OFFERED.done",
    "collect.done",
    "journal.ADMITTED.done",
    "reserve.done",
    "journal.FETCHING.done",
    "fetch.block",
    "fetch.flushed",
    "fetch.done",
    "journal.VERIFIED.done",
    "stage.folder",
    "stage.moved",
    "stage.signed",
    "journal.STAGED.done",
    "probe.begin",
    "journal.ARMED.done",
    "swap.begin",
    "swap.previous",
    "swap.current",
    "activate.begin",
    "journal.SOAKING.begin",
    "journal.COMMITTED.begin",
]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "outrider-test", str(place)],
        check=False,
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def _fill(disk: Path) -> None:
    """Leave not one byte."""
    with (disk / "filler").open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


class Filler:
    """Fills the disk at the first pass of a checkpoint, once it is armed."""

    def __init__(self, disk: Path) -> None:
        self.disk = disk
        self.at: str | None = None

    def __call__(self, name: str) -> None:
        if name == self.at:
            self.at = None
            _fill(self.disk)


@pytest.mark.system
@pytest.mark.parametrize("point", POINTS)
def test_the_disk_fills_up_at_a_point(
    fleet: Any, make_device: Callable[..., Any], small_disk: Path, point: str
) -> None:
    filler = Filler(small_disk)
    device = make_device(small_disk / "state", store={"checkpoint": filler})
    first, second, third = fleet.bundle("1"), fleet.bundle("2", pad=PAD), fleet.bundle("3", pad=PAD)
    device.installer.offer(fleet.desired(1, first))
    device.wait("COMMITTED", rev=1)

    filler.at = point
    device.installer.offer(fleet.desired(2, second))
    device.wait("REJECTED", "COMMITTED", rev=2)
    assert filler.at is None
    refused = device.state() == "REJECTED"
    if refused:
        assert device.reasons()[0] == "disk"
        assert device.reasons()[1]
    assert device.store.slots.current("main") == (first if refused else second).sha256
    assert device.served[-1] == device.store.slots.current("main")
    open_bundle(device.installer.active_bundle("main"))
    assert device.events()[-1].to_state == device.state()

    (small_disk / "filler").unlink()
    device.installer.offer(fleet.desired(3, third))
    device.wait("COMMITTED", rev=3)


@pytest.mark.system
def test_a_bundle_that_does_not_fit_is_declined_before_a_byte(
    fleet: Any, make_device: Callable[..., Any], small_disk: Path
) -> None:
    device = make_device(small_disk / "state")
    first, huge = fleet.bundle("1"), fleet.bundle("2", pad=SMALL)
    device.installer.offer(fleet.desired(1, first))
    device.wait("COMMITTED", rev=1)
    device.source.served.clear()
    device.installer.offer(fleet.desired(2, huge))
    device.wait("REJECTED", rev=2)
    assert device.reasons()[0] == "disk"
    assert device.source.served == []
    assert device.store.slots.current("main") == first.sha256


@pytest.mark.system
def test_garbage_gives_way_to_a_bundle(fleet: Any, make_device: Callable[..., Any], small_disk: Path) -> None:
    device = make_device(small_disk / "state")
    bundles = [fleet.bundle(str(n), pad=6 << 20) for n in (1, 2, 3, 4, 5)]
    for rev, bundle in enumerate(bundles, start=1):  # three fit beside each other, five do not
        device.installer.offer(fleet.desired(rev, bundle))
        device.wait("COMMITTED", rev=rev)
    assert device.store.slots.previous("main") == bundles[3].sha256


@pytest.mark.system
def test_a_full_disk_at_start_serves_on(fleet: Any, make_device: Callable[..., Any], small_disk: Path) -> None:
    device = make_device(small_disk / "state")
    first = fleet.bundle("1")
    device.installer.offer(fleet.desired(1, first))
    device.wait("COMMITTED", rev=1)
    device.close()
    _fill(small_disk)
    for _ in range(2):
        again = make_device(small_disk / "state")
        assert again.served == [first.sha256]
        again.close()


def test_a_reservation_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageFullError, match="No space left"):
        BlockFile(tmp_path / "x.part", tmp_path / "x.map", 1000)
    assert list(tmp_path.iterdir()) == []


def _write_all(blocks: BlockFile) -> None:
    blocks.write(0, bytes(1000))
    blocks.flush()


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_an_error_while_writing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with BlockFile(tmp_path / "x.part", tmp_path / "x.map", 1000) as blocks:
        monkeypatch.setattr(os, call, full)
        with pytest.raises(StorageFullError):
            _write_all(blocks)


@pytest.mark.system
def test_the_journal_is_written_from_the_ballast(small_disk: Path) -> None:
    store = Store(small_disk / "state")
    try:
        _fill(small_disk)
        for _ in range(20):
            store.outbox.put("evt", bytes(300))
        assert not (small_disk / "state" / "ballast").exists()
        assert len(store.outbox.pending(100)) == 20
        with pytest.raises(StorageFullError):
            store.outbox.put("evt", bytes(4 << 20))
        assert len(store.outbox.pending(100)) == 20
        (small_disk / "filler").unlink()
        store.collect_garbage()
        assert (small_disk / "state" / "ballast").exists()
    finally:
        store.close()
