"""`outrider rebuild`: build a bundle again from its model, by its own records; are the bytes the same?"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from outrider.compiler.options import ModelOptions, add_model_options, model_options
from outrider.runtime.arguments import Parser
from outrider.runtime.bundle import Bundle, open_bundle
from outrider.runtime.bundle.checks import manifest_files
from outrider.runtime.bundle.diff import BundleDiff, describe, diff_bundles
from outrider.runtime.errors import EXIT_OK, BadInputError, GoalUnmetError, UsageError


def rebuild(bundle: Bundle, model: Path, options: ModelOptions, out: Path) -> Bundle:
    """Build the bundle again at `out`, which ends in `.orb`.

    Choice and measurements are taken over, and so is what no compile needs to make: name, version, goals, baseline,
    provenance, feature and image plan. Artifacts and golden vectors are made anew, with nothing from the cache. Raises
    as `compile_model` does, and BadInputError where the model or the target is another.
    """
    from outrider.compiler.pipeline import compile_model

    manifest = bundle.manifest
    try:
        report = compile_model(
            model,
            target=manifest.target,
            out=out,
            calibration=options.calibration,
            name=manifest.name,
            version=manifest.version,
            baseline=None if manifest.baseline is None else bundle.read(manifest.baseline),
            backends=sorted({record.backend for record in manifest.candidates if record.rank is not None}),
            goals=[goal.text for goal in manifest.goals],
            evaluate=options.evaluate,
            labels=options.labels,
            shapes=options.shapes,
            threads=max((one.threads for record in manifest.candidates for one in record.measured), default=1),
            features=manifest.features,
            images=manifest.images,
            postprocess=manifest.postprocess,
            trust_pickle=options.trust_pickle,
            run_id=manifest.run_id,
            provenance=None if manifest.provenance is None else bundle.read(manifest.provenance),
            replay_from=bundle.path,
            cache=False,
        )
    except GoalUnmetError as e:
        if e.kept is None or not any(goal.met is False for goal in manifest.goals):
            raise
        return open_bundle(e.kept)
    return open_bundle(report.path)


def main(argv: Sequence[str]) -> int:
    """`outrider rebuild x.orb MODEL --check`: exit code 0 for the same bytes, 1 where a file differs."""
    arguments = _parser().parse_args(argv)
    if not arguments.check and arguments.out is None:
        raise UsageError("there is nothing to do", hint="give --check, or -o FILE, or both")
    options = model_options(arguments)
    bundle = open_bundle(arguments.bundle)
    with tempfile.TemporaryDirectory(prefix="outrider-rebuild-") as folder:
        out: Path = arguments.out or Path(folder, arguments.bundle.name).with_suffix(".orb")
        again = rebuild(bundle, arguments.model, options, out)
        if arguments.check:
            found = diff_bundles(bundle, again)
            if not found.same:
                print(describe(found))
                raise BadInputError(
                    f"{bundle.path} is rebuilt to other bytes, which differ in {_differing(bundle, again, found)}",
                    hint="give the same calibration, sizes and labels, and use the versions of tools that it names",
                )
            print(f"{bundle.path} is rebuilt byte for byte: sha256 {again.sha256}")
        if arguments.out is not None:
            print(f"{again.path}  {again.size:,} bytes  sha256 {again.sha256}")
    return EXIT_OK


def _differing(first: Bundle, second: Bundle, found: BundleDiff) -> str:
    """The files that differ; the manifest where that is all."""
    sides = [_digests(bundle) for bundle in (first, second)]
    paths = [path for path in dict.fromkeys((*sides[0], *sides[1])) if sides[0].get(path) != sides[1].get(path)]
    if paths:
        return ", ".join(paths)
    parts = dict.fromkeys(f"{one.part} {one.what}" for one in found.differences)
    return f"manifest.json ({', '.join(parts) or 'in what diff does not show'})"


def _digests(bundle: Bundle) -> dict[str, str]:
    manifest = bundle.manifest
    return {path: entry.sha256 for path, entry in manifest_files(manifest).items()}


def _parser() -> Parser:
    parser = Parser(prog="outrider rebuild", description="Build a bundle again from its model, by its own records.")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the .orb file")
    parser.add_argument("model", type=Path, metavar="MODEL", help="the model that it was compiled from")
    parser.add_argument("--check", action="store_true", help="say whether the bytes are the same, exit code 1 if not")
    parser.add_argument("-o", "--out", type=Path, help="keep what was built")
    add_model_options(parser)
    return parser
