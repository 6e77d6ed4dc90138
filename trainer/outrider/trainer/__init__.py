"""Data -> Model: recipes, runs, gates and the retrain worker."""
