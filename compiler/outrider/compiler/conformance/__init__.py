"""ONNX's own conformance suite, through compile and load: which operators and models pass on which backend.

`cases` are the tests that the onnx package brings, `trial` takes one of them through one backend, `survey` takes all
through all of them, `results` is what is kept, and `page` makes a document of it. `python -m
outrider.compiler.conformance` does all of that.
"""

from __future__ import annotations

from outrider.compiler.conformance.cases import Case, case_names, find_case, groups
from outrider.compiler.conformance.results import CaseResult, Results, Verdict
from outrider.compiler.conformance.trial import PLAIN, examine

__all__ = ["PLAIN", "Case", "CaseResult", "Results", "Verdict", "case_names", "examine", "find_case", "groups"]
