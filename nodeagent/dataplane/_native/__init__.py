"""The compiled engine binding; imported by dataplane.engine only."""
