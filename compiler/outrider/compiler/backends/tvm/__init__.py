"""Networks by TVM, as one library for its small runtime: import, lay out, lower, tune, build.

`build.py` is the page to read first. `import tvm` takes seconds, so every module imports it inside its functions.
"""
