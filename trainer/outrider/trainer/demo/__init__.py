"""`outrider demo`: the whole loop on this machine, with three devices. `loop.py` is the page to read first."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from outrider.runtime.errors import EXIT_OK, UsageError


def main(argv: Sequence[str]) -> int:
    """Run the demo; 0 only where everything that its summary shows was checked and holds."""
    parser = argparse.ArgumentParser(prog="outrider demo", description=__doc__, exit_on_error=False)
    parser.add_argument("--keep", action="store_true", help="leave everything running at the end, until Ctrl-C")
    parser.add_argument("--offline", action="store_true", help="use the data that come with scikit-learn")
    parser.add_argument("--broker", choices=("auto", "mosquitto", "iotcore"), default="auto")
    parser.add_argument("--dir", type=Path, help="work in this folder and leave it there (default: a temporary one)")
    try:
        options = parser.parse_args(list(argv))
    except argparse.ArgumentError as e:
        raise UsageError(str(e), hint="outrider demo --help") from e
    except SystemExit as e:  # argparse has printed --help, or the error
        return EXIT_OK if not e.code else UsageError.exit_code

    from outrider.trainer.demo.loop import run
    from outrider.trainer.demo.stage import Options

    return run(Options(keep=options.keep, offline=options.offline, broker=options.broker, folder=options.dir))
