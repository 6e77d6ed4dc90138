"""What a call from Python adds to one row's run, ns of CPU time. Run: python -m benchmarks.calls

Every way to call runs the same artifact on the same rows, in turn, round after round; "in C" is a loop in C around the
artifact's own function, with nothing else. All go through rows that differ from call to call.
"""

from __future__ import annotations

import argparse
import ctypes
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
from benchmarks.trees.data import Floats
from benchmarks.trees.models import SHAPES, Case, quiet, train

from outrider.compiler import compile_model
from outrider.runtime import load
from outrider.runtime.engines import library, native
from outrider.runtime.engines.library import Binding
from outrider.targets import get_target
from outrider.targets.toolchain import build_shared

Pass = Callable[[], object]  # once over all rows, one call a row

_ROWS = 2048
_LOOP = """
#include <stdint.h>
typedef int32_t (*run_t)(const void *const *, void *const *, int64_t, void *);
__attribute__((visibility("default")))
void loop(run_t run, const float *rows, int64_t count, int64_t features, float *result, void *workspace) {
    for (int64_t i = 0; i < count; i++) {
        const void *in[1] = {rows + i * features};
        void *out[1] = {result};
        run(in, out, 1, workspace);
    }
}
"""


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calls", description=__doc__)
    parser.add_argument("--model", choices=list(SHAPES), default="a", help="of benchmarks.trees (default: a)")
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        case = train(SHAPES[args.model], folder)
        bundle = folder / "x.orb"
        compile_model(case.path, target="host", out=bundle, name="x", version="1", trust_pickle=True)
        passes = {"in C": _in_c(bundle, case, folder)}
        for way in ("built-in", "cffi", "ctypes"):
            passes[f"session.predict, {way}"] = stack.enter_context(_in_python(bundle, case, way))
        found = _race(passes, args.rounds)
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}; {case.description}")
    print(f"{'':<26} {'ns a call':>10} {'beyond C':>10}")
    for way, least in found.items():
        print(f"{way:<26} {least:>10.1f} {least - found['in C']:>10.1f}")


def _in_c(bundle: Path, case: Case, folder: Path) -> Pass:
    """The artifact's function, called by a loop in C."""
    build_shared({"loop.c": _LOOP}, folder / "loop.so", get_target("host"))
    with load(bundle) as session:
        (folder / "model.so").write_bytes(session.bundle.read(session.artifact.path))
    artifact, loop = ctypes.CDLL(str(folder / "model.so")), ctypes.CDLL(str(folder / "loop.so")).loop
    artifact.outrider_workspace.restype = ctypes.c_size_t
    scratch = np.zeros(artifact.outrider_workspace(ctypes.c_int64(1)) + 64, np.uint8)
    scratch = scratch[-scratch.ctypes.data % 64 :]
    rows, result = _rows(case), np.empty(64, np.float32)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (rows, result, scratch)]
    run, sizes = ctypes.cast(artifact.outrider_run, ctypes.c_void_p), [ctypes.c_int64(size) for size in rows.shape]
    kept = (artifact, rows, result, scratch)
    return lambda: (loop(run, pointers[0], *sizes, *pointers[1:]), kept)


@contextmanager
def _in_python(bundle: Path, case: Case, way: str) -> Iterator[Pass]:
    """A session that calls in one way; those but the first are for interpreters that the built-in is not for."""
    with ExitStack() as stack:
        with ExitStack() as patches:
            if way != "built-in":
                patches.enter_context(mock.patch.object(native, "python_function", return_value=None))
                patches.enter_context(mock.patch.object(native, "load_library", partial(_load_by, way)))
            session = stack.enter_context(load(bundle))
        assert f"called by {way}" in session.explain()
        predict, rows = session.predict, [row[None] for row in _rows(case)]

        def once() -> None:
            for row in rows:
                predict(row)

        yield once


def _load_by(way: Binding, data: bytes, path: str, binding: Binding | None) -> library.Library:
    del binding
    return library.load_library(data, path, way)


def _rows(case: Case) -> Floats:
    return np.ascontiguousarray(case.rows[:_ROWS], np.float32)


def _race(passes: Mapping[str, Pass], rounds: int) -> dict[str, float]:
    """The least CPU time of a call, ns, in rounds in which each way has its turn."""
    found = dict.fromkeys(passes, float("inf"))
    for _ in range(rounds):
        for way, once in passes.items():
            start = time.process_time_ns()
            once()
            found[way] = min(found[way], (time.process_time_ns() - start) / _ROWS)
    return found


if __name__ == "__main__":
    main()
