"""`python -m outrider.targets.emulation [TARGET …]`: fetch what the emulated Pythons need, and try them."""

from __future__ import annotations

import sys

from outrider.runtime.errors import OutriderError
from outrider.targets.catalog import get_target
from outrider.targets.emulation.python import ready

TARGETS = ("aarch64", "armv7")
PACKAGES = ("ncnn",)
_TRIAL = "import platform, ncnn, outrider.runtime.session; print(platform.python_version(), platform.machine())"


def main(names: list[str]) -> int:
    """Make every target's Python ready; returns the exit status."""
    for name in names or TARGETS:
        try:
            python = ready(get_target(name), PACKAGES)
            sys.stdout.write(f"{name}: Python {python.run(['-c', _TRIAL])}")
        except OutriderError as e:
            sys.stderr.write(f"{name}: {e}\n")
            return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
