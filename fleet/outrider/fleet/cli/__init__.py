"""The commands `outrider up`, `outrider fleet` and `outrider publish`."""
