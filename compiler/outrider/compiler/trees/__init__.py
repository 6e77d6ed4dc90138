"""Tree ensembles, one module a stage: read (Treelite -> Forest) -> layout (Forest -> Tables) -> emit (Tables -> C)."""
