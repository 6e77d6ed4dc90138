"""`outrider targets`: what can be compiled for, and the engines that run artifacts there."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from outrider.runtime.arguments import Parser
from outrider.runtime.engines import ENGINES
from outrider.runtime.errors import EXIT_OK
from outrider.runtime.output import as_json
from outrider.runtime.target import Target
from outrider.targets.catalog import HOST, boards, get_target


class EngineOffer(msgspec.Struct, frozen=True, kw_only=True):
    """An engine for a target: the artifact format that it runs, and the package to install, None where there is none
    to install."""

    format: str
    package: str | None


class TargetInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What `outrider targets --json` prints of each target, under the name that `--target` takes."""

    name: str
    description: str
    target: Target
    engines: tuple[EngineOffer, ...]


def describe_targets() -> tuple[TargetInfo, ...]:
    """This machine, then the boards by name."""
    known = [(HOST, "this machine", get_target(HOST))]
    known += [(board.name, board.description, board.target()) for board in boards().values()]
    return tuple(
        TargetInfo(name=name, description=description, target=target, engines=_engines(target))
        for name, description, target in known
    )


def main(argv: Sequence[str]) -> int:
    """`outrider targets`: the names that `--target` takes, as text or JSON."""
    parser = Parser(prog="outrider targets", description="What can be compiled for, and the engines for it.")
    parser.add_argument("--json", action="store_true", help="print them as JSON")
    arguments = parser.parse_args(argv)
    found = describe_targets()
    if arguments.json:
        print(as_json(found))
    else:
        print("\n\n".join(map(_text, found)))
    return EXIT_OK


def _engines(target: Target) -> tuple[EngineOffer, ...]:
    return tuple(
        EngineOffer(format=kind, package=engine.package)
        for kind, engine in ENGINES.items()
        if target.arch in engine.archs
    )


def _text(info: TargetInfo) -> str:
    target = info.target
    engines = (f"{one.format} (pip install {one.package})" if one.package else one.format for one in info.engines)
    return "\n".join(
        (
            f"{info.name}: {info.description}",
            f"  {target.triple}, {target.libc or 'no C library'}",
            f"  features: {' '.join(target.features) or 'none'}",
            f"  engines: {', '.join(engines) or 'none'}",
        )
    )
