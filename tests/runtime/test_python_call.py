"""The function that an artifact makes for Python: right for what it takes, out of the way for all else, and safe."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from outrider.runtime import Session, load
from outrider.runtime.engines import native, python_call
from outrider.runtime.engines.library import load_library
from outrider.runtime.engines.native import NativeEngine
from outrider.runtime.engines.threads import RowThreads, split
from outrider.runtime.errors import BadDataError, EngineFault, UsageError
from outrider.targets import get_target
from outrider.targets.toolchain import build_shared

ROWS = np.array([[0, 0, 3], [3, 3, 3], [1, 2, -3]], np.float32)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, mean_source: str) -> bytes:
    """The mean model with a function for Python."""
    out = tmp_path_factory.mktemp("native") / "mean.so"
    return build_shared({"mean.c": mean_source + '\n#include "python_call.h"\n'}, out, get_target("host"))


@pytest.fixture
def session(make_bundle: Callable[..., Path], library: bytes, make_parts: Callable[..., Any]) -> Iterator[Session]:
    with load(make_bundle(library=library)) as opened:
        yield opened


def test_it_is_the_sessions_predict(session: Session) -> None:
    assert type(session.predict) is type(len)
    assert "called by built-in" in session.explain()
    assert session.predict.__name__ == "predict"
    for count in (1, 2, 3):
        found = session.predict(ROWS[:count])
        assert (found.dtype, found.shape) == (np.float32, (count,))
        assert found.tolist() == [1.0, 3.0, 0.0][:count]
    many = np.random.default_rng(0).random((1000, 3), np.float32)
    assert np.array_equal(session.predict(many), session.run({"features": many})["score"])


def test_all_else_takes_the_long_way(session: Session) -> None:
    wide = np.repeat(ROWS, 2, axis=1)[:, ::2]
    assert session.predict(wide).tolist() == [1.0, 3.0, 0.0]
    assert session.predict(np.asfortranarray(ROWS)).tolist() == [1.0, 3.0, 0.0]
    shifted = np.frombuffer(b"\0" + ROWS.tobytes(), np.uint8)[1:].view(np.float32).reshape(3, 3)
    assert not shifted.flags.aligned
    assert session.predict(shifted).tolist() == [1.0, 3.0, 0.0]
    assert session.predict(ROWS.view(Derived)).tolist() == [1.0, 3.0, 0.0]
    assert session.predict(ROWS[:0]).shape == (0,)
    for wrong in (ROWS[:, :2], ROWS[0], ROWS.astype(">f4"), ROWS.astype(int), None, "x", [1.0, 2.0, 3.0], ROWS[None]):
        with pytest.raises(BadDataError):
            session.predict(wrong)
    with pytest.raises(TypeError):
        session.predict()
    with pytest.raises(TypeError):
        session.predict(ROWS, ROWS)


class Derived(np.ndarray):
    """A subclass, which numpy's own functions would give back."""


def test_a_failed_run_raises_and_leaks_nothing(session: Session) -> None:
    bad = np.full((1, 3), np.nan, np.float32)
    for _ in range(3):
        with pytest.raises(EngineFault, match="status 7"):
            session.predict(bad)
    before = sys.getrefcount(np.dtype(np.float32))
    for _ in range(100):
        session.predict(ROWS)
        with pytest.raises(EngineFault):
            session.predict(bad)
    assert abs(sys.getrefcount(np.dtype(np.float32)) - before) < 10


def test_it_outlives_its_session_and_then_goes_with_the_library(session: Session) -> None:
    predict, engine = session.predict, session._engine
    assert isinstance(engine, NativeEngine)
    library = engine._library
    assert library is not None
    gone = weakref.ref(library)
    session.close()
    assert session.predict is not predict
    for function in (predict, session.predict):
        with pytest.raises(EngineFault, match="closed"):
            function(ROWS)
    assert library._users == 1
    del library
    assert gone() is not None
    del predict, function
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("way", ["built-in", "cffi", "ctypes"])
def test_a_dropped_session_leaves_nothing(
    way: str, make_bundle: Callable[..., Path], library: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way != "built-in":
        monkeypatch.setattr(native, "python_function", lambda *given, **kept: None)
        monkeypatch.setattr(native, "load_library", lambda data, path, _: load_library(data, path, way))
    bundle = make_bundle(library=library)
    gc.collect()
    before = held()
    for _ in range(20):
        session = load(bundle)
        assert f"called by {way}" in session.explain()
        assert session.predict(ROWS[:1]).tolist() == [1.0]
    assert held()[0] > before[0]
    predict = session.predict
    del session
    gc.collect()
    assert predict(ROWS[:1]).tolist() == [1.0], "a function keeps what it needs"
    assert predict(ROWS).tolist() == [1.0, 3.0, 0.0]
    del predict
    gc.collect()
    assert held() == before


def held() -> tuple[int, int]:
    """Descriptors of artifacts that are open in this process, and artifacts that are mapped into it."""
    name = "memfd:outrider-artifact"
    links = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    inodes = {line.split()[4] for line in Path("/proc/self/maps").read_text().splitlines() if name in line}
    return sum(name in link for link in links), len(inodes)


def test_a_session_without_a_cycle(make_bundle: Callable[..., Path], library: bytes) -> None:
    """It gives up its artifact as it is dropped, not when the garbage collector comes by."""
    gc.collect()
    gc.disable()
    try:
        before = held()
        session = load(make_bundle(library=library))
        assert session.predict(ROWS[:1]).tolist() == [1.0]
        del session
        assert held() == before
    finally:
        gc.enable()


def test_many_threads_each_with_their_own_memory(session: Session) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(300):
            rows = rng.random((int(rng.integers(1, 3000)), 3), np.float32)
            if not np.array_equal(session.predict(rows), ((rows[:, 0] + rows[:, 1]) + rows[:, 2]) / np.float32(3)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("obstacle", ["implementation", "arrays", "numpy", "no lock"])
def test_another_interpreter_goes_without(
    obstacle: str, make_bundle: Callable[..., Path], library: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    if obstacle == "implementation":
        monkeypatch.setattr(sys.implementation, "name", "other")
    elif obstacle == "arrays":
        monkeypatch.setattr(python_call, "_arrays_are_plain", lambda: False)
    elif obstacle == "numpy":
        monkeypatch.setattr(python_call, "_ARRAY_ABIS", ())
    else:
        monkeypatch.setattr("sysconfig.get_config_var", lambda name: 1)
    python_call._interpreter.cache_clear()
    try:
        with load(make_bundle(library=library)) as session:
            assert "called by cffi" in session.explain()
            assert session.predict(ROWS[:1]).tolist() == [1.0]
            assert session.predict(ROWS).tolist() == [1.0, 3.0, 0.0]
    finally:
        python_call._interpreter.cache_clear()


def test_a_session_of_several_threads(make_bundle: Callable[..., Path], library: bytes) -> None:
    many = np.random.default_rng(0).random((5000, 3), np.float32)
    with load(make_bundle(library=library)) as one, load(make_bundle(library=library), threads=3) as three:
        wanted = one.predict(many)
        three._engine._threads._ns_a_row = 1e6  # type: ignore[attr-defined]  # as if rows were dear
        for _ in range(3):
            assert np.array_equal(three.predict(many), wanted)
        assert three.predict(ROWS[:1]).tolist() == [1.0]
        bad = many.copy()
        bad[4000, 1] = np.nan
        with pytest.raises(EngineFault, match="status 7"):
            three.predict(bad)
    with pytest.raises(UsageError, match="0 threads"):
        load(make_bundle(library=library), threads=0)


def test_rows_are_split_in_whole_registers() -> None:
    assert split(63, 4, 1e9) == [slice(0, 63)]
    assert split(65, 4, 1e9) == [slice(0, 64), slice(64, 65)]
    for batch in (1, 64, 65, 1000, 4096, 100_001):
        for threads in (1, 2, 3, 16):
            for ns in (None, 0.1, 1000.0, 1e6):
                parts = split(batch, threads, ns)
                assert len(parts) <= threads
                assert [row for part in parts for row in range(part.start, part.stop)] == list(range(batch))
                assert all(part.start % 64 == 0 for part in parts)
    assert len(split(1000, 8, None)) == 1


def test_the_cost_of_a_row_is_learned() -> None:
    rows = RowThreads(2)
    rows.each(10, lambda part: None)
    assert rows._ns_a_row is not None
    rows.close()


@pytest.mark.parametrize("why", ["closed", "no threads"])
def test_rows_that_no_other_thread_takes_are_run_here(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = RowThreads(3)
    rows._ns_a_row = 1e6  # as if rows were dear
    if why == "closed":
        rows.close()
    else:
        monkeypatch.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError("can't start new thread")))
    for _ in range(2):
        done: list[slice] = []
        rows.each(1000, done.append)
        assert sorted(row for part in done for row in range(part.start, part.stop)) == list(range(1000))
        rows._ns_a_row = 1e6
    rows.close()
