"""The machine in words: what decides speed, and nothing that names it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from benchmarks.shared.records import Machine

_SHOWN = ("avx2", "avx512f", "avx512bw", "avx512vbmi", "avx512_vbmi2", "avx512_vnni", "gfni", "asimd", "sve")


def describe(cpuinfo: str, *, memory_bytes: int, cores: int) -> Machine:
    """A machine from the text of /proc/cpuinfo."""
    fields = dict(re.findall(r"^([\w ]+?)\s*:\s*(.*)$", cpuinfo, re.MULTILINE))
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    family = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else ""
    return Machine(
        cpu=fields.get("model name", platform.machine()) + family,
        cores=cores,
        memory_gb=round(memory_bytes / 2**30, 1),
        features=tuple(flag for flag in _SHOWN if flag in flags),
        system=f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}".rstrip(", "),
        python=platform.python_version(),
    )


def this_machine() -> Machine:
    """The machine that this runs on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    path = Path("/proc/cpuinfo")
    text = path.read_text("utf-8", "replace") if path.is_file() else ""
    return describe(text, memory_bytes=memory, cores=len(os.sched_getaffinity(0)))


def file_name(machine: Machine, date: str) -> str:
    """`2026-01-31-amd-epyc`: where results of this machine are kept."""
    name = machine.cpu.partition(" (")[0].partition("@")[0].lower()
    return f"{date}-{re.sub(r'[^a-z0-9]+', '-', name).strip('-')}"
