"""Which of a bundle's artifacts a slot runs: the fastest here of those that passed the probe, kept beside the bundle.

A choice lives and goes with the bundle's folder. It is written before the journal says that the probe is over, so a
slot that was armed has one wherever its bundle has several artifacts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from outrider.runtime.bundle.manifest import Manifest
from outrider.runtime.durable import write_file
from outrider.runtime.engines import ENGINES
from outrider.runtime.messages import ArtifactTrial

MARGIN = 0.95  # another must take less than this share of the time of the first in rank, so that noise does not choose

log = logging.getLogger(__name__)


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What a probe decided.

    `candidate` is the one to run, None where that has to be decided anew. `sound` are all that passed: nothing else is
    ever run in the slot. `engines` are the versions of the engines at the time, by artifact format, empty for one that
    was not installed; formats that need no package are not in it.
    """

    candidate: str | None
    sound: tuple[str, ...]
    engines: dict[str, str]


def fastest(trials: Sequence[ArtifactTrial]) -> int | None:
    """The number of the trial to keep, of trials in the order of rank; None where none passed.

    It is the first that passed, unless another one's median is below `MARGIN` of its: then the least median.
    """
    passed = [number for number, trial in enumerate(trials) if trial.passed and trial.p50_ms is not None]
    if not passed:
        return None
    times = {number: trials[number].p50_ms or 0.0 for number in passed}
    best = min(passed, key=lambda number: times[number])
    return best if times[best] < MARGIN * times[passed[0]] else passed[0]


def choice_of(manifest: Manifest, candidate: str, sound: Iterable[str]) -> Choice:
    """The choice of `candidate`, with the engines as they are installed now."""
    return Choice(candidate=candidate, sound=tuple(sound), engines=engine_versions(manifest))


def engine_versions(manifest: Manifest) -> dict[str, str]:
    """The installed version of each package that an artifact of the bundle needs, by format. Imports no engine."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in sorted({artifact.format for artifact in manifest.artifacts}):
        package = ENGINES[name].package if name in ENGINES else None
        if package is not None:
            try:
                found[name] = version(package)
            except PackageNotFoundError:
                found[name] = ""
    return found


def write_choice(bundle: Path, slot: str, choice: Choice) -> None:
    """Keep the choice for a slot beside a staged bundle, durably. Raises StorageError."""
    write_file(_place(bundle, slot), msgspec.json.encode(choice))


def recall_choice(bundle: Path, slot: str, manifest: Manifest) -> Choice | None:
    """What was chosen for the slot, or None where nothing was, or it cannot be read.

    Where an engine has another version than then, `candidate` is None: what was measured no longer holds, and the
    ranks decide among those that passed. The log says so.
    """
    place = _place(bundle, slot)
    try:
        choice = msgspec.json.decode(place.read_bytes(), type=Choice)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as e:
        log.warning("%s cannot be read, so the ranks decide which artifact runs: %s", place.name, e)
        return None
    now = engine_versions(manifest)
    if choice.engines == now:
        return choice
    changes = ", ".join(
        f"{name} {choice.engines.get(name) or 'none'} → {now.get(name) or 'none'}"
        for name in sorted({*choice.engines, *now})
        if choice.engines.get(name) != now.get(name)
    )
    log.warning("slot %s: the choice of %s is dropped, for its engines changed: %s", slot, choice.candidate, changes)
    return msgspec.structs.replace(choice, candidate=None)


def _place(bundle: Path, slot: str) -> Path:
    return bundle.with_name(f"choice-{slot}.json")
