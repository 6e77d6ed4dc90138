"""Data -> Model: recipes, runs, gates and the retrain worker.

```python
from outrider.trainer import train

result = train("card_fraud", "models/fraud", until="2019-05-01")
print(result.run.metrics.test.accuracy, result.model_dir)
```

`training.py` is the page to read first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outrider.trainer.recipe import Recipe, load_recipe
    from outrider.trainer.training import TrainResult, train

__all__ = ["Recipe", "TrainResult", "load_recipe", "train"]

_LAZY = {"Recipe": "recipe", "load_recipe": "recipe", "TrainResult": "training", "train": "training"}


def __getattr__(name: str) -> Any:  # lazy: the command line must start without numpy and xgboost
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
