"""A fleet in miniature for the update path: keys, tiny real bundles, signed documents, and a device."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from outrider.runtime.admission import needs_of
from outrider.runtime.bundle import Manifest, encode_npy, file_entry, open_bundle, write_bundle
from outrider.runtime.errors import UnavailableError
from outrider.runtime.fetch import BlockFile
from outrider.runtime.installer import Installer
from outrider.runtime.messages import BLOCK_BYTES, Address, Desired, Event, Health, SlotDesired, State, decode, encode
from outrider.runtime.probe import host_target
from outrider.runtime.prober import ProbeResult
from outrider.runtime.prober import check as probe_here
from outrider.runtime.store import Store
from outrider.runtime.trust import (
    DESIRED_TYPE,
    PrivateKey,
    TrustStore,
    encode_envelope,
    generate_key,
    sign,
    sign_bundle,
)

ABI = Path(sys.modules["outrider.runtime.bundle"].__file__ or "").parent.parent / "engines"

BAD_SOURCE = """
#include "native_abi.h"
uint32_t outrider_abi(void) { return OUTRIDER_ABI; }
size_t outrider_workspace(int64_t batch) { return 0; }
int32_t outrider_run(const void *const *inputs, void *const *outputs, int64_t batch, void *workspace) {
    (void)inputs; (void)outputs; (void)workspace;
#ifdef CRASH
    *(volatile int *)8 = 1;
#else
    for (volatile int64_t i = 0; i >= 0; i = (i + batch) & 1) { }
#endif
    return 0;
}
"""


@dataclass(frozen=True)
class Made:
    """A published bundle."""

    path: Path
    sha256: str
    wanted: SlotDesired


@dataclass
class Fleet:
    """Makes what a fleet would send."""

    folder: Path
    make_parts: Callable[..., Any]
    library: bytes
    bundle_key: PrivateKey = field(default_factory=generate_key)
    desired_key: PrivateKey = field(default_factory=generate_key)
    address: Address = field(default_factory=lambda: Address(tenant="acme", device="pump-1"))

    @property
    def trust(self) -> TrustStore:
        return TrustStore.from_pems(
            {"bundle": [self.bundle_key.public.pem()], "desired": [self.desired_key.public.pem()]}
        )

    def bundle(
        self,
        version: str = "1",
        *,
        library: bytes | None = None,
        several: Mapping[str, bytes] | None = None,
        pad: int = 0,
        wrong: bool = False,
        **wanted: Any,
    ) -> Made:
        """A bundle with its signature; `pad` bytes make it larger, `wrong` spoils its golden outputs.

        `several`: libraries by candidate, in the order of their ranks, instead of the only one.
        """
        manifest, files = self.make_parts(library or self.library, version=version)
        if several is not None:
            manifest, files = with_artifacts(manifest, files, several)
        if wrong:
            files["golden/outputs/score.npy"] = encode_npy(np.array([9.0, 9.0, 9.0], np.float32))
        if pad:
            files["provenance.json"] = np.random.default_rng(int(version)).bytes(pad)
        known = {artifact.path for artifact in manifest.artifacts}
        listed = tuple(file_entry(path, data) for path, data in sorted(files.items()) if path not in known)
        manifest = msgspec.structs.replace(manifest, files=listed)
        path = self.folder / f"{version}.orb"
        sha256 = write_bundle(path, manifest, files)
        envelope = sign_bundle(path, name=manifest.name, version=version, target=manifest.target, key=self.bundle_key)
        path.rename(self.folder / sha256)
        slot = SlotDesired(
            bundle=sha256,
            size=(self.folder / sha256).stat().st_size,
            name=manifest.name,
            version=version,
            release=int(version),
            target=manifest.target,
            signature=encode_envelope(envelope).decode(),
            artifacts=needs_of(manifest),
            health=Health(soak_s=0.05),
        )
        return Made(path=self.folder / sha256, sha256=sha256, wanted=msgspec.structs.replace(slot, **wanted))

    def document(self, rev: int, made: Made | None, **changes: Any) -> Desired:
        """A desired document that wants `made` in the slot `main`."""
        document = Desired(
            v=1,
            tenant=self.address.tenant,
            device=self.address.device,
            rev=rev,
            issued=time.time(),
            not_after=time.time() + 3600,
            job=f"j{rev}",
            attempt=1,
            rollback_floor=0,
            slots={} if made is None else {"main": made.wanted},
        )
        return msgspec.structs.replace(document, **changes)

    def desired(self, rev: int, made: Made | None, *, key: PrivateKey | None = None, **changes: Any) -> bytes:
        """The signed envelope of `document`."""
        payload = encode(self.document(rev, made, **changes))
        return encode_envelope(sign(payload, DESIRED_TYPE, [key or self.desired_key]))


def with_artifacts(
    manifest: Manifest, files: dict[str, bytes], several: Mapping[str, bytes]
) -> tuple[Manifest, dict[str, bytes]]:
    """The same bundle with these artifacts instead of its only one, in the order of their ranks."""
    (artifact,), (candidate,) = manifest.artifacts, manifest.candidates
    rest = {path: data for path, data in files.items() if path != artifact.path}
    paths = {name: f"artifacts/{name}/mean.so" for name in several}
    entries = {name: file_entry(paths[name], data) for name, data in several.items()}
    artifacts = tuple(
        msgspec.structs.replace(artifact, path=entry.path, size=entry.size, sha256=entry.sha256, candidate=name)
        for name, entry in entries.items()
    )
    candidates = tuple(
        msgspec.structs.replace(candidate, id=name, rank=rank) for rank, name in enumerate(several, start=1)
    )
    manifest = msgspec.structs.replace(manifest, artifacts=artifacts, candidates=candidates)
    return manifest, rest | {paths[name]: data for name, data in several.items()}


class FolderSource:
    """A source that reads published bundles from a folder. `fail` makes it unreachable."""

    name = "folder"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fail = False
        self.served: list[int] = []

    def fetch(self, wanted: SlotDesired, blocks: BlockFile, stop: Callable[[], bool]) -> None:
        if self.fail:
            raise UnavailableError("nobody is there")
        data = (self.folder / wanted.bundle).read_bytes()
        for index in blocks.missing():
            if stop():
                return
            self.served.append(index)
            blocks.write(index, data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES])


class DeviceUnderTest:
    """A store and an installer, and what the serving side was told."""

    def __init__(self, folder: Path, fleet: Fleet, **options: Any) -> None:
        self.store = Store(folder, **options.pop("store", {}))
        self.source = FolderSource(fleet.folder)
        self.served: list[str | None] = []
        self.refuse: set[str] = set()
        self.changed = threading.Event()
        self.installer = Installer(
            self.store,
            sources=options.pop("sources", [self.source]),
            trust=options.pop("trust", fleet.trust),
            address=fleet.address,
            boot_id=options.pop("boot_id", "boot-1"),
            host=options.pop("host", host_target()),
            on_active=self._serve,
            on_change=self.changed.set,
            prober=options.pop("prober", probe_in_process),
        )
        assert not options
        self._open = True

    def _serve(self, slot: str, bundle: Path | None) -> None:
        sha256 = None if bundle is None else bundle.parent.name
        if sha256 in self.refuse:
            raise UnavailableError(f"cannot serve {sha256}")
        if bundle is not None:
            open_bundle(bundle)
        self.served.append(sha256)

    def state(self) -> State | None:
        deployment = self.store.deployment("main")
        return None if deployment is None else deployment.state

    def wait(self, *states: State, rev: int = 0, timeout_s: float = 20.0) -> None:
        """Wait until the update has settled in one of these states at this revision or a later one."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            found = self.store.deployment("main")
            if found is not None and found.state in states and found.rev >= rev and found.undo is None:
                return
            self.changed.wait(0.02)
            self.changed.clear()
        raise AssertionError(f"waited for {states}, found {found and (found.state, found.reason, found.detail)}")

    def events(self) -> list[Event]:
        return [decode(m.payload, Event) for m in self.store.outbox.pending(1000) if m.kind == "evt"]

    def reasons(self) -> tuple[str, str]:
        deployment = self.store.deployment("main")
        assert deployment is not None
        return deployment.reason, deployment.detail

    def close(self) -> None:
        if self._open:
            self._open = False
            self.installer.stop()
            self.store.close()


def probe_in_process(bundle: Path, trust: Path, health: Health, stop: Callable[[], bool]) -> ProbeResult | None:
    """What the probe's child does, without the child."""
    return probe_here(bundle, trust, max_err=health.max_err, p99_ms=health.p99_ms)


@pytest.fixture(scope="session")
def make_fleet(make_parts: Callable[..., Any], mean_library: bytes) -> Callable[[Path], Fleet]:
    """A fleet that keeps its bundles in a folder."""
    return lambda folder: Fleet(folder, make_parts, mean_library)


@pytest.fixture
def fleet(tmp_path: Path, make_fleet: Callable[[Path], Fleet]) -> Fleet:
    folder = tmp_path / "registry"
    folder.mkdir()
    return make_fleet(folder)


@pytest.fixture
def staged(fleet: Fleet, tmp_path: Path) -> Callable[[Made], tuple[Path, Path]]:
    """A bundle as it lies in a slot, and the folder of trusted keys."""

    def stage(made: Made) -> tuple[Path, Path]:
        folder = tmp_path / "bundles" / made.sha256
        folder.mkdir(parents=True)
        (folder / "bundle.orb").write_bytes(made.path.read_bytes())
        (folder / "bundle.orb.dsse").write_text(made.wanted.signature)
        fleet.trust.save(tmp_path / "trust")
        return folder / "bundle.orb", tmp_path / "trust"

    return stage


@pytest.fixture
def make_device(tmp_path: Path, fleet: Fleet) -> Iterator[Callable[..., DeviceUnderTest]]:
    """Start a device on the state folder; a second call while the first is open is refused by the store's lock."""
    devices: list[DeviceUnderTest] = []

    def make(folder: Path | None = None, *, resume: bool = True, **options: Any) -> DeviceUnderTest:
        device = DeviceUnderTest(folder or tmp_path / "state", fleet, **options)
        devices.append(device)
        if resume:
            device.installer.resume()
        return device

    yield make
    for device in devices:
        device.close()


@pytest.fixture(scope="session")
def bad_libraries(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """Artifacts that load, and then `crash` or `hang` when they run."""
    folder = tmp_path_factory.mktemp("bad")
    source = folder / "bad.c"
    source.write_text(BAD_SOURCE)
    libraries = {}
    for kind in ("crash", "hang"):
        out = folder / f"{kind}.so"
        flags = ["-shared", "-fPIC", "-nostdlib", "-ffreestanding", "-O0", "-fno-sanitize=all", f"-D{kind.upper()}"]
        subprocess.run(
            [sys.executable, "-m", "ziglang", "cc", *flags, f"-I{ABI}", "-o", str(out), str(source)],
            check=True,
            capture_output=True,
        )
        libraries[kind] = out.read_bytes()
    return libraries


@pytest.fixture(scope="session")
def odd_libraries(tmp_path_factory: pytest.TempPathFactory, mean_source: str) -> Mapping[str, bytes]:
    """Artifacts that are `slow`, and ones whose outputs are `wrong`."""
    from outrider.targets import get_target
    from outrider.targets.toolchain import build_shared

    folder = tmp_path_factory.mktemp("odd")
    loop = "for (volatile int i = 0; i < 300000; i++) { }\n    if ((uintptr_t)workspace"
    sources = {
        "slow": mean_source.replace("if ((uintptr_t)workspace", loop),
        "wrong": mean_source.replace("/ 3.0f", "/ 4.0f"),
    }
    return {
        kind: build_shared({"mean.c": source}, folder / f"{kind}.so", get_target("host"))
        for kind, source in sources.items()
    }
