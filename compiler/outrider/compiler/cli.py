"""`outrider compile MODEL --target T -o x.orb`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from outrider.runtime.arguments import Parser
from outrider.runtime.errors import EXIT_OK
from outrider.targets.catalog import HOST, boards


def main(argv: Sequence[str]) -> int:
    """Compile a model and print the table of candidates. Errors are raised; their `exit_code` is the command's."""
    arguments = _parser().parse_args(argv)

    from rich.console import Console

    from outrider.compiler.pipeline import compile_model

    console = Console(stderr=True)
    out: Path = arguments.out or Path(f"{Path(arguments.model).stem}.orb")
    with console.status("starting") as status:
        report = compile_model(
            arguments.model,
            target=arguments.target,
            out=out,
            calibration=arguments.calibration,
            name=arguments.name,
            version=arguments.version,
            goals=arguments.goal,
            trust_pickle=arguments.trust_pickle,
            replay_from=arguments.replay,
            progress=status.update,
        )
    print(report.table())
    print(f"\n{report.path}  {report.path.stat().st_size:,} bytes  sha256 {report.sha256}")
    return EXIT_OK


def _parser() -> Parser:
    parser = Parser(prog="outrider compile", description="Compile a trained model to a bundle for a target.")
    parser.add_argument("model", metavar="MODEL", help="a model file, or a model directory that 'outrider train' wrote")
    parser.add_argument("--target", default=HOST, help=f"{HOST} (default) or a board: {', '.join(boards())}")
    parser.add_argument("-o", "--out", type=Path, help="the bundle to write (default: MODEL's name with .orb)")
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="real rows, .npz or .parquet")
    parser.add_argument("--name", help="the release's name (default: the model's)")
    parser.add_argument("--version", help="the release's version (default: the model directory's, else 1)")
    parser.add_argument(
        "--goal", action="append", default=[], metavar="GOAL", help="such as 'p99<=15ms', 'size<=5MB'; may be repeated"
    )
    parser.add_argument("--trust-pickle", action="store_true", help="read a pickle, which can run any code")
    parser.add_argument(
        "--replay", type=Path, metavar="BUNDLE", help="take over the choice and measurements of an earlier bundle"
    )
    return parser
