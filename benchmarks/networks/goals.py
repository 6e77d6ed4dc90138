"""What the figures say: the best peer of each net, Outrider's ratio to it, and the goals it is held against."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.networks.peers import is_ours, peer
from benchmarks.networks.records import Candidate, Cell, Entry, Result

OURS, OURS_FP32 = "outrider", "outrider-fp32"

FP32_RATIO = 0.97  # of the best backend run by hand, on any net
INT8_RATIO = {"mbv2": 2.0, "r18": 3.5}  # times as fast as the best peer in fp32
ACCURATE, ACCURACY_LOSS, ACCURATE_RATIO = "digits", 0.01, 1.0  # to the best peer's int8
TVM_RATIO = {"mbv2": 1.5, "tiny": 1.2}  # tuned, times as slow as ONNX Runtime in fp32 at most
TUNED = "mbv2"
OVERHEAD_US = 5.0
COMPILED, COMPILE_S, CACHED_S = "tiny", 60.0, 2.0
TUNE_S = 600.0


@dataclass(frozen=True)
class Goal:
    """One goal: in words, what was measured, and whether that meets it; None where it could not be measured."""

    text: str
    measured: str
    met: bool | None


@dataclass(frozen=True)
class Ratio:
    """How many times as fast ours is as a peer on a net."""

    net: str
    ours: str
    value: float
    rival: str


def goals(result: Result) -> list[Goal]:
    """All goals of the nets that the run had."""
    nets = [info.name for info in result.nets if not info.skipped]
    return [
        *(_fp32(result, net) for net in nets),
        *(_accurate(result) for _ in range(ACCURATE in nets)),
        *(_int8(result, net) for net in INT8_RATIO if net in nets),
        *(_tvm(result, net) for net in TVM_RATIO if net in nets),
        *(_tuning(result) for _ in range(TUNED in nets)),
        _overhead(result),
        *(goal for goal in _compile(result) if COMPILED in nets),
    ]


def entry(result: Result, net: str, name: str) -> Entry | None:
    """What became of a contender on a net."""
    return next((one for one in result.entries if (one.net, one.peer) == (net, name)), None)


def cell(result: Result, net: str, name: str) -> Cell | None:
    """Its times, where it was measured and its outputs are of use."""
    there = entry(result, net, name)
    if there is None or there.status != "measured":
        return None
    return next((one for one in result.cells if (one.net, one.peer) == (net, name)), None)


def best_peer(
    result: Result, net: str, *, precisions: Iterable[str] = ("fp32", "int8"), backends: bool = False
) -> Cell | None:
    """The fastest peer on a net in one of these precisions; `backends`: only of those that make artifacts."""
    wanted = set(precisions)
    names = [
        one.peer
        for one in result.entries
        if one.net == net
        and not is_ours(one.peer)
        and one.precision in wanted
        and (not backends or peer(one.peer).backend)
    ]
    cells = [found for name in names if (found := cell(result, net, name)) is not None]
    return min(cells, key=lambda one: one.cpu_min, default=None)


def ratio(result: Result, net: str, ours: str, rival: Cell | None) -> Ratio | None:
    """Ours to that peer; None where either was not measured."""
    own = cell(result, net, ours)
    return None if own is None or rival is None else Ratio(net, ours, rival.cpu_min / own.cpu_min, rival.peer)


def _fp32(result: Result, net: str) -> Goal:
    rival = best_peer(result, net, precisions=("fp32",), backends=True)
    text = f"{net}: fp32 at least {FP32_RATIO:g} of the best backend run by hand"
    return _held(result, text, net, OURS_FP32, rival, FP32_RATIO)


def _int8(result: Result, net: str) -> Goal:
    wanted = INT8_RATIO[net]
    text = f"{net}: int8 at least {wanted:g} times as fast as the best fp32"
    return _held(result, text, net, OURS, best_peer(result, net, precisions=("fp32",)), wanted)


def _accurate(result: Result) -> Goal:
    """At least as fast as the best int8 peer; both must keep the accuracy, or they are no rivals."""
    text = f"{ACCURATE}: within one point of accuracy, at least as fast as the best peer's int8"
    return _held(result, text, ACCURATE, OURS, best_peer(result, ACCURATE, precisions=("int8",)), ACCURATE_RATIO)


def _held(result: Result, text: str, net: str, ours: str, rival: Cell | None, wanted: float) -> Goal:
    own = entry(result, net, ours)
    if own is None or rival is None:
        return Goal(text, f"{ours} did not take part" if own is None else "no peer was measured", None)
    found = ratio(result, net, ours, rival)
    if found is None:
        return Goal(text, f"{own.status}: {own.detail}" if own.detail else own.status, False)
    value = round(found.value, 2)
    return Goal(text, f"{value:.2f}x {found.rival}", value >= wanted)


def _tvm(result: Result, net: str) -> Goal:
    wanted = TVM_RATIO[net]
    text = f"{net}: tuned TVM within {wanted:g} times of ONNX Runtime fp32"
    tried = _candidates(result, net)
    tvm, ort = _fastest(tried, "tvm"), _fastest(tried, "ort")
    if tvm is None or ort is None:
        reasons = [one.reason for one in tried if one.backend == "tvm"]
        return Goal(text, reasons[0] if reasons else "no TVM candidate was measured", None)
    value = round(tvm / ort, 2)
    return Goal(text, f"{value:.2f}x", value <= wanted)


def _tuning(result: Result) -> Goal:
    text = f"{TUNED}: tuned in at most {TUNE_S / 60:.0f} min"
    ours = entry(result, TUNED, OURS_FP32)
    tried = _candidates(result, TUNED)
    if ours is None or ours.make_s is None or not result.tune_s or _fastest(tried, "tvm") is None:
        return Goal(text, "nothing was tuned in this run (--tune SECONDS)", None)
    return Goal(text, f"the whole compile took {ours.make_s:.0f} s", ours.make_s <= TUNE_S)


def _overhead(result: Result) -> Goal:
    text = f"a session adds at most {OVERHEAD_US:g} us to its engine's own call"
    found = [(one.overhead_us, one.net) for one in result.entries if one.overhead_us is not None]
    if not found:
        return Goal(text, "not measured", None)
    value, net = max(found)
    return Goal(text, f"{value:.1f} us at most, on {net}", round(value, 1) <= OVERHEAD_US)


def _compile(result: Result) -> list[Goal]:
    ours = entry(result, COMPILED, OURS)
    limits = (("a compile", COMPILE_S, ours and ours.make_s), ("the same again", CACHED_S, ours and ours.cached_s))
    return [
        Goal(
            f"{COMPILED}: {what} in at most {limit:g} s",
            "not measured" if seconds is None else f"{seconds:.1f} s",
            None if seconds is None else seconds <= limit,
        )
        for what, limit, seconds in limits
    ]


def _candidates(result: Result, net: str) -> tuple[Candidate, ...]:
    found = entry(result, net, OURS_FP32)
    return found.candidates if found else ()


def _fastest(candidates: Iterable[Candidate], backend: str) -> float | None:
    times = [one.ms_min for one in candidates if one.backend == backend and one.ms_min and "int8" not in one.precision]
    return min(times, default=None)
