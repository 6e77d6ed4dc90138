"""A result as Markdown: the goals and the ratios first, every figure after them."""

from __future__ import annotations

from benchmarks.networks.goals import OURS, OURS_FP32, Ratio, best_peer, entry, goals, ratio
from benchmarks.networks.peers import PEERS, SLOW, is_ours
from benchmarks.networks.records import Cell, Entry, NetInfo, Result
from benchmarks.shared.report import contenders, join, machine_line, section, table


def markdown(result: Result, *, image: str | None = None) -> str:
    """The whole report."""
    parts = [
        _head(result),
        f"![Ratio to the best peer]({image})" if image else "",
        section("Goals", _goals(result)),
        section("Times as fast as the best peer", _ratios(result)),
        *(_net(result, info) for info in result.nets),
        section("Contenders", contenders(result.peers)),
    ]
    return join(parts)


def peak(result: Result, precision: str) -> float | None:
    """The core's peak that a precision is held against, in billions of operations a second."""
    return next((one.gops for one in result.peaks if one.name == precision), None)


def _head(result: Result) -> str:
    peaks = "; ".join(
        f"{one.name}: {one.reason}" if one.gops is None else f"{one.name} {one.gops:,.0f}" for one in result.peaks
    )
    lines = [
        f"# Compiled networks against their peers, {result.date}",
        "",
        machine_line(result.machine),
        "",
        "One thread, batch 1, ms a call. CPU time over the loops of one interleaved run, each contender in a process "
        "of its own, called from Python on samples held out; wall time over single calls. A ratio is the best peer's "
        "lowest CPU time by Outrider's. Errors are against torch, by the largest output.",
        "",
        f"The core's peaks, measured, in billions of operations a second: {peaks or 'not measured'}.",
    ]
    if result.quick:
        lines += ["", "A quick run: few rounds, few nets, without the slow peers."]
    there = {one.name for one in result.peers if one.version is not None}
    left_out = SLOW if result.quick else ()
    missing = [name for name in PEERS if name not in there and not is_ours(name) and name not in left_out]
    if missing:
        lines += ["", f"**Not all peers took part: without {', '.join(missing)}.**"]
    if result.interrupted:
        lines += ["", "**The run was interrupted: this is what it had found.**"]
    return "\n".join(lines)


def _goals(result: Result) -> str:
    found = goals(result)
    words = {True: "met", False: "**missed**", None: "not measured"}
    text = table(["goal", "measured", ""], [[one.text, one.measured, words[one.met]] for one in found])
    held = [one for one in found if one.met is not None]
    return f"{text}\n\n{sum(one.met is True for one in held)} of {len(held)} goals met."


def _ratios(result: Result) -> str:
    """Of each net: ours in fp32 to the best fp32 backend and peer, and ours as chosen to the best of all peers."""
    rows = []
    for info in result.nets:
        if info.skipped:
            continue
        backend = best_peer(result, info.name, precisions=("fp32",), backends=True)
        fp32 = best_peer(result, info.name, precisions=("fp32",))
        any_ = best_peer(result, info.name)
        chosen = entry(result, info.name, OURS)
        rows.append(
            [
                info.name,
                _ratio(ratio(result, info.name, OURS_FP32, backend)),
                _ratio(ratio(result, info.name, OURS_FP32, fp32)),
                _ratio(ratio(result, info.name, OURS, fp32)),
                _ratio(ratio(result, info.name, OURS, any_)),
                chosen.detail if chosen and chosen.status == "measured" else "-",
            ]
        )
    head = [
        "net",
        "fp32 to the best fp32 backend",
        "fp32 to the best fp32 peer",
        "chosen to the best fp32 peer",
        "chosen to the best peer",
        "chosen",
    ]
    return table(head, rows) if rows else ""


def _ratio(found: Ratio | None) -> str:
    return "-" if found is None else f"{found.value:.2f}x ({found.rival})"


def _net(result: Result, info: NetInfo) -> str:
    title = f"{info.name}: {info.description}"
    if info.skipped:
        return section(title, f"Skipped: {info.skipped}")
    entries = [one for one in result.entries if one.net == info.name]
    shown = [one for one in entries if one.status in ("measured", "differs")]
    head = [
        "contender",
        "CPU min",
        "p50",
        "wall p50",
        "p99",
        "G/s",
        "of peak",
        "error",
        "accuracy",
        "RSS",
        "disk",
        "file",
    ]
    rows = [_figures(result, info, one) for one in shown]
    accuracy = "" if info.base_accuracy is None else f", accuracy {info.base_accuracy:.2%} by torch"
    parts = [f"{info.flops / 1e6:,.1f} million operations, {info.onnx_bytes / 1e6:,.2f} MB of ONNX{accuracy}."]
    if rows:
        parts.append(table(head, rows))
    out = [f"{one.peer}: {one.detail or one.status}" for one in entries if one not in shown]
    wrong = [one.peer for one in shown if one.status == "differs"]
    if wrong:
        parts.append(f"Too far from torch to be of use, so no rivals: {', '.join(wrong)}.")
    if out:
        parts.append("Not in it: " + "; ".join(out) + ".")
    parts += [_candidates(one) for one in entries if one.candidates]
    return section(title, "\n\n".join(parts))


def _figures(result: Result, info: NetInfo, one: Entry) -> list[str]:
    """The times in ms, the rate, what part of the precision's peak it is, errors, and costs in MiB."""
    times: Cell | None = next((c for c in result.cells if (c.net, c.peer) == (one.net, one.peer)), None)
    rate = info.flops / times.cpu_min / 1e6 if times and times.cpu_min else None
    top = peak(result, one.precision)
    return [
        one.peer,
        *(("-",) * 4 if times is None else map(_ms, (times.cpu_min, times.cpu_p50, times.wall_p50, times.wall_p99))),
        "-" if rate is None else f"{rate:,.1f}",
        "-" if rate is None or not top else f"{rate / top:.0%}",
        "-" if one.error is None else f"{one.error:.0e}",
        "-" if one.accuracy is None else f"{one.accuracy:.2%}",
        *("-" if value is None else f"{value:,.0f}" for value in (one.rss_mb, one.disk_mb)),
        "-" if one.file_bytes is None else f"{one.file_bytes / 2**20:,.2f}",
    ]


def _candidates(one: Entry) -> str:
    """Every candidate of a compile's report."""
    rows = [
        [
            found.id,
            found.precision,
            found.outcome,
            "-" if found.ms_min is None else _ms(found.ms_min),
            "-" if found.error is None else f"{found.error:.0e}",
            "-" if found.size is None else f"{found.size / 2**20:,.2f}",
            found.reason.replace("|", "\\|"),
        ]
        for found in one.candidates
    ]
    head = ["candidate", "precision", "outcome", "CPU ms", "abs. error", "MiB", "why"]
    costs = [
        f"compiled in {one.make_s:.1f} s" if one.make_s is not None else "",
        f"again in {one.cached_s:.1f} s" if one.cached_s is not None else "",
        f"a session adds {one.overhead_us:.1f} us a call" if one.overhead_us is not None else "",
    ]
    return f"What {one.peer} tried ({'; '.join(cost for cost in costs if cost)}):\n\n{table(head, rows)}"


def _ms(value: float) -> str:
    return f"{value:.4f}" if value < 1 else f"{value:.3f}" if value < 10 else f"{value:,.1f}"
