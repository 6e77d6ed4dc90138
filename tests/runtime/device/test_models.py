"""The live table: no request is dropped by a swap, no session is closed while it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from outrider.runtime.errors import NotFoundError
from outrider.runtime.models import Array, Live, Models


class FakeSession:
    """Returns its number; fails if it runs after it was closed."""

    takes_doubles = False

    def __init__(self, number: int) -> None:
        self.number = number
        self.closed = False
        self.manifest: Any = SimpleNamespace(name="fake", version=str(number))

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert not self.closed
        time.sleep(0.0002)
        assert not self.closed
        return {"y": np.array([self.number])}

    def close(self) -> None:
        assert not self.closed
        self.closed = True


def test_an_empty_slot_is_named() -> None:
    with pytest.raises(NotFoundError, match="slot 'main'"), Models().lease("main"):
        pass


def test_the_old_session_closes_after_its_last_request() -> None:
    models, first, closed = Models(), FakeSession(1), []
    models.put(Live("main", "1", first, on_closed=lambda: closed.append(1)))
    with models.lease("main") as live, models.lease("main"):
        models.put(Live("main", "2", FakeSession(2)))
        assert live.session.run({})["y"][0] == 1
        with models.lease("main") as newer:
            assert newer.sha256 == "2"
        assert not first.closed
    assert first.closed
    assert closed == [1]
    models.close()
    assert models.slots() == ()


def test_hot_swap_under_load_drops_nothing() -> None:
    models, sessions = Models(), [FakeSession(number) for number in range(200)]
    models.put(Live("main", "0", sessions[0]))
    stop, served, failures = threading.Event(), [0] * 4, []

    def load(worker: int) -> None:
        last = 0
        while not stop.is_set():
            try:
                with models.lease("main") as live:
                    number = int(live.session.run({})["y"][0])
                assert number >= last
                last = number
                served[worker] += 1
            except BaseException as e:
                failures.append(e)
                return

    threads = [threading.Thread(target=load, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for session in sessions[1:]:
        models.put(Live("main", str(session.number), session))
        time.sleep(0.001)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert all(count > 10 for count in served)
    assert all(session.closed for session in sessions[:-1])
    assert not sessions[-1].closed
    models.close()
    assert sessions[-1].closed


def test_a_session_that_fails_to_close_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Stubborn(FakeSession):
        def close(self) -> None:
            raise RuntimeError("no")

    models, closed = Models(), []
    models.put(Live("main", "1", Stubborn(1), on_closed=lambda: closed.append(1)))
    models.put(Live("main", "2", FakeSession(2)))
    assert models.sha256("main") == "2"
    assert closed == [1]
