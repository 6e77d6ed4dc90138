"""Keep one child process running and answering, and never leave it behind."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from outrider.runtime.errors import UnavailableError

log = logging.getLogger(__name__)

START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 5.0
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
STEADY_S = 30.0  # a child that ran this long is restarted without a longer pause
CHECK_S = 5.0
SILENT_CHECKS = 3  # so many checks without an answer, one after the other, and the child is taken to hang

# Runs before the real program, in its process: ask the kernel for SIGTERM when the parent dies, close the race with a
# parent that is dead already, then become the program. Doing it here needs no preexec_fn, which is unsafe with threads.
_GUARD = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Supervisor:
    """Runs `command`, restarts it whenever it ends or hangs, and ends it with this process, even on SIGKILL.

    `command[0]` is an absolute path. `ready` says whether the child answers. Output is appended to `output`.
    The thread that starts the child lives as long as the child: the kernel's parent-death signal follows the
    *thread* that forked.
    """

    def __init__(self, name: str, command: Sequence[str], *, output: Path, ready: Callable[[], bool]) -> None:
        self.generation = 0
        self._name = name
        self._command = tuple(command)
        self._output = output
        self._ready = ready
        self._stopping = threading.Event()
        self._spawning = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, name=f"{name}-supervisor", daemon=True)
        self._watch = threading.Thread(target=self._check, name=f"{name}-watchdog", daemon=True)

    @property
    def pid(self) -> int | None:
        """The child's process id, None while it is not running."""
        child = self._child
        return child.pid if child is not None and child.poll() is None else None

    def start(self) -> None:
        """Start the child and wait until it is ready. Raises UnavailableError with the end of its output."""
        self._thread.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._ready():
            ended = self.generation > 0 or self._failure is not None
            if ended or time.monotonic() > deadline:
                problem = "ended at once" if ended else f"was not ready within {START_TIMEOUT_S:.0f} s"
                self.stop()
                raise UnavailableError(f"{self._name} {problem}: {self._failure or self.last_output()}")
            time.sleep(0.02)
        self._watch.start()
        log.info("%s runs as process %s", self._name, self.pid)

    def signal(self, number: int) -> None:
        """Send a signal to the child, where it runs."""
        child = self._child
        if child is not None:
            child.send_signal(number)

    def stop(self) -> None:
        """End the child and wait for it; SIGKILL where SIGTERM is not enough. May be called twice."""
        with self._spawning:
            self._stopping.set()
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not self._thread.is_alive():
                return
            self.signal(number)
            self._thread.join(STOP_TIMEOUT_S)

    def last_output(self, size: int = 800) -> str:
        """The end of what the child wrote, for an error message."""
        try:
            data = self._output.read_bytes()
        except OSError:
            return "no output"
        return data[-size:].decode("utf-8", "replace").strip() or "no output"

    def _run(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            started = time.monotonic()
            try:
                with self._spawning:
                    if self._stopping.is_set():
                        return
                    self._child = self._spawn()
            except OSError as e:
                self._failure = e
                log.error("cannot start %s: %s", self._name, e)
            else:
                self._child.wait()
            if self._stopping.is_set():
                return
            if time.monotonic() - started > STEADY_S:
                pause = FIRST_PAUSE_S
            self.generation += 1
            log.warning("%s ended; starting it again in %.1f s", self._name, pause)
            self._stopping.wait(pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)

    def _check(self) -> None:
        """Kill a child that no longer answers; `_run` then starts it again."""
        silent = 0
        while not self._stopping.wait(CHECK_S):
            pid = self.pid
            silent = 0 if pid is None or self._ready() else silent + 1
            if silent >= SILENT_CHECKS:
                log.error("%s has not answered %d times; killing process %s", self._name, silent, pid)
                self.signal(signal.SIGKILL)
                silent = 0

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self._output.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), *self._command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Its own session: Ctrl-C in a terminal must reach this process alone, which then ends the child last.
                start_new_session=True,
            )
