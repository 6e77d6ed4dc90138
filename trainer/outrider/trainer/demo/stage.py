"""What the demo's steps share: options, the folder they work in, what runs, and what was observed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from outrider.trainer.demo.processes import Children
from outrider.trainer.demo.summary import Facts


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says. `folder` None: a temporary one, removed at the end."""

    keep: bool = False
    offline: bool = False
    broker: str = "auto"
    folder: Path | None = None


@dataclass
class Stage:
    """What the steps share: where they work, what runs, and what was observed."""

    options: Options
    folder: Path
    console: Console
    children: Children
    facts: Facts = field(default_factory=Facts)

    @contextmanager
    def step(self, title: str) -> Iterator[Callable[[str, str], None]]:
        """Run one step under a spinner; note its time."""
        started = time.monotonic()
        spinner = self.console.status(title) if self.console.is_terminal else None
        with spinner or nullcontext():
            yield lambda stage, detail: spinner.update(f"{title}: {stage} {detail}") if spinner else None
        self.facts.seconds[title] = time.monotonic() - started
        self.console.print(f"[green]✓[/green] {title} [dim]({self.facts.seconds[title]:.1f} s)[/dim]")

    def say(self, text: str) -> None:
        """Print one indented line."""
        self.console.print(f"  {text}", soft_wrap=True)
