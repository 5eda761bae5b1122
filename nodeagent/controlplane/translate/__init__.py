"""Model to xDS resources: pure."""
