"""What needs a process of its own: resident memory over bare Python, and the cost of a compile.

Nothing is imported at the top that bare Python has not loaded by itself. The child prints one line of JSON.
"""

from __future__ import annotations

import sys


def _peak_mb() -> float:
    """The highest resident memory that this process has had, MiB."""
    with open("/proc/self/status", encoding="ascii") as file:  # noqa: PTH123 - as in benchmarks.shared.memory
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))


def memory(name: str, path: str, rows: str) -> dict[str, float]:
    """Import what the peer needs, load a model, and predict one row: MiB over bare Python, and over the import."""
    from benchmarks.shared.memory import resident_mb

    bare = resident_mb()
    import importlib
    from pathlib import Path

    import numpy as np
    from benchmarks.trees.peers import peer

    made = peer(name)
    for module in made.modules:
        importlib.import_module(module)
    imported = resident_mb()
    predict = made.open(Path(path))
    predict(np.load(rows))
    return {"import_mb": imported - bare, "load_mb": resident_mb() - imported}


def compile_(model: str, target: str, rows: str, out: str) -> dict[str, float]:
    """Compile a model file for a target: wall time of `compile_model`, and the peak memory of its largest process."""
    import resource
    import time

    import numpy as np

    from outrider.compiler import compile_model

    calibration = np.load(rows)["features"]
    start = time.perf_counter()
    compile_model(model, target=target, out=out, calibration=calibration, name="benchmark", trust_pickle=True)
    seconds = time.perf_counter() - start
    # Linux hands ru_maxrss of this process down from the one that started it, so the own peak is read from /proc.
    tools = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"seconds": seconds, "peak_mb": max(_peak_mb(), tools)}


def main(arguments: list[str]) -> None:
    """`memory PEER FILE ROWS` or `compile MODEL TARGET CALIBRATION OUT`."""
    what, *rest = arguments
    try:
        told = memory(*rest) if what == "memory" else compile_(*rest)
    except Exception as e:  # of any library: the parent shows the one line
        sys.exit(f"{type(e).__name__}: {' '.join(str(e).split())[:300]}")
    import json

    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1:])
