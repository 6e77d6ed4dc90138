"""`outrider compile MODEL --target T -o x.orb`."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

from outrider.compiler.backends import BACKENDS, REDUCED
from outrider.compiler.options import add_model_options, model_options
from outrider.compiler.report import Report
from outrider.runtime.arguments import Parser, positive
from outrider.runtime.errors import EXIT_INTERRUPTED, EXIT_OK, GoalUnmetError
from outrider.targets.catalog import HOST, boards


def main(argv: Sequence[str]) -> int:
    """Compile a model and print the table of candidates. Errors are raised; their `exit_code` is the command's."""
    arguments = _parser().parse_args(argv)
    options = model_options(arguments)

    from rich.console import Console

    from outrider.compiler.pipeline import compile_model

    console = Console(stderr=True)
    out: Path = arguments.out or Path(f"{Path(arguments.model).stem}.orb")
    try:
        with console.status("starting") as status:
            report = compile_model(
                arguments.model,
                target=arguments.target,
                out=out,
                calibration=options.calibration,
                name=arguments.name,
                version=arguments.version,
                backends=arguments.backend,
                precisions=arguments.precision,
                goals=arguments.goal,
                images=arguments.images,
                evaluate=options.evaluate,
                labels=options.labels,
                shapes=options.shapes,
                threads=arguments.threads,
                budget_s=arguments.budget,
                tune_budget_s=arguments.tune,
                cache=not arguments.no_cache,
                trust_pickle=options.trust_pickle,
                replay_from=arguments.replay,
                settle=True,
                progress=status.update,
            )
    except GoalUnmetError as e:
        if e.table:
            print(e.table)
        raise
    print(report.table())
    print(f"\n{summary(report)}")
    if report.interrupted:
        print(f"interrupted: {report.path} holds the best of what had been tried by then", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_OK


def summary(report: Report) -> str:
    """The bundle that was written, in a line."""
    return f"{report.path}  {report.path.stat().st_size:,} bytes  sha256 {report.sha256}"


def _parser() -> Parser:
    parser = Parser(prog="outrider compile", description="Compile a trained model to a bundle for a target.")
    parser.add_argument("model", metavar="MODEL", help="a model file, or a model directory that 'outrider train' wrote")
    parser.add_argument("--target", default=HOST, help=f"{HOST} (default) or a board: {', '.join(boards())}")
    parser.add_argument("-o", "--out", type=Path, help="the bundle to write (default: MODEL's name with .orb)")
    parser.add_argument("--name", help="the release's name (default: the model's)")
    parser.add_argument("--version", help="the release's version (default: the model directory's, else 1)")
    parser.add_argument(
        "--goal", action="append", default=[], metavar="GOAL", help="such as 'p99<=15ms', 'size<=5MB'; may be repeated"
    )
    parser.add_argument(
        "--backend", action="append", metavar="NAME", help=f"try this only ({', '.join(BACKENDS)}); may be repeated"
    )
    parser.add_argument(
        "--precision",
        action="append",
        metavar="NAME",
        help=f"try this only ({', '.join(('fp32', *REDUCED))}); may be repeated",
    )
    add_model_options(parser)
    parser.add_argument("--images", type=Path, metavar="PLAN", help="how images go in and results come out, a .toml")
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="that a run may use (default: 1)")
    parser.add_argument(
        "--budget",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="after which nothing more is built, once something can be shipped (default: 60)",
    )
    parser.add_argument(
        "--tune",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="for tuning by TVM, beyond the budget (default: 0, by which what was never tuned is left out)",
    )
    parser.add_argument("--no-cache", action="store_true", help="take nothing over from earlier compiles")
    parser.add_argument(
        "--replay", type=Path, metavar="BUNDLE", help="take over the choice and measurements of an earlier bundle"
    )
    return parser


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError as e:
        raise ArgumentTypeError(f"{text!r} is no number of seconds") from e
    if not 0 <= value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is no time from 0 seconds on")
    return value
