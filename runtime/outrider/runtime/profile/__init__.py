"""Profiles: what a device counts of its inputs and outputs, and the baseline they are compared with."""
