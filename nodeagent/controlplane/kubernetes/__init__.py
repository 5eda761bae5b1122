"""Kubernetes objects to values of the model."""
