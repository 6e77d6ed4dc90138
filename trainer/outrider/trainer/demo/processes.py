"""The demo's child processes: started in their own sessions, stopped in reverse order, none left behind.

Ctrl-C may come at any instant, also between the fork of a child and the line that notes it down. `Interrupts`
therefore holds a SIGINT or SIGTERM back while a child is being started or stopped, and raises it right after.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

from outrider.runtime.errors import Fault

T = TypeVar("T")

_TERM_GRACE_S = 10.0
_TAIL_BYTES = 2_000


class Interrupts:
    """Turns SIGINT and SIGTERM into KeyboardInterrupt, but never inside a `shielded` block."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._depth = 0
        self._pending = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.signal(number, self._handle) for number in self._SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._depth:
            self._pending = True
        else:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def shielded(self, *, final: bool = False) -> Iterator[None]:
        """Hold interrupts back until the block is done; with `final`, drop them: the end is already under way."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if final:
                self._pending = False
            elif self._pending and not self._depth:
                self._pending = False
                raise KeyboardInterrupt


@dataclass(frozen=True)
class Child:
    """One started process and the file that takes its output."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self) -> str:
        """The end of what it printed."""
        return self.log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace")


class Children:
    """All child processes of one demo."""

    def __init__(self, interrupts: Interrupts, logs: Path) -> None:
        self._interrupts = interrupts
        self._logs = logs
        self._children: list[Child] = []

    def start(self, name: str, command: Sequence[str], *, env: Mapping[str, str] | None = None) -> Child:
        """Start a process in a session of its own, so that a terminal's Ctrl-C reaches only the demo."""
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{name}.log"
        with self._interrupts.shielded(), log.open("ab") as output:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(env or {})},
            )
            child = Child(name, process, log)
            self._children.append(child)
        return child

    def check(self) -> None:
        """Raise Fault where a child has ended by itself, with the end of its output."""
        for child in self._children:
            code = child.process.poll()
            if code is not None:
                raise Fault(f"the process {child.name} ended with exit code {code}:\n{child.tail()}")

    def show_tails(self, show: Callable[[str], None]) -> None:
        """Show the end of each child's output, where there is any."""
        for child in self._children:
            if text := child.tail().strip():
                show(f"--- {child.name}\n{text}")

    def stop_all(self) -> None:
        """Stop every child, the last one started first. Further interrupts are dropped meanwhile."""
        with self._interrupts.shielded(final=True):
            self._end(list(reversed(self._children)))
            self._children.clear()

    @staticmethod
    def _end(children: Sequence[Child]) -> None:
        for child in children:
            if child.process.poll() is None:
                child.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(_TERM_GRACE_S)
            _kill_session(child.process.pid)
            child.process.wait()


def _kill_session(leader: int) -> None:
    """Kill what is left of the process group that `leader` led."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def wait_until(
    what: str, condition: Callable[[], T | None], children: Children, *, timeout_s: float = 60.0, poll_s: float = 0.1
) -> T:
    """Poll `condition` until its result is truthy, and return that. A dead child or the deadline raises Fault."""
    deadline = time.monotonic() + timeout_s
    while True:
        outcome = condition()
        if outcome:
            return outcome
        children.check()
        if time.monotonic() > deadline:
            raise Fault(f"waited {timeout_s:.0f} s in vain for {what}")
        time.sleep(poll_s)
