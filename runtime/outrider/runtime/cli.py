"""The `outrider` command: a table of subcommands, each resolved only when it is called.

Upper layers are named as strings here, so that the runtime never imports them; where a subcommand's package is
not installed, the error names the extra to install.
"""

from __future__ import annotations

import os
import pkgutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from outrider.runtime.arguments import HelpShown
from outrider.runtime.errors import EXIT_INTERRUPTED, EXIT_OK, Fault, OutriderError, UsageError

Main = Callable[[Sequence[str]], int]


@dataclass(frozen=True)
class Command:
    """A subcommand: `pkg.module:function` taking the remaining arguments and returning an exit code."""

    entry: str
    help: str
    extra: str | None = None


COMMANDS: dict[str, Command] = {
    "train": Command("outrider.trainer.cli:train", "train a model from a recipe", "trainer"),
    "compile": Command("outrider.compiler.cli:main", "compile a model to a bundle", "compiler"),
    "explain": Command("outrider.compiler.explain:main", "why a bundle holds what it holds", "compiler"),
    "bench": Command("outrider.compiler.bench:main", "time a bundle's artifacts on this machine", "compiler"),
    "rebuild": Command("outrider.compiler.rebuild:main", "build a bundle again: the same bytes?", "compiler"),
    "debug": Command("outrider.compiler.debug.cli:main", "where a compiled network leaves its source", "compiler"),
    "targets": Command("outrider.targets.cli:main", "what can be compiled for, and the engines for it"),
    "inspect": Command("outrider.runtime.bundle.cli:inspect", "show and check a bundle"),
    "verify": Command("outrider.runtime.verify:main", "replay a bundle's golden vectors on this machine"),
    "diff": Command("outrider.runtime.bundle.diff:main", "what differs between two bundles"),
    "check": Command("outrider.runtime.check:main", "would a bundle run on a device, by what it printed of itself"),
    "keys": Command("outrider.runtime.trust.cli:keys", "make signing keys"),
    "sign": Command("outrider.runtime.trust.cli:sign", "sign a bundle"),
    "publish": Command(
        "outrider.fleet.cli.publish:main", "sign a bundle and publish it to the fleet's registry", "fleet"
    ),
    "up": Command("outrider.fleet.cli.up:main", "start the fleet: API, MQTT manager and broker", "fleet"),
    "fleet": Command(
        "outrider.fleet.cli.fleet:main", "devices, rollouts, drift, triggers, Jobs, audit, lineage", "fleet"
    ),
    "worker": Command("outrider.trainer.cli:worker", "do the retrain Jobs that triggers open", "trainer"),
    "demo": Command("outrider.trainer.demo:main", "the whole loop on this machine, with three devices", "all"),
    "probe": Command("outrider.runtime.probe:main", "describe this machine as a target"),
    "enrol": Command("outrider.runtime.enrol:main", "enrol this device with a one-time token"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and turn errors into exit codes and one clear line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: run(arguments))


def guarded(act: Callable[[], int]) -> int:
    """The exit code of a whole process: every error becomes its code and one clear line."""
    try:
        code = act()
        sys.stdout.flush()
        return code
    except HelpShown:
        return EXIT_OK
    except OutriderError as e:
        return report_error(e)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `outrider … | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except Exception:
        traceback.print_exc()
        return report_error(Fault("that is a fault of Outrider's own, please report it with the lines above"))


def run(arguments: list[str]) -> int:
    """Dispatch to a subcommand. Raises UsageError for an unknown one."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return EXIT_OK if arguments else UsageError.exit_code
    if arguments[0] in ("-V", "--version"):
        from outrider.runtime import __version__

        print(f"outrider {__version__}")
        return EXIT_OK
    name, rest = arguments[0], arguments[1:]
    command = COMMANDS.get(name)
    if command is None:
        raise UsageError(f"there is no command {name!r}", hint="outrider --help lists them")
    function = resolve(name, command)
    with _naming_the_extra(name, command):
        return function(rest)


def resolve(name: str, command: Command) -> Main:
    """Import a subcommand's function. Raises UsageError naming the extra where a package is missing."""
    with _naming_the_extra(name, command):
        function: Main = pkgutil.resolve_name(command.entry)
        return function


@contextmanager
def _naming_the_extra(name: str, command: Command) -> Iterator[None]:
    """A missing package, also one that is imported only where it is used, becomes an error that names the extra."""
    try:
        yield
    except ModuleNotFoundError as e:
        if command.extra is None or (e.name or "outrider").partition(".")[0] == "outrider":
            raise
        raise UsageError(
            f"'outrider {name}' needs the package {e.name}", hint=f"pip install 'outrider[{command.extra}]'"
        ) from e


def usage() -> str:
    """The table of subcommands as text."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items())
    return f"usage: outrider COMMAND [options]\n\n{rows}\n\n'outrider COMMAND --help' explains one."


def report_error(error: OutriderError) -> int:
    """Print an error and its hint to stderr; return its exit code."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  hint: {error.hint}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
