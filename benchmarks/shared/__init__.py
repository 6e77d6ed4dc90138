"""What the benchmarks against peers (`benchmarks.trees`, `benchmarks.networks`) have in common.

Processes whose memory is measured import from here too, so a module imports no more than what it is for needs.
"""
