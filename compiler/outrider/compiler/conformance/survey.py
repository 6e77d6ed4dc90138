"""All tests through all backends, one after the other, in a process that may crash, hang or eat all memory."""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from outrider.compiler.backends import BACKENDS, backend
from outrider.compiler.cache import tool_versions
from outrider.compiler.conformance.cases import case_names, find_case, groups
from outrider.compiler.conformance.results import CaseResult, Results, Verdict
from outrider.compiler.conformance.trial import PLAIN, brief
from outrider.compiler.workshop import Workshop
from outrider.runtime import __version__
from outrider.runtime.errors import OutriderError

TIMEOUT_S = 120.0  # of a trial
_MODULE = "outrider.compiler.conformance"
Progress = Callable[[str], None]
Name = tuple[str, str]  # group and test


def all_names() -> list[Name]:
    """Every test, in the order of groups. Takes as long as it takes to make all node tests: tens of seconds."""
    return [(group, name) for group in groups() for name in case_names(group)]


def sample_names(count: int, seed: int) -> list[Name]:
    """So many node tests of as many operators, the same for the same seed. Makes no more tests than it must."""
    rng = random.Random(seed)  # noqa: S311 - a sample, not a secret
    nodes = [group for group in groups() if group.startswith("node/")]
    picked = rng.sample(nodes, len(nodes))
    found: list[Name] = []
    for group in picked:
        if len(found) == count:
            break
        if names := case_names(group):
            found.append((group, rng.choice(names)))
    return sorted(found)


def survey(
    names: Iterable[Name],
    backends: Sequence[str],
    *,
    whole: bool = True,
    journal: Path | None = None,
    earlier: Results | None = None,
    progress: Progress = lambda _: None,
) -> Results:
    """Take the tests through the backends, and ONNX Runtime itself.

    `journal`: a file of what is already known, a test a line, which is taken over and added to, so that a survey that
    was interrupted goes on. `earlier`: results of which other backends' verdicts are taken over. `whole`: as in
    `examine`.
    """
    known = _known(earlier, backends) | _read_journal(journal)
    wanted = list(names)
    cases = []
    with Workshop() as workshop:
        for number, (group, name) in enumerate(wanted, start=1):
            before = known.get(f"{group} {name}", CaseResult(name=name, group=group, verdicts={}))
            missing = [one for one in (PLAIN, *backends) if one not in before.verdicts]
            if missing:
                progress(f"{number} of {len(wanted)}: {name}")
                before = _examined(workshop, before, missing, whole)
                _note(journal, before)
            failures = {one: verdict for one, verdict in before.verdicts.items() if verdict.outcome != "passed"}
            cases.append(msgspec.structs.replace(before, verdicts=failures))
    columns = [name for name in BACKENDS if name in (*backends, *(earlier.backends if earlier else ()))]
    return Results(
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        versions={**(earlier.versions if earlier else {}), **_versions(backends)},
        backends=tuple(columns),
        whole=whole,
        cases=tuple(cases),
    )


def _examined(workshop: Workshop, before: CaseResult, missing: Sequence[str], whole: bool) -> CaseResult:
    verdicts = dict(before.verdicts)
    arguments = before.group, before.name
    operator = before.operator or workshop.call(f"{_MODULE}.survey:operator_of", *arguments, seconds=TIMEOUT_S)
    for name in missing:
        try:
            verdicts[name] = workshop.call(f"{_MODULE}:examine", *arguments, name, whole, seconds=TIMEOUT_S)
        except OutriderError as e:  # of the process itself: a crash, a hang, no more memory
            verdicts[name] = Verdict(outcome="failed", reason=brief(e.message))
    return msgspec.structs.replace(before, operator=operator, verdicts=verdicts)


def operator_of(group: str, name: str) -> str:
    """The operator that a test is about: a job of its own, since only a job's process reads the tests."""
    return find_case(group, name).operator


def _versions(backends: Sequence[str]) -> dict[str, str]:
    tools = {"onnx", "onnxruntime", *(tool for name in backends for tool in backend(name).tools)}
    return {"outrider": __version__, **tool_versions(tools)}


def _known(earlier: Results | None, backends: Sequence[str]) -> dict[str, CaseResult]:
    """Verdicts of backends that are not asked again, those that passed among them."""
    if earlier is None:
        return {}
    kept = [name for name in (PLAIN, *earlier.backends) if name not in backends]
    return {
        f"{case.group} {case.name}": msgspec.structs.replace(
            case, verdicts={name: case.verdicts.get(name, Verdict(outcome="passed")) for name in kept}
        )
        for case in earlier.cases
    }


def _read_journal(path: Path | None) -> dict[str, CaseResult]:
    if path is None or not path.exists():
        return {}
    lines = path.read_bytes().splitlines()
    found = [msgspec.json.decode(line, type=CaseResult) for line in lines if line.endswith(b"}")]
    return {f"{case.group} {case.name}": case for case in found}


def _note(path: Path | None, case: CaseResult) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(msgspec.json.encode(case) + b"\n")
