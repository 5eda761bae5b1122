"""nodeagent: a sidecarless service mesh for Linux nodes."""

__version__ = "0.1.0"
