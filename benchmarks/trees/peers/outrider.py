"""Outrider itself: compiled for this machine, and the fat x86-64 bundle as a machine without AVX-512 takes it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.trees.peers import NotSupported, Order, Peer, Predict

_CALIBRATION_ROWS = 2048
_COMPILE_S = 300


class Outrider(Peer):
    """`compile_model` for the host in a process of its own, then `session.predict`."""

    packages: ClassVar[tuple[str, ...]] = ("outrider",)
    modules: ClassVar[tuple[str, ...]] = ("outrider.runtime.session",)
    call: ClassVar[str] = "load(bundle).predict(rows)"
    target: ClassVar[str] = "host"

    _variant = ""

    def export(self, order: Order) -> Path:
        """Compile the model file; time and peak memory are those of the compile alone in its own process."""
        import numpy as np

        out, rows = order.folder / f"{self.target}.orb", order.folder / "calibration.npz"
        np.savez(rows, features=order.case.rows[:_CALIBRATION_ROWS])
        command = [
            sys.executable,
            "-m",
            "benchmarks.trees.fresh",
            "compile",
            str(order.case.path),
            self.target,
            str(rows),
        ]
        done = subprocess.run([*command, str(out)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NotSupported((done.stderr.strip().splitlines() or ["the compile failed"])[-1])
        told: dict[str, float] = json.loads(done.stdout)
        self.compile_s, self.compile_peak_mb = told["seconds"], told["peak_mb"]
        return out

    def open(self, path: Path) -> Predict:
        """A session of the bundle."""
        from outrider.runtime.session import load

        session = load(path, target=self._machine())
        self._variant = session.artifact.candidate
        self.artifact_bytes = session.artifact.size
        return session.predict

    def variant(self) -> str:
        """The candidate that the compiler chose."""
        return self._variant

    def _machine(self) -> Any:
        """The target to load for; None: this machine as it is."""
        return None


class OutriderAvx2(Outrider):
    """The fat x86-64 bundle, loaded as if the CPU had no AVX-512."""

    target: ClassVar[str] = "x86-64"
    call: ClassVar[str] = "the x86-64 bundle, loaded for a CPU without AVX-512"

    def _machine(self) -> Any:
        import msgspec

        from outrider.runtime.probe import host_target

        host = host_target()
        features = tuple(name for name in host.features if not name.startswith(("avx512", "x86-64-v4")))
        return msgspec.structs.replace(host, features=features)
