"""`python -m benchmarks.trees`: run, print the report, and write it as Markdown and PNG."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from benchmarks.shared.command import Benchmark, add_files
from benchmarks.trees.models import EXTRAS, POOL, SHAPES, specs
from benchmarks.trees.peers import PEERS
from benchmarks.trees.plot import plot
from benchmarks.trees.records import Result
from benchmarks.trees.report import markdown
from benchmarks.trees.run import Plan, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 130 where it was stopped, after what it had was written."""
    args = _parser().parse_args(arguments)
    plan = _plan(args)
    benchmark = Benchmark(
        name="trees",
        result=Result,
        steps=plan.races,
        run=partial(run, plan),
        markdown=markdown,
        plot=plot,
        settings=(plan.quick, list(plan.peers)),
        settings_of=lambda result: (result.quick, [one.name for one in result.peers]),
    )
    return benchmark.carry_out(args)


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trees", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="models a and d up to batch 1024, in about 50 s")
    add_files(parser)
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
