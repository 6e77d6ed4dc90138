"""A process in which foreign compilers work: what crashes, hangs or eats all memory there is but one candidate less.

It is started at the first job, does one after another, and is started anew after one that it did not survive. Jobs are
functions named by `module:function`, whose arguments and results can be pickled.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import pkgutil
import resource
import selectors
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from typing import IO, Any

import psutil

from outrider.runtime.errors import OutriderError, ToolchainError

_HEAD = struct.Struct("<Q")
_SHARE = 0.8  # of the memory that is available at the start, which a job may take
_ERROR_CHARS = 400
_GRACE_S = 5.0  # for a job that was asked to end
_HERE = threading.Event()  # set in the process that does the jobs


def inside() -> bool:
    """Whether this is a workshop's process, where a foreign compiler harms no more than the job."""
    return _HERE.is_set()


def child_environment() -> dict[str, str]:
    """This process's environment, for a child that imports what this process can."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def signal_name(number: int) -> str:
    """A signal in words: `SIGSEGV`."""
    try:
        return signal.Signals(number).name
    except ValueError:  # those for real time have no names
        return f"signal {number}"


class Workshop:
    """A process for jobs; `memory_bytes` None: most of what is available. Close it, or use it as a context manager."""

    def __init__(self, memory_bytes: int | None = None) -> None:
        self._memory = memory_bytes
        self._child: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None

    def call(self, function: str, *arguments: Any, seconds: float) -> Any:
        """The function's result.

        Raises what it raised where that is an OutriderError; ToolchainError for any other error, for a job that took
        more than `seconds` or too much memory, and for one that its process did not survive.
        """
        child = self._started()
        try:
            data = pickle.dumps((function, arguments), protocol=5)
            _send(child.stdin, data)
            answer = _receive(child, seconds)
        except TimeoutError as e:
            self.close()
            raise ToolchainError(f"took more than {seconds:.0f} s") from e
        except (EOFError, OSError) as e:
            raise ToolchainError(self._death(child)) from e
        except KeyboardInterrupt:
            self.close()
            raise
        kind, value = pickle.loads(answer)  # noqa: S301 - from the child that this process started
        if kind == "result":
            return value
        if isinstance(value, OutriderError):
            raise value
        raise ToolchainError(value)

    def close(self) -> None:
        """End the process."""
        child, self._child = self._child, None
        if child is None:
            return
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # a job that was sent in part only
                    stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.2)
        _kill(child)
        child.wait(_GRACE_S)
        if self._errors is not None:
            self._errors.close()

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self.close()
            memory = self._memory or int(psutil.virtual_memory().available * _SHARE)
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
            # A session of its own: Ctrl-C reaches the parent, which decides.
            self._child = subprocess.Popen(
                [sys.executable, "-m", "outrider.compiler.workshop", str(memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,
                env=child_environment(),
            )
        return self._child

    def _death(self, child: subprocess.Popen[bytes]) -> str:
        """How the process ended, with what it said last."""
        try:
            code = child.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            _kill(child)
            code = child.wait()
        said = ""
        if self._errors is not None and not self._errors.closed:
            self._errors.seek(0)
            said = self._errors.read().decode("utf-8", "replace").strip()[-_ERROR_CHARS:]
        self.close()
        how = f"its process died of {signal_name(-code)}" if code < 0 else f"its process ended with {code}"
        if code == -signal.SIGKILL:
            how += ", as it does where memory runs out"
        return f"{how}: {said}" if said else how


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End the child, where it still runs, and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _send(stream: Any, data: bytes) -> None:
    stream.write(_HEAD.pack(len(data)))
    stream.write(data)
    stream.flush()


def _receive(child: subprocess.Popen[bytes], seconds: float) -> bytes:
    """One message. Raises TimeoutError after so many seconds, EOFError where the child ended."""
    assert child.stdout is not None
    end = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        data = bytearray()
        needed = _HEAD.size
        while len(data) < needed:
            if not selector.select(max(0.0, end - time.monotonic())):
                raise TimeoutError
            part = os.read(child.stdout.fileno(), min(needed - len(data), 1 << 20))
            if not part:
                raise EOFError
            data += part
            if len(data) == _HEAD.size == needed:
                needed += _HEAD.unpack(bytes(data))[0]
    return bytes(data[_HEAD.size :])


# The child ---------------------------------------------------------------------------------------------------


def main() -> int:
    """Do jobs until the parent closes the pipe."""
    from outrider.compiler.workshop import _HERE as HERE  # of the module that jobs import, not of this script

    HERE.set()
    memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # what compilers read must not be the next jobs,
    os.dup2(2, 1)  # nor what they print come between the answers
    os.close(nothing)
    while head := jobs.read(_HEAD.size):
        function, arguments = pickle.loads(jobs.read(_HEAD.unpack(head)[0]))  # noqa: S301 - from the parent
        _send(answers, pickle.dumps(_done(function, arguments), protocol=5))
    return 0


def _done(function: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
    try:
        return "result", pkgutil.resolve_name(function)(*arguments)
    except OutriderError as e:
        return "error", e
    except MemoryError:
        return "error", "out of memory"
    except Exception as e:  # compilers raise what they like
        text = str(e).strip().splitlines()
        said = f"{type(e).__name__}: {text[0] if text else ''}"[:_ERROR_CHARS]
        return "error", f"out of memory ({said})" if "bad_alloc" in said else said


if __name__ == "__main__":
    raise SystemExit(main())
