"""Python of another architecture under QEMU's user mode, with the runtime and any engine in it.

The Python comes from Debian's packages, the runtime's dependencies and the engines from wheels; both are fetched once
and kept in the user's cache. What runs there is right or wrong as on a device; its speed says nothing.
"""

from outrider.targets.emulation.python import EmulatedPython, ready, run_artifact

__all__ = ["EmulatedPython", "ready", "run_artifact"]
