"""The two composition roots: the agent and the control plane."""
