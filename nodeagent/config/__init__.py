"""Settings, one module per program; values come from options and NODEAGENT_* variables."""
