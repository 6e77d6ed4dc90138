"""`outrider explain`: why a bundle holds what it holds, from its own records; and the candidates as a plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from outrider.compiler.pareto import read_points
from outrider.compiler.report import Report, met_text
from outrider.runtime.arguments import Parser
from outrider.runtime.bundle import CandidateRecord, Manifest, open_bundle
from outrider.runtime.errors import EXIT_OK, UsageError


def main(argv: Sequence[str]) -> int:
    """`outrider explain x.orb`: the candidates, the goals, parity, and why the chosen one was; a plot if asked for."""
    parser = Parser(prog="outrider explain", description="Why a bundle holds what it holds.")
    parser.add_argument("bundle", type=Path, help="the .orb file")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw the candidates and the Pareto front: .html is one page without links, .png needs matplotlib",
    )
    parser.add_argument(
        "--against", choices=("error", "size"), help="what is drawn against time (default: error, where there is any)"
    )
    arguments = parser.parse_args(argv)
    plot: Path | None = arguments.plot
    if plot is not None and plot.suffix not in (".png", ".html"):
        raise UsageError(f"{plot} is neither .png nor .html", hint="give a file name with one of these endings")
    if plot is None and arguments.against:
        raise UsageError("--against is about a plot", hint="give --plot FILE, too")
    bundle = open_bundle(arguments.bundle)
    print(explain(Report(path=bundle.path, sha256=bundle.sha256, manifest=bundle.manifest)))
    if plot is not None:
        from outrider.compiler.plot import draw

        draw(read_points(bundle.manifest, arguments.against), plot)
        print(f"\nplot: {plot}")
    return EXIT_OK


def explain(report: Report) -> str:
    """A compile told from its records, as text."""
    return "\n".join((report.table(), "", *_why(report.manifest)))


def _why(manifest: Manifest) -> Iterator[str]:
    ranked = manifest.ranked_candidates()
    for record in ranked:
        yield f"#{record.rank} {record.id}: {record.reason}"
        yield from (f"   {line}" for line in _figures(record))
    missed = [goal for goal in manifest.goals if goal.met is False]
    for goal in manifest.goals:
        bound = f"{goal.relation} {goal.bound:.4g} {goal.unit}".rstrip()
        yield f"goal {goal.text}: {met_text(goal)} (asked: {bound})"
    if missed:
        yield "this bundle does not meet its goals: it is of the candidate that came closest"
    tools = ", ".join(f"{name} {version}" for name, version in manifest.tools.items())
    if tools:
        yield f"made with {tools}"


def _figures(record: CandidateRecord) -> Iterator[str]:
    for found in record.measured:
        yield (
            f"{found.ns_per_row_median:,.0f} ns a row in batches of {found.batch} (least {found.ns_per_row_min:,.0f}), "
            f"{found.repeats} times, {found.threads} thread{'s' * (found.threads > 1)}"
        )
    parity = record.parity
    if parity is not None:
        l2 = "" if parity.l2_error is None else f", {parity.l2_error:.2e} in relative L2"
        yield f"largest error on {parity.rows} rows: {parity.max_abs_error:.2e}{l2}"
