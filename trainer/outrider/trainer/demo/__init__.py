"""`outrider demo`: the whole loop on this machine, with three devices. `loop.py` is the page to read first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from outrider.runtime.arguments import Parser


def main(argv: Sequence[str]) -> int:
    """Run the demo; 0 only where everything that its summary shows was checked and holds."""
    parser = Parser(prog="outrider demo", description="The whole loop on this machine, with three devices.")
    parser.add_argument("--keep", action="store_true", help="leave everything running at the end, until Ctrl-C")
    parser.add_argument("--offline", action="store_true", help="use the data that come with scikit-learn")
    parser.add_argument(
        "--broker", choices=("auto", "mosquitto", "iotcore"), default="auto", help="which broker to start"
    )
    parser.add_argument("--dir", type=Path, help="work in this folder and leave it there (default: a temporary one)")
    options = parser.parse_args(argv)

    from outrider.trainer.demo.loop import run
    from outrider.trainer.demo.stage import Options

    return run(Options(keep=options.keep, offline=options.offline, broker=options.broker, folder=options.dir))
