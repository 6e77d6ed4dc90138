"""`outrider verify`, `check` and `diff`: what they print, and their exit codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from outrider.runtime.bundle import ArtifactEntry, CandidateRecord, GoalRecord, Measurement, encode_npy, file_entry
from outrider.runtime.bundle.diff import BundleDiff
from outrider.runtime.check import DeviceCheck
from outrider.runtime.cli import main
from outrider.runtime.probe import host_target
from outrider.runtime.target import Requirements
from outrider.runtime.verify import Verification

MakeBundle = Callable[..., Path]
WRONG = encode_npy(np.array([0.25, 1.0, 0.75], np.float32))


def entry(data: bytes, name: str, **changes: Any) -> ArtifactEntry:
    stored = file_entry(f"artifacts/{name}/mean.so", data)
    known: dict[str, Any] = {
        "path": stored.path,
        "size": stored.size,
        "sha256": stored.sha256,
        "format": "native",
        "abi": 1,
        "engine": "native",
        "package": None,
        "triple": None,
        "needs": Requirements(),
        "inputs": ("features",),
        "outputs": ("score",),
        "candidate": name,
    }
    return ArtifactEntry(**{**known, **changes})


def record(name: str, rank: int, **changes: Any) -> CandidateRecord:
    known = {"backend": "native", "precision": "fp32", "options": {}, "outcome": "shipped", "reason": "as told"}
    return CandidateRecord(**{"id": name, "rank": rank, **known, **changes})


@pytest.fixture
def several(make_bundle: MakeBundle, mean_library: bytes) -> MakeBundle:
    """A bundle of three artifacts: one of another architecture, one that runs here, and one as `last` says."""

    def make(name: str = "several.orb", last: bytes | None = None, **changes: Any) -> Path:
        contents = {"arm": b"for another machine", "here": mean_library, "last": last or mean_library}
        needs = {"arm": Requirements(arch="riscv64"), "here": Requirements(), "last": Requirements()}
        return make_bundle(
            name,
            files={f"artifacts/{key}/mean.so": data for key, data in contents.items()}
            | changes.pop("files", {})
            | {"artifacts/k2/mean.so": b"once more"},
            artifacts=tuple(entry(data, key, needs=needs[key]) for key, data in contents.items()),
            candidates=tuple(record(key, rank) for rank, key in enumerate(contents, 1)),
            **changes,
        )

    return make


def test_verify_looks_at_every_artifact_that_runs_here(several: MakeBundle, capsys: Any) -> None:
    path = several()
    assert main(["verify", str(path), "--json"]) == 0
    found = msgspec.json.decode(capsys.readouterr().out, type=Verification)
    assert [(one.artifact, one.outcome) for one in found.artifacts] == [
        ("arm", "does not run"),
        ("here", "agrees"),
        ("last", "agrees"),
    ]
    assert found.artifacts[0].refusal is not None
    assert found.artifacts[0].refusal.code == "arch"
    assert all(one.p99_ms is not None and one.p99_ms > 0 for one in found.artifacts[1:])
    assert all(one.max_abs_error is not None and one.max_abs_error < 1e-6 for one in found.artifacts[1:])
    assert main(["verify", str(path)]) == 0
    assert "here: agrees, error" in capsys.readouterr().out


def test_verify_ends_with_6_where_one_disagrees_or_fails(several: MakeBundle, capsys: Any) -> None:
    assert main(["verify", str(several(files={"golden/outputs/score.npy": WRONG}))]) == 6
    shown = capsys.readouterr()
    assert "here: disagrees" in shown.out
    assert "last: score is out of tolerance in 1 of 3 values" in shown.err
    assert main(["verify", str(several("broken.orb", last=b"\x7fELF no library"))]) == 6
    shown = capsys.readouterr()
    assert "here: agrees" in shown.out
    assert "last: failed" in shown.out


def test_verify_ends_with_5_where_nothing_runs_here(make_bundle: MakeBundle, mean_library: bytes, capsys: Any) -> None:
    path = make_bundle(
        artifacts=(entry(mean_library, "k2", needs=Requirements(arch="riscv64")),), candidates=(record("k2", 1),)
    )
    assert main(["verify", str(path)]) == 5
    assert "arch: needs riscv64" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["verify", "none.orb"], 1, "no bundle"),
        (["verify", "{path}", "--threads", "0"], 2, "no whole number"),
        (["verify", "{path}", "--trust", "none.pub"], 1, "none.pub"),
        (["check", "{path}"], 2, "--device"),
        (["check", "{path}", "--device", "none.json"], 1, "cannot read"),
        (["check", "{path}", "--device", "{path}"], 1, "does not describe a device"),
        (["check", "{path}", "--device", "{probe}", "--engine", "magic"], 2, "no engine 'magic'"),
        (["diff", "{path}"], 2, "B"),
        (["diff", "{path}", "{probe}"], 1, ""),
    ],
)
def test_bad_input(
    make_bundle: MakeBundle, tmp_path: Path, capsys: Any, arguments: list[str], code: int, message: str
) -> None:
    probe = tmp_path / "probe.json"
    probe.write_bytes(msgspec.json.encode(host_target()))
    places = {"path": make_bundle(), "probe": probe}
    assert main([argument.format(**places) for argument in arguments]) == code
    assert message in capsys.readouterr().err


def test_check_by_what_probe_prints(several: MakeBundle, tmp_path: Path, capsys: Any) -> None:
    path, probe = several(), tmp_path / "probe.json"
    assert main(["probe"]) == 0
    probe.write_text(capsys.readouterr().out)
    assert main(["check", str(path), "--device", str(probe)]) == 0
    assert "here: yes" in capsys.readouterr().out
    assert main(["check", str(path), "--device", str(probe), "--json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out, type=DeviceCheck).runs == "here"


def test_check_says_why_nothing_would_run(make_bundle: MakeBundle, tmp_path: Path, capsys: Any) -> None:
    path, probe = make_bundle(), tmp_path / "probe.json"
    target = msgspec.structs.replace(host_target(), name="gateway", features=())
    probe.write_bytes(msgspec.json.encode(target))
    assert main(["check", str(path), "--device", str(probe), "--engine", "onnx", "--json"]) == 5
    shown = capsys.readouterr()
    found = msgspec.json.decode(shown.out, type=DeviceCheck)
    assert found.runs is None
    assert found.artifacts[0].refusal is not None
    assert found.artifacts[0].refusal.code == "engine"
    assert "does not run on gateway: engine: needs native" in shown.err


def test_diff_of_the_same_and_of_others(several: MakeBundle, make_bundle: MakeBundle, capsys: Any) -> None:
    first, again = make_bundle("a.orb"), make_bundle("b.orb")
    assert main(["diff", str(first), str(again)]) == 0
    assert "byte for byte" in capsys.readouterr().out
    times = Measurement(batch=1, threads=1, ns_per_row_min=5.0, ns_per_row_median=7.0, repeats=3)
    goal = GoalRecord(text="p99<=1ms", metric="p99", relation="<=", bound=1.0, unit="ms", measured=2.0, met=False)
    other = make_bundle(
        "c.orb",
        files={"golden/outputs/score.npy": WRONG},
        version="2",
        candidates=(record("k2", 1, measured=(times,), outcome="chosen"),),
        goals=(goal,),
        tools={"ziglang": "0.15"},
    )
    assert main(["diff", str(first), str(other), "--json"]) == 0
    found = msgspec.json.decode(capsys.readouterr().out, type=BundleDiff)
    by_part = {(one.part, one.what): one for one in found.differences}
    assert not found.same
    assert by_part["release", "version"].second == "2"
    assert by_part["candidate", "k2"].second == "chosen, 7 ns a row at 1"
    assert by_part["goal", "p99<=1ms"].second == "not met, 2 ms"
    assert by_part["tool", "ziglang"].first is None
    assert by_part["golden", "output score"].detail == "up to 0.25 apart"
    assert ("signature", "input features") not in by_part
    assert main(["diff", str(first), str(several())]) == 0
    text = capsys.readouterr().out
    assert "  arm: none -> native ABI 1" in text
