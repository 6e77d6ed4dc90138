"""Fixtures of the system tests: the installed command, and a check that nothing is left behind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest


@pytest.fixture
def outrider() -> list[str]:
    """The `outrider` command, by this interpreter."""
    return [sys.executable, "-m", "outrider.runtime.cli"]


@pytest.fixture
def processes_naming() -> Callable[[Path], list[str]]:
    """Command lines of all processes that name a folder, or work in it."""

    def find(folder: Path) -> list[str]:
        found = []
        for process in psutil.process_iter():
            try:
                line, place = process.cmdline(), process.cwd()
            except psutil.Error:
                continue
            if any(str(folder) in part for part in line) or place.startswith(str(folder)):
                found.append(" ".join(line))
        return found

    return find
