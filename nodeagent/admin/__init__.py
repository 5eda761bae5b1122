"""The admin API of a running agent: unix socket, metrics and readiness ports."""
