"""What runs in the emulated Python: `run_artifact.py FOLDER THREADS` runs the artifact in the folder on its inputs.

The folder holds `entry.json`, `signature.json`, `artifact` and `input0.npy`, `input1.npy`, …; `output0.npy`, … are
written beside them. It imports nothing but the runtime.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np

from outrider.runtime.bundle.manifest import ArtifactEntry, Signature
from outrider.runtime.engines import open_engine
from outrider.runtime.errors import OutriderError


def main(folder: Path, threads: int) -> None:
    """Run the artifact once."""
    entry = msgspec.json.decode((folder / "entry.json").read_bytes(), type=ArtifactEntry)
    signature = msgspec.json.decode((folder / "signature.json").read_bytes(), type=Signature)
    inputs = {name: np.load(folder / f"input{number}.npy") for number, name in enumerate(entry.inputs)}
    with closing(open_engine(entry, (folder / "artifact").read_bytes(), signature, threads)) as engine:
        outputs = engine.run(inputs)
    for number, name in enumerate(entry.outputs):
        np.save(folder / f"output{number}.npy", outputs[name], allow_pickle=False)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]))
    except OutriderError as e:
        sys.exit(f"{type(e).__name__}: {e}")
