"""Resident memory of a fresh process that runs an artifact, beyond what Python and numpy take."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from outrider.compiler.model import Array
from outrider.runtime.bundle import ArtifactEntry, Signature
from outrider.runtime.errors import EngineFault

_DEADLINE_S = 60
_RUNS = 3  # after which an engine has allocated what it needs


def measure_rss(entry: ArtifactEntry, data: bytes, signature: Signature, inputs: Mapping[str, Array]) -> int:
    """Bytes. Raises EngineFault where the process fails."""
    job = pickle.dumps((sys.path, entry, data, signature, dict(inputs)), protocol=5)
    command = [sys.executable, str(Path(__file__))]
    try:
        done = subprocess.run(command, input=job, capture_output=True, check=True, timeout=_DEADLINE_S)
        return int(done.stdout.split()[-1])
    except subprocess.TimeoutExpired as e:
        raise EngineFault(f"{entry.path!r} did not run within {_DEADLINE_S} s") from e
    except (subprocess.CalledProcessError, ValueError, IndexError) as e:
        raise EngineFault(f"{entry.path!r} does not run in a process of its own") from e


def main() -> int:
    """The fresh process: reads a job from its input, prints bytes."""
    import numpy as np

    path, *job = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the parent
    sys.path[:] = path
    from outrider.runtime.engines import open_engine

    entry, data, signature, inputs = job
    before = psutil.Process().memory_info().rss
    engine = open_engine(entry, data, signature)
    for _ in range(_RUNS):
        engine.run({name: np.asarray(array, order="C") for name, array in inputs.items()})
    print(max(0, psutil.Process().memory_info().rss - before))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
