"""Metrics and access logs from what the engine counted."""
