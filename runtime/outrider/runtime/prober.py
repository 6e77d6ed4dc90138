"""Trying a bundle out before it serves: its golden vectors, on this silicon, in a process of its own.

A bundle that crashes, hangs or eats the machine takes only that process down. `probe` starts and watches it,
`python -m outrider.runtime.prober BUNDLE --trust DIR` is it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from outrider.runtime.arguments import Parser
from outrider.runtime.errors import EngineMissingError, OutriderError, StorageError, TargetMismatchError, TrustError
from outrider.runtime.messages import Health

PROBE_DEADLINE_S = 120.0
_POLL_S = 0.1
_PR_SET_PDEATHSIG = 1
_STDERR_CHARS = 400


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a probe found. `reason` is empty where it passed, otherwise one of `golden`, `latency`, `load`,
    `signature`, `target`, `probe-crashed`, `probe-timeout`; `detail` says it in words.

    `p99_ms` is the 99th percentile of a call's duration, milliseconds; `rss_bytes` the process's peak memory.
    """

    passed: bool
    reason: str = ""
    detail: str = ""
    max_abs_error: float | None = None
    p99_ms: float | None = None
    rows: int = 0
    rss_bytes: int = 0


Prober = Callable[[Path, Path, Health, Callable[[], bool]], "ProbeResult | None"]
"""How the installer probes: bundle, trust folder, health rules and `stop`; None where `stop()` ended it."""


def probe(
    bundle: Path, trust: Path, health: Health, stop: Callable[[], bool], *, deadline_s: float = PROBE_DEADLINE_S
) -> ProbeResult | None:
    """Probe a bundle in a child process. Never raises for what the bundle does; None where `stop()` ended it."""
    command = [sys.executable, "-m", "outrider.runtime.prober", str(bundle), "--trust", str(trust)]
    command += ["--parent", str(os.getpid())]
    if health.max_err is not None:
        command += ["--max-err", repr(health.max_err)]
    if health.p99_ms is not None:
        command += ["--p99-ms", repr(health.p99_ms)]
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as e:
        raise StorageError(f"cannot start a probe: {e.strerror}") from e
    with child:
        try:
            output, errors, ended = _watch(child, deadline_s, stop)
        finally:
            _kill(child)
    if not ended:
        if stop():
            return None
        return ProbeResult(passed=False, reason="probe-timeout", detail=f"no result within {deadline_s:g} s")
    return _result(child.returncode, output, errors)


def _watch(child: subprocess.Popen[bytes], deadline_s: float, stop: Callable[[], bool]) -> tuple[bytes, bytes, bool]:
    """Wait for the child: its output, its errors, and whether it ended by itself."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end and not stop():
        with contextlib.suppress(subprocess.TimeoutExpired):
            output, errors = child.communicate(timeout=_POLL_S)
            return output, errors, True
    return b"", b"", False


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End the child and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _result(code: int, output: bytes, errors: bytes) -> ProbeResult:
    lines = output.strip().splitlines()
    if code == 0 and lines:
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.json.decode(lines[-1], type=ProbeResult)
    how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with {code} and no result"
    said = errors.decode("utf-8", "replace").strip()[-_STDERR_CHARS:]
    return ProbeResult(passed=False, reason="probe-crashed", detail=f"{how}: {said}" if said else how)


# The child ---------------------------------------------------------------------------------------------------


def check(bundle: Path, trust: Path, *, max_err: float | None = None, p99_ms: float | None = None) -> ProbeResult:
    """Load the bundle, verified, and run its golden vectors in this process."""
    from outrider.runtime.golden import check_golden
    from outrider.runtime.session import load

    try:
        session = load(bundle, trust=trust)
    except TrustError as e:
        return ProbeResult(passed=False, reason="signature", detail=str(e))
    except (TargetMismatchError, EngineMissingError) as e:
        return ProbeResult(passed=False, reason=e.reason, detail=str(e))
    except OutriderError as e:
        return ProbeResult(passed=False, reason="load", detail=str(e))
    try:
        found = check_golden(session, max_err=max_err)
    except OutriderError as e:
        return ProbeResult(passed=False, reason="golden", detail=str(e))
    finally:
        session.close()
    passed, reason, detail = found.passed, "" if found.passed else "golden", found.detail
    if passed and p99_ms is not None and not found.p99_ms <= p99_ms:
        passed, reason = False, "latency"
        detail = f"p99 is {found.p99_ms:g} ms, at most {p99_ms:g} ms is allowed"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return ProbeResult(
        passed=passed,
        reason=reason,
        detail=detail,
        max_abs_error=found.max_abs_error,
        p99_ms=found.p99_ms,
        rows=found.rows,
        rss_bytes=peak,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The child's entry: prints one `ProbeResult` as the last line of its output."""
    parser = Parser(prog="python -m outrider.runtime.prober", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--trust", type=Path, required=True, help="the folder of trusted keys")
    parser.add_argument("--max-err", type=float, default=None, help="largest absolute error, instead of the bundle's")
    parser.add_argument("--p99-ms", type=float, default=None, help="longest 99th percentile of a call")
    parser.add_argument("--parent", type=int, default=None, help="end when this process does")
    options = parser.parse_args(arguments)
    _die_with(options.parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    found = check(options.bundle, options.trust, max_err=options.max_err, p99_ms=options.p99_ms)
    sys.stdout.write(f"\n{msgspec.json.encode(found).decode()}\n")
    sys.stdout.flush()
    return 0


def _die_with(parent: int | None) -> None:
    """Ask the kernel to end this process with its parent, so that a killed device leaves no probe behind."""
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    raise SystemExit(main())
