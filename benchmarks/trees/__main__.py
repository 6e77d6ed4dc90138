"""`python -m benchmarks.trees`: run, print the report, and write it as Markdown and PNG."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from benchmarks.trees.machine import file_name, this_machine
from benchmarks.trees.models import EXTRAS, POOL, SHAPES, specs
from benchmarks.trees.peers import PEERS
from benchmarks.trees.plot import plot
from benchmarks.trees.records import Result
from benchmarks.trees.report import markdown
from benchmarks.trees.run import Plan, run
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from outrider.runtime.durable import write_file
from outrider.runtime.errors import EXIT_INTERRUPTED, EXIT_OK

RESULTS = Path(__file__).parent.parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 130 where it was stopped, after what it had was written."""
    args = _parser().parse_args(arguments)
    result = _show_progress(_plan(args), args.json)
    _save(result, args.json)
    print(markdown(result))
    if result.cells and (args.out or not (result.quick or result.interrupted)):
        _write(result, args.out or RESULTS)
    return EXIT_INTERRUPTED if result.interrupted else EXIT_OK


def _plan(args: argparse.Namespace) -> Plan:
    quick = args.quick
    names = args.models or (["a", "d"] if quick else [*SHAPES, *EXTRAS])
    batches = args.batches or ([1, 64, 1024] if quick else [1, 64, 1024, 65_536])
    return Plan(
        specs=specs(names, 0 if quick else args.random),
        peers=args.peers or [name for name in PEERS if not quick or name != "outrider-avx2"],
        batches=batches,
        limit_s=args.limit or (1.5 if quick else 12.0),
        patience_s=10.0 if quick else 150.0,
        memory=not quick,
        quick=quick,
    )


def _save(result: Result, file: Path | None) -> None:
    if file is not None:
        write_file(file, msgspec.json.format(msgspec.json.encode(result)) + b"\n")


def _stopped(file: Path | None, plan: Plan) -> Result | None:
    """The run that a file holds, if it was stopped, and was one of this machine and for the same contenders."""
    if file is None or not file.exists():
        return None
    result = msgspec.json.decode(file.read_bytes(), type=Result)
    if not result.interrupted:
        return None
    here = msgspec.structs.replace(this_machine(), load=result.machine.load)
    if (result.machine, result.quick, [one.name for one in result.peers]) != (here, plan.quick, list(plan.peers)):
        raise SystemExit(f"{file} is a run of another machine or of other contenders: remove it, or name another file")
    return result


def _show_progress(plan: Plan, file: Path | None) -> Result:
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # The display must not take CPU time from the races: it is redrawn at each stage, not by a thread of its own.
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("starting", total=plan.races)

        def tell(what: str, races: int) -> None:
            progress.update(task, description=what, completed=races)
            progress.refresh()

        return run(plan, tell, lambda result: _save(result, file), _stopped(file, plan))


def _write(result: Result, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{file_name(result.machine, result.date)}-trees"
    image = plot(result)
    text = markdown(result, image=f"{stem}.png" if image else None)
    write_file(folder / f"{stem}.md", text.encode())
    if image:
        write_file(folder / f"{stem}.png", image)
    print(f"\n{folder / stem}.md", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trees", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="models a and d up to batch 1024, in about 50 s")
    whole = "write all figures as JSON, too; a run that was stopped goes on from there"
    parser.add_argument("--json", type=Path, metavar="FILE", help=whole)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=f"where the report goes (default: {RESULTS.name}/)")
    parser.add_argument(
        "--models", nargs="+", type=_model, metavar="MODEL", help="only these models, as a, census or b7"
    )
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), metavar="PEER", help="only these contenders")
    parser.add_argument("--batches", nargs="+", type=_batch, metavar="ROWS", help="only these batch sizes")
    parser.add_argument("--random", type=int, default=10, metavar="N", help="random models a shape (default: 10)")
    parser.add_argument("--limit", type=float, metavar="S", help="CPU time of one race at most (default: 12)")
    return parser


def _model(text: str) -> str:
    """The name of a case."""
    try:
        specs([text], 0)
    except KeyError:
        known = ", ".join([*SHAPES, *EXTRAS])
        raise argparse.ArgumentTypeError(f"there is {known}, and b7 for the seventh random model of b") from None
    return text


def _batch(text: str) -> int:
    """A batch size that the rows suffice for."""
    value = int(text)
    if not 1 <= value <= POOL:
        raise argparse.ArgumentTypeError(f"a batch has 1 to {POOL:,} rows")
    return value


if __name__ == "__main__":
    sys.exit(main())
