"""Model -> Bundle: frontends, backends, measurement, parity."""
