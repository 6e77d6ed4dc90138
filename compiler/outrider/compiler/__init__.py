"""Model -> Bundle.

```python
from outrider.compiler import compile_model

report = compile_model(model, target="host", out="fraud.orb", calibration=X, name="fraud", version="1")
print(report.table())
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outrider.compiler.pipeline import compile_model
    from outrider.compiler.report import Report

__all__ = ["Report", "compile_model"]


def __getattr__(name: str) -> Any:  # lazy: reading a model directory must not import the compiler
    if name == "compile_model":
        from outrider.compiler.pipeline import compile_model

        return compile_model
    if name == "Report":
        from outrider.compiler.report import Report

        return Report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
