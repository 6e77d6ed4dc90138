"""`python -m benchmarks.networks`: run, print the report, and write it as Markdown and PNG."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from benchmarks.networks.nets import NETS, QUICK
from benchmarks.networks.peers import PEERS, SLOW
from benchmarks.networks.plot import plot
from benchmarks.networks.records import Result
from benchmarks.networks.report import markdown
from benchmarks.networks.run import Plan, run
from benchmarks.shared.command import Benchmark, add_files


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 130 where it was stopped, after what it had was written."""
    args = _parser().parse_args(arguments)
    plan = _plan(args)
    benchmark = Benchmark(
        name="networks",
        result=Result,
        steps=len(plan.nets),
        run=partial(run, plan),
        markdown=markdown,
        plot=plot,
        settings=(plan.quick, plan.tune_s, list(plan.peers)),
        settings_of=lambda result: (result.quick, result.tune_s, [one.name for one in result.peers]),
    )
    return benchmark.carry_out(args)


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{' and '.join(QUICK)}, without the slow peers")
    add_files(parser)
    parser.add_argument("--nets", nargs="+", choices=list(NETS), metavar="NET", help=f"only these of {', '.join(NETS)}")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), metavar="PEER", help="only these contenders")
    parser.add_argument("--limit", type=float, metavar="S", help="CPU time of one net's race at most (default: 90)")
    parser.add_argument("--tune", type=float, default=0.0, metavar="S", help="what Outrider may tune TVM for, a net")
    return parser


if __name__ == "__main__":
    sys.exit(main())
