"""Frozen values of the mesh: services, endpoints, workloads, names. Nothing here is derived from xDS."""
