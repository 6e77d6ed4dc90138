"""Feature steps: one table, run by the same code in training and on the device."""
