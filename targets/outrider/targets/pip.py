"""What is fetched from a package registry: by `pip download`, so that the user's index, proxy and certificates hold."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from outrider.runtime.errors import UnavailableError

TIMEOUT_S = 600


def download(
    requirement: str, arguments: Sequence[str], folder: Path, *, where: str = "", hint: str | None = None
) -> Path:
    """Put the one archive that `arguments` ask for, a wheel or an sdist, into a folder; nothing it depends on.

    `requirement` and `where` (" for aarch64") are for messages. Raises UnavailableError with what pip says last.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input", "--retries", "1"]
    try:
        done = subprocess.run(
            [*command, "--disable-pip-version-check", "--dest", str(folder), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        raise UnavailableError(f"pip did not fetch {requirement} within {TIMEOUT_S} s", hint=hint) from e
    archives = [*folder.glob("*.whl"), *folder.glob("*.tar.gz")]
    if done.returncode != 0 or not archives:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise UnavailableError(f"pip cannot fetch {requirement}{where}: {lines[-1]}", hint=hint)
    return archives[0]
