"""Discovers services, decodes the Istio API, serves xDS."""
