"""A root folder with Debian's Python of another architecture, from packages that apt resolves, fetches and checks.

The packages are unpacked and nothing of them is run or installed, so this needs no root and changes no system.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from outrider.runtime.caches import cache_folder
from outrider.runtime.errors import ToolchainError, UnavailableError
from outrider.runtime.target import Arch

ARCHITECTURES: dict[Arch, str] = {"aarch64": "arm64", "armv7": "armhf"}
# What wheels lean on beside Python itself: C++, OpenMP.
PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6", "libgomp1")
# Where the registry has no wheels, Debian has some of them, older; and headers to build the others with.
PYTHON_PACKAGES: dict[Arch, dict[str, str]] = {
    "armv7": {
        "cffi": "python3-cffi",
        "numpy": "python3-numpy",
        "psutil": "python3-psutil",
        "pycparser": "python3-pycparser",
    }
}
_HEADERS: dict[Arch, tuple[str, ...]] = {"armv7": ("libpython3-dev",)}
TIMEOUT_S = 900
_MESSAGE_LIMIT = 2000  # characters of a program's output that an error quotes


def python_root(arch: Arch) -> Path:
    """The folder to give to QEMU as `-L`; made at the first call, from the mirrors that apt is set up for.

    Raises ToolchainError where apt or dpkg-deb is missing or the architecture is not known, UnavailableError where no
    mirror answers or the cache cannot be written.
    """
    debian = ARCHITECTURES.get(arch)
    if debian is None:
        raise ToolchainError(f"there is no emulated Python for {arch}", hint=f"one of {', '.join(ARCHITECTURES)}")
    packages = (*PACKAGES, *PYTHON_PACKAGES.get(arch, {}).values(), *_HEADERS.get(arch, ()))
    key = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:12]
    root = cache_folder() / "emulation" / f"{debian}-{key}"
    if not root.is_dir():
        publish(root, lambda folder: _unpack(_fetch(debian, packages, folder / "apt"), folder / "root"), "root")
    return root


def python_program(root: Path) -> Path:
    """The Python in a root folder, by the name that says its version: `…/usr/bin/python3.11`."""
    return (root / "usr/bin/python3").resolve(strict=True)


def publish(path: Path, make: Callable[[Path], None], member: str) -> None:
    """Let `make` fill a folder, and put its member under `path` in one step; another process may be first."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as folder:
            make(Path(folder))
            try:
                Path(folder, member).rename(path)
            except OSError:
                if not path.is_dir():
                    raise
    except OSError as e:
        raise UnavailableError(f"the cache {path.parent} cannot be written: {e}", hint="set OUTRIDER_CACHE") from e


def _fetch(debian: str, packages: Sequence[str], state: Path) -> list[Path]:
    """The packages with all that they depend on, by an apt whose state knows this architecture alone."""
    for name in ("lists/partial", "cache/archives/partial"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    options = [
        f"APT::Architecture={debian}",
        f"APT::Architectures={debian}",
        "APT::Sandbox::User=root",
        "Debug::NoLocking=1",
        f"Dir::State={state}",
        f"Dir::State::Lists={state}/lists",
        f"Dir::State::status={state}/status",
        f"Dir::Cache={state}/cache",
    ]
    apt = ["apt-get", "-qq", *(part for option in options for part in ("-o", option))]
    # Of many indexes one may fail; whether the one that matters came, the download tells.
    _run([*apt, "update"], check=False)
    _run([*apt, "-y", "--no-install-recommends", "--download-only", "install", *packages])
    return sorted((state / "cache/archives").glob("*.deb"))


def _unpack(packages: Sequence[Path], root: Path) -> None:
    root.mkdir()
    for package in packages:
        _run(["dpkg-deb", "-x", str(package), str(root)])
    for library in root.glob("usr/lib/*/*/lib*.so.3"):  # BLAS and LAPACK, which an installation would link here
        if library.parent.name in ("blas", "lapack"):
            library.parent.with_name(library.name).symlink_to(f"{library.parent.name}/{library.name}")


def _run(command: Sequence[str], *, check: bool = True) -> None:
    if shutil.which(command[0]) is None:
        raise ToolchainError(f"{command[0]} is not installed", hint="the emulated Python is made of Debian's packages")
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired as e:
        raise UnavailableError(f"{command[0]} did not finish within {TIMEOUT_S} s") from e
    if check and done.returncode != 0:
        message = (done.stderr.strip() or done.stdout.strip())[-_MESSAGE_LIMIT:]
        raise UnavailableError(f"{command[0]} failed with status {done.returncode}: {message}")
