"""How fast compiled forests are next to every other way to run them. Run: python -m benchmarks.trees [--quick]

`run.py` reads as the whole story: train the cases (`models.py`, `data.py`), let every peer (`peers/`) load them,
race all of them in one run (`timing.py`), measure memory in fresh processes (`fresh.py`), write the report
(`report.py`, `plot.py`). A new peer is one file in `peers/` and one line in its table.
"""
