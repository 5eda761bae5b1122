"""Received xDS and model values to a Snapshot: pure and deterministic."""
