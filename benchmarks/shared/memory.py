"""The memory of this process. Nothing is imported that bare Python has not loaded by itself."""

from __future__ import annotations

import os

_MIB = 1024 * 1024


def resident_mb() -> float:
    """Resident memory of this process now, MiB."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - pathlib would be part of what is measured
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / _MIB
