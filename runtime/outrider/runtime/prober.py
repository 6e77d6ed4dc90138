"""Trying a bundle out before it serves: its golden vectors, on this silicon, in a process of its own.

A bundle that crashes, hangs or eats the machine takes only that process down. `probe` starts and watches it,
`python -m outrider.runtime.prober BUNDLE --trust DIR` is it.

Where a bundle has several artifacts, each that this machine admits has a process of its own, one after the other, and
the fastest of those that pass is kept (see `choice.fastest`).
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
from msgspec.structs import replace

from outrider.runtime.admission import admissible, need_of
from outrider.runtime.arguments import Parser
from outrider.runtime.bundle import read_manifest
from outrider.runtime.choice import fastest
from outrider.runtime.engines import available
from outrider.runtime.errors import EngineMissingError, OutriderError, StorageError, TargetMismatchError, TrustError
from outrider.runtime.messages import LABEL_CHARS, MAX_TRIALS, TRIAL_DETAIL_CHARS, ArtifactTrial, Health
from outrider.runtime.probe import host_target

PROBE_DEADLINE_S = 120.0
"""How long one artifact may take."""

PROBES_DEADLINE_S = 240.0
"""How long all of them may take; below the update's own deadline for PROBING."""

LEAST_S = 15.0
"""What each of them is left by those before it, where there is so much."""

_POLL_S = 0.1
_PR_SET_PDEATHSIG = 1
_STDERR_CHARS = 400


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a probe found. `reason` is empty where it passed, otherwise one of `golden`, `latency`, `load`,
    `signature`, `target`, `probe-crashed`, `probe-timeout`; `detail` says it in words.

    `p50_ms` and `p99_ms` are percentiles of a call's duration, milliseconds; `rss_bytes` the process's peak memory.
    Of a bundle of several artifacts they are those of the one that was kept: `candidate` is its candidate, `sound` are
    all candidates that passed, and `trials` says what was found of each.
    """

    passed: bool
    reason: str = ""
    detail: str = ""
    max_abs_error: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    rows: int = 0
    rss_bytes: int = 0
    candidate: str = ""
    sound: tuple[str, ...] = ()
    trials: tuple[ArtifactTrial, ...] = ()


Prober = Callable[[Path, Path, Health, Callable[[], bool]], "ProbeResult | None"]
"""How the installer probes: bundle, trust folder, health rules and `stop`; None where `stop()` ended it."""


def probe(
    bundle: Path,
    trust: Path,
    health: Health,
    stop: Callable[[], bool],
    *,
    deadline_s: float = PROBE_DEADLINE_S,
    all_deadline_s: float = PROBES_DEADLINE_S,
) -> ProbeResult | None:
    """Probe a bundle, each of its artifacts in a child process. Never raises for what the bundle does; None where
    `stop()` ended it.

    `deadline_s` is for one artifact, `all_deadline_s` for all. Where several hang, each is cut short in time for those
    after it.
    """
    try:
        candidates = _several(bundle)
    except OutriderError as e:
        return ProbeResult(passed=False, reason="load", detail=str(e))
    if not candidates:
        return _probe_one(bundle, trust, health, stop, deadline_s)
    end = time.monotonic() + all_deadline_s
    found: dict[str, ProbeResult] = {}
    for number, candidate in enumerate(candidates):
        allowed = _allowance(end - time.monotonic(), len(candidates) - number, deadline_s)
        result = _probe_one(bundle, trust, health, stop, allowed, candidate)
        if result is None:
            return None
        found[candidate] = result
    return _decide(found)


def _several(bundle: Path) -> tuple[str, ...]:
    """The candidates to try one by one, in the order of their ranks: none where the bundle has a single artifact.

    None either where this machine admits none; the probe of the whole bundle says why.
    """
    manifest = read_manifest(bundle)
    if len(manifest.artifacts) < 2:
        return ()
    host = host_target()
    admitted = (
        artifact.candidate
        for artifact in manifest.ranked_artifacts()
        if admissible(need_of(artifact), host, engines=available) is None
    )
    return tuple(dict.fromkeys(admitted))[:MAX_TRIALS]


def _allowance(left_s: float, count: int, deadline_s: float) -> float:
    """How long the next of `count` artifacts may take, of the time that is left for all of them."""
    return max(0.0, min(deadline_s, max(left_s - LEAST_S * (count - 1), left_s / count)))


def _decide(found: dict[str, ProbeResult]) -> ProbeResult:
    """What the results of several artifacts, in the order of their ranks, come to."""
    names = list(found)
    trials = [_trial(candidate, result) for candidate, result in found.items()]
    best = fastest(trials)
    if best is None:
        reasons = "; ".join(f"{trial.candidate}: {trial.reason}: {trial.detail}" for trial in trials)
        return ProbeResult(passed=False, reason=found[names[0]].reason, detail=reasons, trials=tuple(trials))
    trials[best] = replace(trials[best], kept=True)
    sound = tuple(candidate for candidate, result in found.items() if result.passed)
    return replace(found[names[best]], candidate=names[best], sound=sound, trials=tuple(trials))


def _trial(candidate: str, result: ProbeResult) -> ArtifactTrial:
    return ArtifactTrial(
        candidate=candidate[:LABEL_CHARS],
        passed=result.passed,
        p50_ms=result.p50_ms,
        p99_ms=result.p99_ms,
        rss_bytes=result.rss_bytes,
        reason=result.reason,
        detail="" if result.passed else result.detail[:TRIAL_DETAIL_CHARS],
    )


def _probe_one(
    bundle: Path, trust: Path, health: Health, stop: Callable[[], bool], deadline_s: float, candidate: str | None = None
) -> ProbeResult | None:
    """Probe in a child process the artifact of a candidate, or whichever the machine runs."""
    command = [sys.executable, "-m", "outrider.runtime.prober", str(bundle), "--trust", str(trust)]
    command += ["--parent", str(os.getpid())]
    if health.max_err is not None:
        command += ["--max-err", repr(health.max_err)]
    if health.p99_ms is not None:
        command += ["--p99-ms", repr(health.p99_ms)]
    if candidate is not None:
        command += [f"--candidate={candidate}"]
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


def check(
    bundle: Path,
    trust: Path,
    *,
    max_err: float | None = None,
    p99_ms: float | None = None,
    candidate: str | None = None,
) -> ProbeResult:
    """Load the bundle, verified, and run its golden vectors in this process; by `candidate` alone where it is given."""
    from outrider.runtime.golden import check_golden
    from outrider.runtime.session import load

    try:
        session = load(bundle, trust=trust, only=None if candidate is None else (candidate,))
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
    return ProbeResult(
        passed=passed,
        reason=reason,
        detail=detail,
        max_abs_error=found.max_abs_error,
        p50_ms=found.p50_ms,
        p99_ms=found.p99_ms,
        rows=found.rows,
        rss_bytes=_peak_bytes(),
    )


def _peak_bytes() -> int:
    """This process's peak memory. Linux hands `ru_maxrss` down from the process that started it, so /proc is asked."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """The child's entry: prints one `ProbeResult` as the last line of its output."""
    parser = Parser(prog="python -m outrider.runtime.prober", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--trust", type=Path, required=True, help="the folder of trusted keys")
    parser.add_argument("--max-err", type=float, default=None, help="largest absolute error, instead of the bundle's")
    parser.add_argument("--p99-ms", type=float, default=None, help="longest 99th percentile of a call")
    parser.add_argument("--candidate", default=None, help="try this candidate's artifact and no other")
    parser.add_argument("--parent", type=int, default=None, help="end when this process does")
    options = parser.parse_args(arguments)
    _die_with(options.parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    found = check(
        options.bundle, options.trust, max_err=options.max_err, p99_ms=options.p99_ms, candidate=options.candidate
    )
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
