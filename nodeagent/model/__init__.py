"""Frozen values of the mesh: workloads, services, endpoints, identities."""
