"""How workloads of this node are found and their network namespaces obtained."""
