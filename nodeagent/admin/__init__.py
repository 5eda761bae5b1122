"""The admin API: what a running agent tells over its unix socket, and its metrics and readiness ports."""
