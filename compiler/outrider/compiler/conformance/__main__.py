"""`python -m outrider.compiler.conformance`: run ONNX's conformance suite, keep the results, write the document."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from outrider.compiler.backends import BACKENDS
from outrider.compiler.conformance.page import make_page
from outrider.compiler.conformance.results import read_results, write_results
from outrider.compiler.conformance.survey import all_names, sample_names, survey
from outrider.runtime.arguments import Parser
from outrider.runtime.cli import guarded
from outrider.runtime.errors import EXIT_OK, UsageError

NETWORKS = tuple(name for name in BACKENDS if name != "native")  # which compiles tree ensembles of any number of rows
_SEED = 7


def main(argv: Sequence[str] | None = None) -> int:
    """Survey, or make the document anew of results that there are."""
    parser = Parser(prog="python -m outrider.compiler.conformance", description="Run ONNX's own conformance suite.")
    parser.add_argument("--results", type=Path, required=True, help="JSON to write, or to read with --page-only")
    parser.add_argument("--page", type=Path, help="the document to write")
    parser.add_argument("--page-only", action="store_true", help="run nothing: make the document of the results")
    parser.add_argument("--backends", default=",".join(NETWORKS), help="with commas (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="take over what the results say of other backends")
    parser.add_argument("--group", action="append", help="such as node/abs or simple; again for more (default: all)")
    parser.add_argument("--sample", type=int, help="only so many node tests, of different operators")
    parser.add_argument("--direct", action="store_true", help="without bundles and measurements, which is quicker")
    given = parser.parse_args(argv)
    backends = given.backends.split(",")
    unknown = [name for name in backends if name not in NETWORKS]
    if unknown:
        raise UsageError(f"no backend {unknown[0]!r} compiles networks", hint=f"there are {', '.join(NETWORKS)}")
    if not given.page_only:
        names = all_names() if given.sample is None else sample_names(given.sample, _SEED)
        if given.group:
            names = [name for name in names if name[0] in given.group]
        journal = given.results.with_suffix(".journal")
        earlier = read_results(given.results) if given.keep else None
        found = survey(names, backends, whole=not given.direct, journal=journal, earlier=earlier, progress=_tell)
        write_results(given.results, found)
        journal.unlink(missing_ok=True)
    if given.page is not None:
        given.page.write_text(make_page(read_results(given.results)), encoding="utf-8")
    return EXIT_OK


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(guarded(main))
