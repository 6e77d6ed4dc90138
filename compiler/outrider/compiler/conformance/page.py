"""`docs/operators.md`, made of a survey's results."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from outrider.compiler.conformance.results import CaseResult, Outcome, Results
from outrider.compiler.conformance.trial import PLAIN

COMMAND = "make conformance"
_WORDS: dict[Outcome, str] = {
    "passed": "passed",
    "refused": "refused with a reason",
    "differs": "numbers off, found by the compile, nothing shipped",
    "wrong": "numbers off, not found by the compile",
    "failed": "failed otherwise",
}


def make_page(results: Results) -> str:
    """The document: summary, table of operators, table of model tests, and what did not pass that ONNX Runtime does."""
    nodes = [case for case in results.cases if case.operator]
    models = [case for case in results.cases if not case.operator]
    parts = [
        _head(results),
        "## Summary",
        _summary(results),
        "## Operators",
        "Passed of all node tests of the operator; `-` where none passes. Tests in which the operator's definition by "
        "other operators stands in its place count with it.",
        _table("operator", results, _grouped(nodes)),
        "## Models",
        "Model tests by the folder of the suite that they are in.",
        _table("tests", results, [(group, [c for c in models if c.group == group]) for group in _groups(models)]),
        "## What ONNX Runtime passes and `ort` does not",
        _below_floor(results),
        "## Wrong or failed",
        "All tests in which a backend gave other numbers unnoticed, or did not end as it should, but for those of "
        "`ort` that ONNX Runtime called directly does not pass either.",
        _listed(results),
    ]
    return "\n\n".join(parts) + "\n"


def _head(results: Results) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    way = "`compile_model` and `load`" if results.whole else "the steps of `compile_model`, without a bundle"
    return (
        "# Operators\n\n"
        "Which operators and models of ONNX's own conformance suite (`onnx.backend.test`, all of it that needs no "
        f"download) pass on which backend, in float32 on x86-64. Every test went through {way}, and its outputs were "
        "held against those that the suite states, within the suite's tolerances. "
        f"Made by `{COMMAND}` on {results.date}; do not edit. Versions: {versions}.\n\n"
        f"The column `{PLAIN}` is ONNX Runtime called directly: what it does not pass, `ort` is not asked to. A "
        "backend that takes an operator in float32 and with fixed sizes need not take it in other types or with free "
        "ones. "
        "`native` is left out: it compiles tree ensembles that take any number of rows, of which the suite has none."
    )


def _summary(results: Results) -> str:
    columns = _columns(results)
    counts = {name: Counter(case.outcome(name) for case in results.cases) for name in columns}
    rows = [[words, *(str(counts[name][outcome]) for name in columns)] for outcome, words in _WORDS.items()]
    return _lines([f"of {len(results.cases)} tests", *columns], rows)


def _grouped(nodes: Sequence[CaseResult]) -> list[tuple[str, list[CaseResult]]]:
    found: defaultdict[str, list[CaseResult]] = defaultdict(list)
    for case in nodes:
        found[case.operator].append(case)
    return sorted(found.items(), key=lambda item: (item[0].rpartition(".")[0], item[0]))


def _groups(cases: Iterable[CaseResult]) -> list[str]:
    return list(dict.fromkeys(case.group for case in cases))


def _table(first: str, results: Results, groups: Sequence[tuple[str, Sequence[CaseResult]]]) -> str:
    columns = _columns(results)
    rows = []
    for name, cases in groups:
        passed = [sum(case.outcome(column) == "passed" for case in cases) for column in columns]
        rows.append([name, *(f"{count}/{len(cases)}" if count else "-" for count in passed)])
    return _lines([first, *columns], rows)


def _below_floor(results: Results) -> str:
    """Tests by the reason that `ort` gives, which is why it is below what ONNX Runtime itself passes."""
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for case in results.cases:
        verdict = case.verdicts.get("ort")
        if verdict is not None and case.outcome(PLAIN) == "passed":
            reasons[f"{verdict.outcome}: {_general(verdict.reason, case)}"].append(case.name)
    if not reasons:
        return "Nothing." if "ort" in results.backends else "`ort` was not asked."
    rows = [[_cell(reason), str(len(names)), _some(names)] for reason, names in sorted(reasons.items())]
    return _lines(["reason", "tests", "such as"], rows)


def _general(reason: str, case: CaseResult) -> str:
    """The reason without the name of the tensor that it is about, so that equal reasons are one row."""
    start, quote, rest = reason.partition("'")
    name, end, rest = rest.partition("'")
    return f"{start}…{rest}" if quote and end and name != case.name else reason


def _listed(results: Results) -> str:
    rows = [
        [case.name, name, f"{verdict.outcome}: {_cell(verdict.reason)}", case.outcome(PLAIN)]
        for case in results.cases
        for name, verdict in sorted(case.verdicts.items())
        if name != PLAIN
        and verdict.outcome in ("wrong", "failed")
        and not (name == "ort" and case.outcome(PLAIN) != "passed")
    ]
    return _lines(["test", "backend", "what happened", PLAIN], rows) if rows else "None."


def _columns(results: Results) -> list[str]:
    return [PLAIN, *results.backends]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
