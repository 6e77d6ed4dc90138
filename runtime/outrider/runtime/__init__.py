"""What a device needs, and the contracts that every part of Outrider shares.

```python
from outrider.runtime import load

session = load("fraud.orb")
y = session.predict(X)
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outrider.runtime.session import Session, load

__version__ = "0.1.0"
__all__ = ["Session", "__version__", "load"]


def __getattr__(name: str) -> Any:  # lazy: importing the contracts must not import numpy
    if name in ("Session", "load"):
        from outrider.runtime import session

        return getattr(session, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
