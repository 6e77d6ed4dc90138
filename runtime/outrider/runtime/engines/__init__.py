"""Engines: what executes one artifact format on a device."""
