"""Nodes and pods as network namespaces on one machine, with real processes in them."""
