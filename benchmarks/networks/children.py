"""The other side of `worker.py`: processes that make or race, asked by lines of JSON, with a limit on the waiting."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
from benchmarks.networks.peers import Made, NotSupported, Order

ROOT = Path(__file__).parents[2]
_ONE = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TVM_NUM_THREADS")
_SHOWN = 200


class Failed(Exception):  # an outcome to show, not an error
    """A worker crashed, raised, or took too long; the message says which."""


class Child:
    """A worker process. Use it as a context manager; leaving kills it."""

    def __init__(self, arguments: list[str], patience_s: float) -> None:
        self._patience = patience_s
        environment = {**os.environ, **dict.fromkeys(_ONE, "1"), "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.networks.worker", *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._errors: list[str] = []
        self._readers = [threading.Thread(target=work, daemon=True) for work in (self._read, self._read_errors)]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill it and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def ask(self, **request: object) -> dict[str, Any]:
        """Send a request and wait for its answer. Raises Failed."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer says why
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next answer. Raises Failed, NotSupported."""
        try:
            line = self._lines.get(timeout=self._patience)
        except queue.Empty:
            raise Failed(f"it gave no answer within {self._patience:.0f} s") from None
        if not line:
            raise Failed(self._end())
        told: dict[str, Any] = json.loads(line)
        if "unsupported" in told:
            raise NotSupported(told["unsupported"])
        if "failed" in told:
            raise Failed(told["failed"])
        return told

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._errors = [*self._errors[-20:], line.strip()]

    def _end(self) -> str:
        code = self._process.wait()
        how = f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"
        said = next((line for line in reversed(self._errors) if line), "")
        return f"{how}{': ' if said else ''}{said}"[:_SHOWN]


def make(peer: str, order: Order, patience_s: float) -> Made:
    """Let a peer make its file. Raises NotSupported, Failed."""
    with Child(["make", peer, str(_write(order))], patience_s) as child:
        return msgspec.convert(child.answer(), Made)


def contender(peer: str, order: Order, made: Made, inputs: Path, patience_s: float) -> tuple[Child, Path, float]:
    """A contender that has loaded and predicted all inputs: its process, where its outputs are, its memory in MiB.

    Raises NotSupported, Failed.
    """
    outputs = Path(order.folder) / "outputs.npz"
    child = Child(["race", peer, str(_write(order)), made.path, str(inputs), str(outputs)], patience_s)
    try:
        told = child.answer()
    except BaseException:
        child.close()
        raise
    return child, outputs, float(told["rss_mb"])


def _write(order: Order) -> Path:
    path = Path(order.folder) / "order.json"
    path.write_bytes(msgspec.json.encode(order))
    return path
