"""The probe as a real child process: what it finds, and what the bundle may do to it."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from outrider.runtime.messages import Health
from outrider.runtime.prober import ProbeResult, probe

pytestmark = pytest.mark.system


def _never() -> bool:
    return False


def test_a_sound_bundle(fleet: Any, staged: Any) -> None:
    result = probe(*staged(fleet.bundle("1")), Health(max_err=1e-3, p99_ms=10_000.0), _never)
    assert result is not None
    assert (result.passed, result.reason, result.rows) == (True, "", 3)
    assert result.p99_ms is not None
    assert result.p99_ms > 0
    assert result.rss_bytes > 1 << 20


@pytest.mark.parametrize(
    ("kind", "reason", "words"), [("crash", "probe-crashed", "SIGSEGV"), ("hang", "probe-timeout", "3 s")]
)
def test_a_bundle_that_takes_its_process_down(
    fleet: Any, staged: Any, bad_libraries: Mapping[str, bytes], kind: str, reason: str, words: str
) -> None:
    bundle = fleet.bundle("1", library=bad_libraries[kind])
    result = probe(*staged(bundle), Health(), _never, deadline_s=3.0 if kind == "hang" else 30.0)
    assert result is not None
    assert (result.passed, result.reason) == (False, reason)
    assert words in result.detail


def test_one_after_the_other(fleet: Any, staged: Any) -> None:
    for made, health, reason in (
        (fleet.bundle("1", wrong=True), Health(), "golden"),
        (fleet.bundle("2"), Health(p99_ms=0.0), "latency"),
        (_signed_by_nobody(fleet.bundle("3")), Health(), "signature"),
    ):
        result = probe(*staged(made), health, _never)
        assert result is not None
        assert (result.passed, result.reason) == (False, reason)
        assert result.detail


def _signed_by_nobody(made: Any) -> Any:
    signature = msgspec.json.decode(made.wanted.signature)
    signature["signatures"] = []
    wanted = msgspec.structs.replace(made.wanted, signature=msgspec.json.encode(signature).decode())
    return dataclasses.replace(made, wanted=wanted)


def test_stop_ends_it_soon(fleet: Any, staged: Any, bad_libraries: Mapping[str, bytes]) -> None:
    end = time.monotonic() + 1.0
    bundle, trust = staged(fleet.bundle("1", library=bad_libraries["hang"]))
    assert probe(bundle, trust, Health(), lambda: time.monotonic() > end) is None
    assert time.monotonic() < end + 5


def test_a_killed_device_leaves_no_probe_behind(
    fleet: Any, staged: Any, bad_libraries: Mapping[str, bytes], tmp_path: Path
) -> None:
    bundle, trust = staged(fleet.bundle("1", library=bad_libraries["hang"]))
    code = (
        "from pathlib import Path; from outrider.runtime.messages import Health; "
        "from outrider.runtime.prober import probe; "
        f"probe(Path({str(bundle)!r}), Path({str(trust)!r}), Health(), lambda: False)"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        children: list[str] = []
        end = time.monotonic() + 20
        while not children and time.monotonic() < end:
            time.sleep(0.05)
            children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        time.sleep(0.5)
        parent.send_signal(signal.SIGKILL)
    assert children
    end = time.monotonic() + 10
    while _lives(int(children[0])) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _lives(int(children[0]))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_the_installer_uses_it(fleet: Any, make_device: Callable[..., Any], bad_libraries: Mapping[str, bytes]) -> None:
    device = make_device(prober=probe)
    first = fleet.bundle("1")
    device.installer.offer(fleet.desired(1, first))
    device.wait("COMMITTED", rev=1)
    device.installer.offer(fleet.desired(2, fleet.bundle("2", library=bad_libraries["crash"])))
    device.wait("REJECTED", rev=2)
    assert device.reasons()[0] == "probe-crashed"
    assert device.store.slots.current("main") == first.sha256


def test_a_result_survives_what_an_artifact_prints() -> None:
    from outrider.runtime.prober import _result

    line = msgspec.json.encode(ProbeResult(passed=True, rows=2))
    assert _result(0, b"noise\n" + line + b"\n", b"").passed
    assert _result(0, b"noise", b"").reason == "probe-crashed"
    assert _result(1, line, b"trace").detail == "ended with 1 and no result: trace"
