"""Devices, rollouts, registry, drift and triggers behind one HTTP API and one MQTT manager."""
