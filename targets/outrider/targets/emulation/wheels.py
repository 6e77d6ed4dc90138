"""Packages for Python of another architecture, in folders of their own for PYTHONPATH: wheels, unpacked.

What has no wheel for an architecture, and is one C file with headers, is cross-compiled.
"""

from __future__ import annotations

import importlib.metadata
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from outrider.runtime.caches import cache_folder
from outrider.runtime.errors import ToolchainError, UnavailableError
from outrider.runtime.target import Arch
from outrider.targets.catalog import get_target
from outrider.targets.emulation.debian import publish
from outrider.targets.pip import download
from outrider.targets.toolchain import build_program

_MACHINES: dict[Arch, str] = {"aarch64": "aarch64", "armv7": "armv7l"}
_SOURCES: dict[Arch, dict[str, str]] = {"armv7": {"msgspec": "src/msgspec/_core.c"}}
_GLIBC = range(17, 37)  # minor versions that a wheel may ask for: Debian 12 has 2.36


def wheel_folder(package: str, arch: Arch, python: Path) -> Path:
    """The folder of a package, in the version that is installed here, else in the newest; fetched once.

    `python` is the program in its root folder: `…/usr/bin/python3.11`. Raises UnavailableError where there is no wheel
    for the architecture or no registry answers, ToolchainError where a package cannot be cross-compiled.
    """
    if arch not in _MACHINES:
        raise ToolchainError(f"there are no wheels for {arch}")
    requirement = _pinned(package)
    version = python.name.removeprefix("python").replace(".", "")
    folder = cache_folder() / "emulation" / f"{arch}-cp{version}" / requirement.replace("==", "-")
    if not folder.is_dir():
        source = _SOURCES.get(arch, {}).get(package)
        if source is None:
            wanted = _wheels(arch, version)
            publish(folder, lambda made: _unpack(_download(requirement, arch, wanted, made), made / "it"), "it")
        else:
            publish(folder, lambda made: _build(requirement, arch, source, python, made), "it")
    return folder


def _pinned(package: str) -> str:
    try:
        return f"{package}=={importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package


def _wheels(arch: Arch, version: str) -> list[str]:
    """What makes pip choose wheels for another machine."""
    options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", version]
    for abi in (f"cp{version}", "abi3", "none"):
        options += ["--abi", abi]
    for minor in reversed(_GLIBC):
        options += ["--platform", f"manylinux_2_{minor}_{_MACHINES[arch]}"]
    return [*options, "--platform", f"manylinux2014_{_MACHINES[arch]}"]


def _download(requirement: str, arch: Arch, wanted: Sequence[str], folder: Path) -> Path:
    return download(requirement, [*wanted, requirement], folder, where=f" for {arch}")


def _build(requirement: str, arch: Arch, source: str, python: Path, folder: Path) -> None:
    """Cross-compile a package whose one extension is the C file `source`, with the headers beside it."""
    archive = _download(requirement, arch, ["--no-binary=:all:"], folder)
    try:
        with tarfile.open(archive) as file:
            file.extractall(folder / "source", filter="data")
        main = next(folder.glob(f"source/*/{source}"))
    except (tarfile.TarError, StopIteration) as e:
        raise UnavailableError(f"{archive.name} as downloaded holds no {source}") from e
    package = folder / "it" / main.parent.name
    package.parent.mkdir()
    main.parent.rename(package)
    headers = python.parents[1] / "include"
    build_program(
        {path.name: path.read_bytes() for path in package.iterdir() if path.suffix == ".h" or path.name == main.name},
        package / f"{main.stem}.so",
        get_target(arch),
        ("-shared", "-fPIC", f"-I{headers / python.name}", f"-idirafter{headers}"),
    )


def _unpack(wheel: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                archive.extract(member, folder)
    except zipfile.BadZipFile as e:
        raise UnavailableError(f"{wheel.name} as downloaded is damaged: {e}") from e
