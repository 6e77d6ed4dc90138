"""The bundle: one `.orb` file of manifest, artifacts, golden vectors, baseline and provenance."""
