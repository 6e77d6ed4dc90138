"""The process for foreign compilers: whatever a job does, the next one is done."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from outrider.compiler import workshop
from outrider.compiler.workshop import Workshop
from outrider.runtime.errors import ToolchainError, UnsupportedError

JOBS = "workshop_jobs"


@pytest.fixture(scope="module")
def shop() -> Iterator[Workshop]:
    folder = str(Path(__file__).parent)
    sys.path.insert(0, folder)
    with Workshop() as made:
        yield made
    sys.path.remove(folder)


def call(shop: Workshop, job: str, *arguments: Any, seconds: float = 60) -> Any:
    return shop.call(f"{JOBS}:{job}", *arguments, seconds=seconds)


def test_a_job_gives_its_result_and_the_process_lives_on(shop):
    rows = np.arange(3_000_000, dtype=np.float32)  # more than a pipe holds at once
    assert np.array_equal(call(shop, "echo", rows), rows)
    first = call(shop, "where")
    assert first != os.getpid()
    assert call(shop, "where") == first
    assert call(shop, "chatter") == "done"
    assert call(shop, "read_input") == 0
    assert call(shop, "where") == first


def test_errors_of_the_tree_come_back_as_they_are(shop):
    before = call(shop, "where")
    with pytest.raises(UnsupportedError) as raised:
        call(shop, "refuse")
    assert (raised.value.message, raised.value.hint) == ("there is no operator Foo", "use Bar")
    with pytest.raises(ToolchainError, match=r"^KeyError: 'first line"):
        call(shop, "stumble")
    with pytest.raises(ToolchainError, match="nothing_there"):
        call(shop, "nothing_there")
    with pytest.raises(ToolchainError, match="ModuleNotFoundError"):
        shop.call("no_such_module:job", seconds=60)
    assert call(shop, "where") == before


@pytest.mark.parametrize(
    ("job", "arguments", "message"),
    [
        ("abort", (), "died of SIGABRT: .*std::bad_idea"),
        ("die", (signal.SIGSEGV,), "died of SIGSEGV"),
        ("die", (signal.SIGKILL,), "died of SIGKILL, as it does where memory runs out"),
        ("die", (signal.SIGRTMIN + 1,), "died of signal"),
        ("leave", (3,), "ended with 3"),
        ("unpicklable", (), "ended with 1: .*pickle"),
    ],
)
def test_a_job_that_its_process_does_not_survive(shop, job, arguments, message):
    before = call(shop, "where")
    with pytest.raises(ToolchainError, match=f"(?s){message}"):
        call(shop, job, *arguments)
    assert call(shop, "where") != before


def test_a_job_that_hangs_is_ended_with_its_process(shop):
    before = call(shop, "where")
    begun = time.monotonic()
    with pytest.raises(ToolchainError, match="took more than 1 s"):
        call(shop, "hang", 60, seconds=1)
    assert time.monotonic() - begun < 20
    assert not psutil.pid_exists(before)
    assert call(shop, "echo", 1) == 1


def test_a_job_that_takes_too_much_memory():
    with Workshop(memory_bytes=600 << 20) as small:
        sys.path.insert(0, str(Path(__file__).parent))
        try:
            with pytest.raises(ToolchainError, match="out of memory"):
                call(small, "eat", 1 << 30)
            assert call(small, "eat", 1 << 20) == 1 << 20
        finally:
            sys.path.pop(0)


def ended(process: int) -> bool:
    """Whether it ended, all its threads too, within a few seconds."""
    for _ in range(200):
        try:
            found = psutil.Process(process)
            if found.status() == psutil.STATUS_ZOMBIE and found.num_threads() <= 1:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_a_process_that_was_killed_between_jobs_and_while_one_is_sent(shop, monkeypatch):
    before = call(shop, "where")
    os.kill(before, signal.SIGKILL)
    assert ended(before)
    assert call(shop, "where") != before
    before = call(shop, "where")
    send = workshop._send

    def killed_first(stream: Any, data: bytes) -> None:
        os.kill(before, signal.SIGKILL)
        assert ended(before)
        send(stream, data)

    monkeypatch.setattr(workshop, "_send", killed_first)
    for data in (b"", bytes(1 << 22)):
        with pytest.raises(ToolchainError, match="died of SIGKILL"):
            call(shop, "echo", data)
        monkeypatch.undo()
        before = call(shop, "where")
        monkeypatch.setattr(workshop, "_send", killed_first)
    monkeypatch.undo()
    assert call(shop, "echo", 2) == 2


def test_what_a_job_started_ends_with_its_process(shop):
    with pytest.raises(ToolchainError, match="child ") as raised:
        call(shop, "spawn")
    child = int(str(raised.value).split("child ")[1].split()[0])
    assert ended(child)


def test_ctrl_c_ends_the_process(shop, monkeypatch):
    before = call(shop, "where")

    def interrupted(*_: Any) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(workshop, "_receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call(shop, "echo", 1)
    monkeypatch.undo()
    assert not psutil.pid_exists(before)
    assert call(shop, "echo", 1) == 1


def test_closing_twice_and_before_any_job():
    made = Workshop()
    made.close()
    made.close()
