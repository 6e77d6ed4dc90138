"""`python -m benchmarks.networks`: run, print the report, and write it as Markdown and PNG."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from benchmarks.networks.nets import NETS, QUICK
from benchmarks.networks.peers import PEERS, SLOW
from benchmarks.networks.plot import plot
from benchmarks.networks.records import Result
from benchmarks.networks.report import markdown
from benchmarks.networks.run import Plan, run
from benchmarks.trees.machine import file_name, this_machine
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
    return Plan(
        nets=args.nets or (QUICK if quick else list(NETS)),
        peers=args.peers or [name for name in PEERS if not quick or name not in SLOW],
        limit_s=args.limit or (5.0 if quick else 90.0),
        patience_s=120.0 if quick else 900.0,
        tune_s=args.tune,
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
    held = (result.machine, result.quick, result.tune_s, [one.name for one in result.peers])
    if held != (here, plan.quick, plan.tune_s, list(plan.peers)):
        raise SystemExit(f"{file} is a run of another machine or of other contenders: remove it, or name another file")
    return result


def _show_progress(plan: Plan, file: Path | None) -> Result:
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # The display must not take CPU time from the races: it is redrawn at each stage, not by a thread of its own.
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("starting", total=len(plan.nets))

        def tell(what: str, over: int) -> None:
            progress.update(task, description=what, completed=over)
            progress.refresh()

        return run(plan, tell, lambda result: _save(result, file), _stopped(file, plan))


def _write(result: Result, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{file_name(result.machine, result.date)}-networks"
    image = plot(result)
    text = markdown(result, image=f"{stem}.png" if image else None)
    write_file(folder / f"{stem}.md", text.encode())
    if image:
        write_file(folder / f"{stem}.png", image)
    print(f"\n{folder / stem}.md", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{' and '.join(QUICK)}, without the slow peers")
    whole = "write all figures as JSON, too; a run that was stopped goes on from there"
    parser.add_argument("--json", type=Path, metavar="FILE", help=whole)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=f"where the report goes (default: {RESULTS.name}/)")
    parser.add_argument("--nets", nargs="+", choices=list(NETS), metavar="NET", help=f"only these of {', '.join(NETS)}")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), metavar="PEER", help="only these contenders")
    parser.add_argument("--limit", type=float, metavar="S", help="CPU time of one net's race at most (default: 90)")
    parser.add_argument("--tune", type=float, default=0.0, metavar="S", help="what Outrider may tune TVM for, a net")
    return parser


if __name__ == "__main__":
    sys.exit(main())
