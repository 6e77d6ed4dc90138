"""A benchmark as a command: it shows how far it is, keeps what it has, goes on after a stop, and writes its report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import msgspec
from benchmarks.shared.begin import Tell
from benchmarks.shared.machine import file_name, this_machine
from benchmarks.shared.records import Run
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from outrider.runtime.durable import write_file
from outrider.runtime.errors import EXIT_INTERRUPTED, EXIT_OK

RESULTS = Path(__file__).parent.parent / "results"

T_contra = TypeVar("T_contra", contravariant=True)
R = TypeVar("R", bound=Run)


class Report(Protocol[T_contra]):
    """A result as Markdown, with a picture of this name."""

    def __call__(self, result: T_contra, /, *, image: str | None = None) -> str:
        """The text."""


@dataclass(frozen=True, kw_only=True)
class Benchmark(Generic[R]):
    """What one benchmark does with a plan that it has.

    `run` gets whom to tell, where to save what there is so far, and the run to go on from. `steps`: how many steps a
    whole run has. `settings`: what a stopped run must have been asked for, too; `settings_of`: what one was.
    """

    name: str
    result: type[R]
    steps: int
    run: Callable[[Tell, Callable[[R], None], R | None], R]
    markdown: Report[R]
    plot: Callable[[R], bytes | None]
    settings: tuple[object, ...]
    settings_of: Callable[[R], tuple[object, ...]]

    def carry_out(self, args: argparse.Namespace) -> int:
        """Run, print the report, and write it; the exit code is 130 where it was stopped, after all was written."""
        result = self._show_progress(args.json)
        _save(result, args.json)
        print(self.markdown(result))
        if result.cells and (args.out or not (result.quick or result.interrupted)):
            self._write(result, args.out or RESULTS)
        return EXIT_INTERRUPTED if result.interrupted else EXIT_OK

    def _show_progress(self, file: Path | None) -> R:
        console = Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        # The display must not take CPU time from the races: it is redrawn at each stage, not by a thread of its own.
        with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
            task = progress.add_task("starting", total=self.steps)

            def tell(what: str, over: int) -> None:
                progress.update(task, description=what, completed=over)
                progress.refresh()

            return self.run(tell, lambda result: _save(result, file), self._stopped(file))

    def _stopped(self, file: Path | None) -> R | None:
        """The run that a file holds, if it was stopped, and was one of this machine and for the same contenders."""
        if file is None or not file.exists():
            return None
        result = msgspec.json.decode(file.read_bytes(), type=self.result)
        if not result.interrupted:
            return None
        here = msgspec.structs.replace(this_machine(), load=result.machine.load)
        if (result.machine, self.settings_of(result)) != (here, self.settings):
            raise SystemExit(
                f"{file} is a run of another machine or of other contenders: remove it, or name another file"
            )
        return result

    def _write(self, result: R, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{file_name(result.machine, result.date)}-{self.name}"
        image = self.plot(result)
        text = self.markdown(result, image=f"{stem}.png" if image else None)
        write_file(folder / f"{stem}.md", text.encode())
        if image:
            write_file(folder / f"{stem}.png", image)
        print(f"\n{folder / stem}.md", file=sys.stderr)


def add_files(parser: argparse.ArgumentParser) -> None:
    """The options that say where figures go."""
    whole = "write all figures as JSON, too; a run that was stopped goes on from there"
    parser.add_argument("--json", type=Path, metavar="FILE", help=whole)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=f"where the report goes (default: {RESULTS.name}/)")


def _save(result: Run, file: Path | None) -> None:
    if file is not None:
        write_file(file, msgspec.json.format(msgspec.json.encode(result)) + b"\n")
