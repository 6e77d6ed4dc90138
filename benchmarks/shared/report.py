"""What every report has in Markdown: sections, tables, the machine, and who took part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.shared.records import Machine, PeerInfo


def join(parts: Iterable[str]) -> str:
    """A whole report of these parts, without those that are empty."""
    return "\n\n".join(part for part in parts if part) + "\n"


def section(title: str, text: str) -> str:
    """A heading with a text; nothing without one."""
    return f"## {title}\n\n{text}" if text else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned for the terminal: the first to the left, all others to the right."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    texts = [
        " | ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    rule = " | ".join("-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths))
    return "\n".join(f"| {text} |" for text in (texts[0], rule, *texts[1:]))


def machine_line(machine: Machine) -> str:
    """The machine in one line."""
    return (
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_gb:.0f} GB, {' '.join(machine.features)}; "
        f"{machine.system}; Python {machine.python}; load {machine.load[0]} before and {machine.load[1]} after."
    )


def contenders(peers: Iterable[PeerInfo]) -> str:
    """The table of who took part, or could have."""
    return table(
        ["name", "version", "called by"],
        [[peer.name, peer.version or "not installed", f"`{peer.call}`"] for peer in peers],
    )
