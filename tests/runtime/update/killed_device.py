"""A device process for the kill tests: `python killed_device.py` forks one device a request, from a warm start.

Each line on stdin is a `Request` as JSON; the answer on stdout is the wait status of the device's process. A device
installs from a folder, and dies by SIGKILL at the n-th time that it passes a checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from outrider.runtime.errors import OutriderError
from outrider.runtime.fetch import BlockFile
from outrider.runtime.installer import Installer
from outrider.runtime.messages import BLOCK_BYTES, Address, Health, SlotDesired
from outrider.runtime.probe import host_target
from outrider.runtime.prober import ProbeResult, check, probe
from outrider.runtime.session import load
from outrider.runtime.store import Store
from outrider.runtime.trust import TrustStore


class Request(msgspec.Struct, kw_only=True):
    """One life of a device. `kill` is `checkpoint#n` or empty; `fail` is a bundle whose health fails."""

    state: str
    registry: str
    trust: str
    envelope: str
    boot_id: str
    result: str
    rev: int
    kill: str = ""
    fail: str = ""
    real_probe: bool = False


class Result(msgspec.Struct, kw_only=True):
    """How a life that was not cut short ended. `served` are the bundles that gave predictions, in order."""

    state: str
    reason: str
    current: str | None
    previous: str | None
    served: list[str]
    events: list[tuple[str, str | None, str, str]]
    passed: list[str]


class FolderSource:
    """Reads published bundles from a folder."""

    name = "folder"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fetch(self, wanted: SlotDesired, blocks: BlockFile, stop: object) -> None:
        """Write what is missing."""
        data = (self._folder / wanted.bundle).read_bytes()
        for index in blocks.missing():
            blocks.write(index, data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES])


class Life:
    """One device, from its start to its end or to its checkpoint."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.passed: Counter[str] = Counter()
        self.order: list[str] = []
        self.served: list[str] = []
        self.changed = threading.Event()
        self.trust = TrustStore.load(request.trust)

    def checkpoint(self, name: str) -> None:
        """Die here, where this is the place."""
        self.passed[name] += 1
        place = f"{name}#{self.passed[name]}"
        self.order.append(place)
        if place == self.request.kill:
            os.kill(os.getpid(), signal.SIGKILL)

    def serve(self, slot: str, bundle: Path | None) -> None:
        """Load the bundle, verified, and predict with it."""
        if bundle is None:
            return
        with load(bundle, trust=self.trust) as session:
            session.predict(np.ones((1, 3), np.float32))
        self.served.append(bundle.parent.name)
        if bundle.parent.name == self.request.fail:
            self.installer.health_failed(slot, "crashes", bundle=self.request.fail)

    def run(self) -> None:
        """Start, take up the document, wait for the end, write the result."""
        request = self.request
        store = Store(request.state, checkpoint=self.checkpoint)
        self.installer = Installer(
            store,
            sources=[FolderSource(Path(request.registry))],
            trust=self.trust,
            address=Address(tenant="acme", device="pump-1"),
            boot_id=request.boot_id,
            host=host_target(),
            on_active=self.serve,
            on_change=self.changed.set,
            prober=probe if request.real_probe else _probe_here,
        )
        found = store.deployment("main")
        self.installer.resume()
        if found is not None and found.settled:
            self._wait(lambda: self.passed["collect.done"] > 0)
        self.installer.offer(Path(request.envelope).read_bytes())
        self._wait(lambda: self._settled(store))
        self.installer.stop()
        self._write(store)
        store.close()

    def _wait(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not done() and time.monotonic() < end:
            self.changed.wait(0.02)
            self.changed.clear()

    def _settled(self, store: Store) -> bool:
        """The update is over, and what it left behind is gone."""
        found, slots = store.deployment("main"), store.slots
        if found is None or not found.settled or found.rev < self.request.rev:
            return False
        linked = {slots.current("main"), slots.previous("main")} - {None}
        kept = {place.name for place in (store.folder / "bundles").iterdir()}
        return kept == linked and not list(slots.staging.iterdir())

    def _write(self, store: Store) -> None:
        deployment = store.deployment("main")
        assert deployment is not None
        events = [(e.job, e.from_state, e.to_state, e.boot_id) for e in reversed(store.history())]
        result = Result(
            state=deployment.state,
            reason=deployment.reason,
            current=store.slots.current("main"),
            previous=store.slots.previous("main"),
            served=self.served,
            events=events,
            passed=self.order,
        )
        Path(self.request.result).write_bytes(msgspec.json.encode(result))


def _probe_here(bundle: Path, trust: Path, health: Health, stop: object) -> ProbeResult:
    """What the probe's child does, without the child."""
    return check(bundle, trust, max_err=health.max_err, p99_ms=health.p99_ms)


def main() -> None:
    """Fork a device a line."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                Life(msgspec.json.decode(line, type=Request)).run()
            except OutriderError as e:
                sys.stderr.write(f"{e}\n")
                os._exit(3)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(4)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{status}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
