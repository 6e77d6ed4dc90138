"""How fast compiled networks are next to every other way to run them. Run: python -m benchmarks.networks [--quick]

`run.py` reads as the whole story: make the nets (`nets/`), let every peer (`peers/`) convert and load them, each in a
process of its own (`worker.py`), race all of them in turn (`timing.py`), hold the figures against the core's own peak
(`peaks.py`, `flops.py`) and against the goals (`goals.py`), write the report (`report.py`, `plot.py`). A new peer is
one file in `peers/` and one line in its table; so is a new net in `nets/`.
"""
