"""A result as Markdown: the ratios against their goals first, every figure after them."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.shared.report import contenders, join, machine_line, section, table
from benchmarks.trees.peers import PEERS, is_ours
from benchmarks.trees.ratios import (
    ARTIFACT_BYTES,
    COMPILE_PEAK_MB,
    COMPILE_S,
    OURS,
    OURS_AVX2,
    Ratio,
    best_rival,
    ratios,
    worst,
)
from benchmarks.trees.records import CaseInfo, Cell, Entry, Result

_BASES = ("a", "b", "c", "d", "e")


def markdown(result: Result, *, image: str | None = None) -> str:
    """The whole report."""
    found = ratios(result)
    base = [ratio for ratio in found if ratio.case in _BASES]
    random = [ratio for ratio in found if ratio.shape in _BASES and ratio.case not in _BASES]
    others = [ratio for ratio in found if ratio.shape not in _BASES]
    parts = [
        _head(result),
        f"![Ratio to the best peer]({image})" if image else "",
        section("Times as fast as the best peer", _ratio_table(base)),
        section("The worst of the random models of each shape", _ratio_table(worst(random), name_case=True)),
        section("Real data, and 5,000 trees", _ratio_table(others)),
        section("With AVX2 only: the worst of each shape", _ratio_table(_avx2(result), name_case=True)),
        section("Compile, size, memory", _costs(result)),
        *(_case(result, case) for case in result.cases),
        section("Contenders", contenders(result.peers)),
    ]
    return join(parts)


def _head(result: Result) -> str:
    lines = [
        f"# Compiled forests against their peers, {result.date}",
        "",
        machine_line(result.machine),
        "",
        "One thread. CPU time, the lowest of all rounds of one interleaved run, each prediction called from Python on "
        "float32 rows that no model has seen, with warm caches. A ratio is the best peer's time by Outrider's.",
    ]
    if result.quick:
        lines += ["", "A quick run: few rounds, two models."]
    there = {peer.name for peer in result.peers if peer.version is not None}
    missing = [name for name in PEERS if name not in there and not is_ours(name)]
    if missing:
        lines += ["", f"**Not all peers took part: without {', '.join(missing)}.**"]
    failed = [e for e in result.entries if is_ours(e.peer) and e.status in ("unsupported", "differs")]
    if failed:
        cases = "; ".join(f"{entry.case} ({entry.peer}: {entry.detail or 'wrong results'})" for entry in failed)
        lines += ["", f"**Outrider failed, and its goals are not met, on: {cases}.**"]
    if result.interrupted:
        lines += ["", "**The run was interrupted: this is what it had found.**"]
    return "\n".join(lines)


def _ratio_table(found: list[Ratio], *, name_case: bool = False) -> str:
    """A line a model (or a shape, where `name_case`), a column a batch size."""
    if not found:
        return ""
    batches = sorted({ratio.batch for ratio in found})
    lines: dict[str, dict[int, Ratio]] = {}
    for ratio in found:
        lines.setdefault(ratio.shape if name_case else ratio.case, {})[ratio.batch] = ratio
    rows = [
        [name, *(_ratio(cells[batch], name_case=name_case) if batch in cells else "-" for batch in batches)]
        for name, cells in lines.items()
    ]
    text = table(["model", *(_batch(batch) for batch in batches)], rows)
    goals = [ratio for ratio in found if ratio.goal is not None]
    missed = sum(not ratio.met for ratio in goals)
    return f"{text}\n\n{len(goals) - missed} of {len(goals)} goals met." if goals else text


def _ratio(ratio: Ratio, *, name_case: bool) -> str:
    where = f"{ratio.rival}, {ratio.case}" if name_case else ratio.rival
    text = f"{ratio.value:.1f}x ({where})"
    if ratio.goal is None:
        return text
    return f"{text}, {'meets' if ratio.met else '**misses**'} {ratio.goal:g}x"


def _batch(batch: int) -> str:
    return "1 row" if batch == 1 else f"batch {batch:,}"


def _avx2(result: Result) -> list[Ratio]:
    return worst(ratio for ratio in ratios(result, OURS_AVX2) if ratio.goal is not None)


def _costs(result: Result) -> str:
    """What each case costs beside time: Outrider's, next to the best rival's."""
    rows = []
    for case in result.cases:
        entry = _entry(result, case.name, OURS)
        if entry is None or entry.import_mb is None:
            continue
        rival = best_rival(result, case.name, 1)
        theirs = _entry(result, case.name, rival.peer) if rival else None
        rows.append(
            [
                case.name,
                _limit(entry.compile_s, COMPILE_S.get(case.name), lambda value: f"{value:.1f} s"),
                _limit(entry.compile_peak_mb, COMPILE_PEAK_MB.get(case.name), lambda value: f"{value:,.0f} MB"),
                _limit(entry.artifact_bytes, ARTIFACT_BYTES.get(case.name), lambda value: f"{value / 1024:,.0f} KiB"),
                _memory(entry),
                f"{theirs.peer}: {_memory(theirs)}" if theirs else "-",
                entry.detail,
            ]
        )
    head = [
        "model",
        "compile",
        "its peak memory",
        "artifact",
        "RSS over bare Python: import + load",
        "of the best peer at 1 row",
        "chosen",
    ]
    return table(head, rows) if rows else ""


def _limit(value: float | None, limit: float | None, show: Callable[[float], str]) -> str:
    if value is None:
        return "-"
    if limit is None:
        return show(value)
    return f"{show(value)}, {'meets' if value <= limit else '**misses**'} {show(limit)}"


def _memory(entry: Entry) -> str:
    return "-" if entry.import_mb is None else f"{entry.import_mb:.0f} + {entry.load_mb or 0:.0f} MB"


def _case(result: Result, case: CaseInfo) -> str:
    """Every contender of one case: ns a row, lowest and median."""
    title = f"Model {case.name}: {case.description}"
    if case.skipped:
        return section(title, f"Skipped: {case.skipped}")
    batches = sorted({cell.batch for cell in result.cells if cell.case == case.name})
    if not batches:
        return ""
    cells = {(cell.peer, cell.batch): cell for cell in result.cells if cell.case == case.name}
    entries = [entry for entry in result.entries if entry.case == case.name]
    rows = [
        [
            entry.peer,
            *(_times(cells.get((entry.peer, batch))) for batch in batches),
            _result_note(entry),
        ]
        for entry in entries
        if entry.status not in ("absent", "unsupported")
    ]
    text = table(["ns a row: min (median)", *(_batch(batch) for batch in batches), "results"], rows)
    left_out = [f"{e.peer}: {e.detail}" for e in entries if e.status in ("absent", "unsupported")]
    return section(title, text + ("\n\nNot in it: " + "; ".join(left_out) + "." if left_out else ""))


def _times(cell: Cell | None) -> str:
    return "-" if cell is None else f"{_ns(cell.ns_min)} ({_ns(cell.ns_median)})"


def _ns(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _result_note(entry: Entry) -> str:
    if entry.status == "own forest":
        return "a forest of its own training"
    text = "" if entry.error is None else f"within {entry.error:.0e}"
    return f"wrong, so no rival: off by {entry.error:.1g}" if entry.status == "differs" else text


def _entry(result: Result, case: str, peer: str) -> Entry | None:
    return next((entry for entry in result.entries if (entry.case, entry.peer) == (case, peer)), None)
