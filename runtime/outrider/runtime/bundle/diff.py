"""`outrider diff`: what differs between two bundles, part by part."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from outrider.runtime.arguments import Parser
from outrider.runtime.bundle.manifest import CandidateRecord, Manifest
from outrider.runtime.bundle.reader import Bundle, open_bundle
from outrider.runtime.errors import EXIT_OK
from outrider.runtime.output import as_json

_MOST = 400  # characters of a step that are shown


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that differs: `part` of the bundle, `what` of it, and its value on each side, None where it lacks it.

    `detail` says more, such as how far golden outputs are from each other.
    """

    part: str
    what: str
    first: str | None
    second: str | None
    detail: str = ""


class BundleDiff(msgspec.Struct, frozen=True, kw_only=True):
    """What `outrider diff --json` prints. `same`: byte for byte."""

    first: str
    second: str
    same: bool
    differences: tuple[Difference, ...]


def diff_bundles(first: Bundle, second: Bundle) -> BundleDiff:
    """Compare two opened bundles. Raises BadBundleError for golden files that cannot be read."""
    one, other = first.manifest, second.manifest
    found = [
        *_named("release", _release(one), _release(other)),
        *_named("signature", _signature(one), _signature(other)),
        *_named("artifact", _artifacts(one), _artifacts(other)),
        *_named("candidate", _candidates(one), _candidates(other)),
        *_named("goal", _goals(one), _goals(other)),
        *_named("tool", one.tools, other.tools),
        *_golden(first, second),
        *_named("file", _files(one), _files(other)),
    ]
    same = first.sha256 == second.sha256
    return BundleDiff(first=str(first.path), second=str(second.path), same=same, differences=tuple(found))


def main(argv: Sequence[str]) -> int:
    """`outrider diff a.orb b.orb`: what differs, as text or JSON; exit code 0 whether or not anything does."""
    parser = Parser(prog="outrider diff", description="What differs between two bundles.")
    parser.add_argument("first", type=Path, metavar="A", help="a bundle")
    parser.add_argument("second", type=Path, metavar="B", help="another")
    parser.add_argument("--json", action="store_true", help="print the differences as JSON")
    arguments = parser.parse_args(argv)
    found = diff_bundles(open_bundle(arguments.first), open_bundle(arguments.second))
    print(as_json(found) if arguments.json else describe(found))
    return EXIT_OK


def describe(found: BundleDiff) -> str:
    """The differences as text."""
    if found.same:
        return f"{found.first} and {found.second} are the same, byte for byte"
    lines = [f"- {found.first}", f"+ {found.second}"]
    part = ""
    for one in found.differences:
        if one.part != part:
            part = one.part
            lines.append(part)
        detail = f" ({one.detail})" if one.detail else ""
        lines.append(f"  {one.what}: {one.first or 'none'} -> {one.second or 'none'}{detail}")
    if not found.differences:
        lines.append("only what was measured in more detail than is shown differs")
    return "\n".join(lines)


def _named(part: str, first: Mapping[str, str], second: Mapping[str, str]) -> Iterator[Difference]:
    """What differs by name; in the order of the first, then what only the second has."""
    for name in dict.fromkeys((*first, *second)):
        if first.get(name) != second.get(name):
            yield Difference(part=part, what=name, first=first.get(name), second=second.get(name))


def _release(manifest: Manifest) -> dict[str, str]:
    source = manifest.source
    found = {
        "name": manifest.name,
        "version": manifest.version,
        "target": manifest.target,
        "model": f"{source.framework} {source.framework_version}, {source.description}, {source.sha256[:16]}",
        "evidence": manifest.evidence,
        "run": manifest.run_id,
        "features": None if manifest.features is None else _brief(manifest.features),
        "images": None if manifest.images is None else _brief(manifest.images),
        **{f"step {number}": _short(_brief(step)) for number, step in enumerate(manifest.postprocess, 1)},
    }
    return {name: value for name, value in found.items() if value is not None}


def _signature(manifest: Manifest) -> dict[str, str]:
    signature = manifest.signature
    tensors = {
        f"{side} {spec.name}": f"{spec.dtype}({', '.join('n' if size is None else str(size) for size in spec.shape)})"
        for side, specs in (("input", signature.inputs), ("output", signature.outputs))
        for spec in specs
    }
    others = {
        "predict": signature.predict,
        "batched": "yes" if signature.batched else "no",
        "feature names": ", ".join(signature.feature_names),
        "class labels": ", ".join(map(str, signature.class_labels)),
    }
    return tensors | {name: value for name, value in others.items() if value}


def _artifacts(manifest: Manifest) -> dict[str, str]:
    return {
        one.candidate: f"{one.format} ABI {one.abi}, {one.size} B, {one.sha256[:16]}, needs {_brief(one.needs)}"
        for one in manifest.artifacts
    }


def _candidates(manifest: Manifest) -> dict[str, str]:
    return {one.id if one.id else one.backend: _candidate(one) for one in manifest.candidates}


def _candidate(record: CandidateRecord) -> str:
    times = [f"{found.ns_per_row_median:,.0f} ns a row at {found.batch}" for found in record.measured]
    error = [] if record.parity is None else [f"error {record.parity.max_abs_error:.1e}"]
    size = [] if record.size is None else [f"{record.size} B"]
    return ", ".join((record.outcome, *size, *times, *error)) + ("" if record.measured else f": {record.reason}")


def _goals(manifest: Manifest) -> dict[str, str]:
    words = {True: "met", False: "not met", None: "not measured"}
    return {
        goal.text: words[goal.met] + ("" if goal.measured is None else f", {goal.measured:.4g} {goal.unit}".rstrip())
        for goal in manifest.goals
    }


def _golden(first: Bundle, second: Bundle) -> Iterator[Difference]:
    """Golden rows and outputs. How far outputs are from each other is said where they are of the same inputs."""
    one, other = first.manifest.golden, second.manifest.golden
    sides = [{"rows": f"{golden.rows}, {golden.evidence}"} for golden in (one, other)]
    yield from _named("golden", *sides)
    inputs = [_digests(bundle, golden.inputs) for bundle, golden in ((first, one), (second, other))]
    yield from _named("golden", *({f"input {name}": sha for name, sha in side.items()} for side in inputs))
    outputs = [_digests(bundle, golden.outputs) for bundle, golden in ((first, one), (second, other))]
    for found in _named("golden", *outputs):
        name, detail = found.what, ""
        if inputs[0] == inputs[1] and found.first and found.second:
            detail = _apart(first.read(one.outputs[name]), second.read(other.outputs[name]), name)
        yield msgspec.structs.replace(found, what=f"output {name}", detail=detail)


def _apart(first: bytes, second: bytes, name: str) -> str:
    from outrider.runtime.bundle.npy import decode_npy
    from outrider.runtime.tolerance import Tolerance, compare

    one, other = decode_npy(first, origin=name), decode_npy(second, origin=name)
    if one.shape != other.shape:
        return f"shapes {one.shape} and {other.shape}"
    apart = compare({name: other}, {name: one}, Tolerance())
    return f"up to {apart.absolute:.3g} apart" if one.dtype.kind == "f" else (apart.problems or {}).get(name, "")


def _digests(bundle: Bundle, paths: Mapping[str, str]) -> dict[str, str]:
    known = {entry.path: entry.sha256[:16] for entry in bundle.manifest.files}
    return {name: known[path] for name, path in paths.items()}


def _files(manifest: Manifest) -> dict[str, str]:
    """Files beside artifacts and golden vectors."""
    golden = manifest.golden
    shown = {*golden.inputs.values(), *golden.outputs.values(), *golden.raw.values()}
    return {entry.path: f"{entry.size} B, {entry.sha256[:16]}" for entry in manifest.files if entry.path not in shown}


def _short(text: str) -> str:
    """Priors make a step long; then the digest tells two of them apart."""
    return text if len(text) <= _MOST else f"{text[:_MOST]}… {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _brief(record: Any) -> str:
    return msgspec.json.encode(record).decode()
