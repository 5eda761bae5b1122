"""Certificates of this node's workloads: obtained from a CA, renewed in time, handed to the engine."""
